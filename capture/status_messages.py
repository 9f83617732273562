"""What supervisor and capture worker say to each other on the pages of :mod:`capture.status_board`."""

from __future__ import annotations

import msgspec

from capture.serving import Span


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """One model that was seen in traffic behind the model server whose status is at ``status``, with the labels that
    requests named and no answer explained."""

    status: str
    model: str
    labels: tuple[str, ...] = ()


class Asks(msgspec.Struct, frozen=True, array_like=True):
    """The worker's page. ``taken`` are the ids of metadata that it has handed to the store."""

    models: tuple[Ask, ...] = ()
    taken: tuple[str, ...] = ()


class Said(msgspec.Struct, frozen=True, array_like=True):
    """What the polls said of a model, or of one label of it: see :mod:`capture.serving`."""

    status: str
    model: str
    label: str
    ongoing: bool
    spans: tuple[Span, ...]


class Metadata(msgspec.Struct, frozen=True, array_like=True):
    """An answer to ``GET /v1/models/M/versions/V/metadata`` that could be read. ``fetched_at`` is Unix time."""

    id: str
    model: str
    version: str
    fetched_at: float
    body: bytes


class Answers(msgspec.Struct, frozen=True, array_like=True):
    """The supervisor's page."""

    said: tuple[Said, ...] = ()
    metadata: tuple[Metadata, ...] = ()
