"""An exchange while it is put together, and the budget of bytes that all of them share."""

from __future__ import annotations

from dataclasses import dataclass, field

from capture.dialects.base import Judgement, Response, Route
from capture.schema.wire import FieldProbe
from capture.signature import Call
from capture.wire.grpc import GrpcReader


@dataclass(slots=True)
class Exchange:
    """One finished exchange. ``call`` and ``judgement`` are set for calls that could be read; otherwise ``ignored``,
    ``refusal`` or one of the flags says what it was. ``body`` is the request as the model server reads it, transport
    compression removed; ``wire_body`` the bytes as sent where they differ."""

    flow: int
    stream: int
    sender: str
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    route: Route | None = None
    ignored: str = ""
    verified: bool = True
    call: Call | None = None
    refusal: str = ""
    body: bytes | None = None
    wire_body: bytes | None = None
    oversized: bool = False
    lost: bool = False
    request_complete: bool = False
    judgement: Judgement | None = None


class BodyBudget:
    """The bytes of request bodies that a worker may hold at a time, over all flows."""

    __slots__ = ("_open", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._open: dict[int, OpenExchange] = {}

    def take(self, owner: OpenExchange, size: int) -> None:
        """Account for ``size`` more bytes of this body; the largest body is given up while the limit is passed."""
        self._open[id(owner)] = owner
        owner.size += size
        self.used += size
        while self.used > self.limit:
            largest = max(self._open.values(), key=lambda held: held.size)
            largest.exchange.oversized = True
            largest.drop()

    def give_back(self, owner: OpenExchange) -> None:
        """The body of ``owner`` is held no longer."""
        if self._open.pop(id(owner), None) is not None:
            self.used -= owner.size
        owner.size = 0


class OpenExchange:
    """An exchange in progress."""

    __slots__ = (
        "budget",
        "compressed",
        "encoding",
        "exchange",
        "opaque",
        "parts",
        "probe",
        "reader",
        "response",
        "size",
        "started",
    )

    def __init__(self, exchange: Exchange, budget: BodyBudget) -> None:
        self.exchange = exchange
        self.budget = budget
        self.parts: list[bytes] = []
        self.size = 0
        self.response = Response()
        self.probe: FieldProbe | None = None
        self.reader: GrpcReader | None = None
        self.encoding = b""
        self.compressed: list[bytes] | None = None
        self.started = False
        self.opaque = False

    def drop(self) -> None:
        """Hold no bytes of the request any more."""
        self.parts = []
        self.exchange.body = self.exchange.wire_body = None
        self.budget.give_back(self)
