"""Rows of the embedded store and what they stand for; counts by name are small JSON texts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from capture.signature import WireSignature
from capture.store.base import OTHER, ModelVersion, RecordKey, Sample, StoredSignature


def stored_signature(row: tuple[Any, ...]) -> StoredSignature:
    """A signature with its sample's columns."""
    (
        family, name, version, digest, signature, proven, unproven, first_seen,
        last_seen, hours, shapes, senders, evicted, sample_at, size, sample_shapes, outcome,
    ) = row  # fmt: skip
    return StoredSignature(
        key=RecordKey(ModelVersion(family, name, version), digest),
        signature=msgspec.json.decode(signature, type=WireSignature),
        proven=proven,
        unproven=unproven,
        first_seen=first_seen,
        last_seen=last_seen,
        hours=hours,
        shapes=msgspec.json.decode(shapes, type=dict[str, int]),
        senders=msgspec.json.decode(senders, type=dict[str, int]),
        evicted=bool(evicted),
        sample_at=sample_at,
        sample_size=size or 0,
        sample_shapes=sample_shapes or "",
        sample_outcome=outcome or "",
    )


def merged(text: str, more: Counter[str], most: int) -> str:
    """Counts as JSON, at most ``most`` names and one for the rest: names that are there stay, new ones fill up."""
    counts = msgspec.json.decode(text, type=dict[str, int])
    for name, count in more.items():
        where = name if name in counts or len(counts) < most else OTHER
        counts[where] = counts.get(where, 0) + count
    return msgspec.json.encode(counts).decode()


def less(text: str, gone: Counter[str]) -> str:
    """Counts as JSON without those that are gone."""
    counts = msgspec.json.decode(text, type=dict[str, int])
    for name, count in gone.items():
        where = name if name in counts else OTHER
        counts[where] = counts.get(where, 0) - count
    return msgspec.json.encode({name: count for name, count in counts.items() if count > 0}).decode()


def sample_row(sample: Sample) -> tuple[Any, ...]:
    """The columns of a sample."""
    return (
        sample.size,
        sample.shapes,
        sample.outcome,
        sample.captured_at,
        sample.path,
        msgspec.json.encode(sample.headers).decode(),
        sample.wire_body,
        sample.body,
    )


def sample_of(row: tuple[Any, ...]) -> Sample:
    """What :func:`sample_row` has made columns of."""
    _, shapes, outcome, captured_at, path, headers, wire_body, body = row
    return Sample(
        body, wire_body, msgspec.json.decode(headers, type=dict[str, str]), path, shapes, outcome, captured_at
    )
