"""What a dialect is: how one server family's calls are recognised, read and judged.

A dialect is one small file and one row in ``table.py``; nothing else needs an edit. Dialects are pure: bytes and plain
values in, plain values out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, Protocol

import msgspec

from capture.config import ListenerConfig
from capture.schema.wire import FieldProbe
from capture.signature import Call

#: Dimensions of one tensor; TensorFlow refuses more (tensorflow/core/framework/tensor_shape.h: MaxDimensions).
MAX_DIMENSIONS: Final = 254


class Outcome(StrEnum):
    """What is known of an exchange. ``PROVEN``: the server answered with success. ``UNPROVEN``: it may have reached
    Session::Run and failed, or was cut off. ``REFUSED``: it failed provably before Session::Run. ``UNDECODABLE``: the
    server took it for a call, warmtap cannot read it: part of what no warm-up file can cover."""

    PROVEN = "proven"
    UNPROVEN = "unproven"
    REFUSED = "refused"
    UNDECODABLE = "undecodable"


class Unreadable(ValueError):
    """The body is not what this dialect's method takes. The text is a short fixed phrase, fit to be counted by."""


class Opaque(Unreadable):
    """The body may well be a call, but warmtap cannot look into it (compression): whatever the server answered, it is
    not known to be malformed."""


@dataclass(slots=True)
class Route:
    """Where a request goes, from its head alone. ``model`` is empty where the body names it."""

    dialect: Dialect
    method: str
    model: str
    path: str


@dataclass(slots=True)
class Ignored:
    """A request that is no model call, or one that no dialect reads. ``what`` is counted: bounded, no user data."""

    what: str


class Response(msgspec.Struct, gc=False):
    """What a dialect may judge by. ``status`` 0: no response head was seen. ``complete``: the response ended as its
    framing says. ``grpc_status`` None: none was sent. ``probe`` is the payload of the field that the dialect asked for,
    ``probed`` says that all of the message was looked through for it. ``aborted`` says why the exchange was cut off,
    empty if it was not."""

    status: int = 0
    complete: bool = False
    grpc_status: int | None = None
    grpc_message: str = ""
    probe: bytes | None = None
    probed: bool = False
    aborted: str = ""


class Judgement(msgspec.Struct, gc=False):
    """The outcome, a short phrase why (empty when proven), and the model version that answered ("" if not told)."""

    outcome: Outcome
    reason: str = ""
    version: str = ""


class Dialect(Protocol):
    """One server family's way of speaking over one transport."""

    #: As in settings and in the store.
    name: str
    #: Identity of the server family in wire signatures.
    family: str
    #: ``grpc``: the body is length-prefixed messages, one of them the request; ``body``: the body is the request.
    framing: Literal["grpc", "body"]

    def route(self, http_method: bytes, path: str, listener: ListenerConfig) -> Route | Ignored | None:
        """Recognise a request by its head; None leaves it to the next dialect. ``path`` has no query."""

    def read(self, route: Route, body: bytes) -> Call:
        """The call that this body means. Raises Unreadable."""

    def response_probe(self, route: Route) -> FieldProbe | None:
        """What to look for in the response message while it passes; None for nothing."""

    def judge(self, route: Route, response: Response) -> Judgement:
        """Decide the outcome of a call whose request was read."""
