"""An exchange while it is put together, and the budget of bytes that all of them share."""

from __future__ import annotations

from typing import Final

import msgspec

from capture.dialects.base import Judgement, Response, Route
from capture.schema.inflating import GzipProbe
from capture.schema.wire import FieldProbe
from capture.signature import Call
from capture.wire.grpc import GrpcReader

#: A piece of a body that is shorter is copied to the end of the piece before it: an object of its own costs more.
SMALL_PART: Final = 4096
#: What is accounted for a piece that is kept as it came, beside its bytes: the object and its place in the list.
PART_COST: Final = 64
#: Exchanges that a worker follows at a time, over all flows: each takes about 1 KB, and bounds of streams per flow are
#: no bound over ten thousand flows. Real sidecars have some thousands in flight. Beyond it a new one is lost where its
#: flow has more than a fair share, so that one client does not blind the worker for the others.
MAX_OPEN_EXCHANGES: Final = 1 << 16
FAIR_EXCHANGES: Final = 100
#: A sixteenth of the limit is made free where bodies are smaller than that.
SPARE_SHIFT: Final = 4


class Parts(msgspec.Struct, eq=False):
    """A body as it comes in. Large pieces are kept as they are, small ones are copied together."""

    _parts: list[bytes | bytearray] = []

    def __len__(self) -> int:
        """Pieces that are held."""
        return len(self._parts)

    def add(self, data: bytes) -> int:
        """One more piece; the bytes to account for."""
        parts = self._parts
        if len(data) >= SMALL_PART or not parts:
            parts.append(data)
            return len(data) + PART_COST
        last = parts[-1]
        if isinstance(last, bytearray):
            last += data
            return len(data)
        if len(last) < SMALL_PART:
            parts[-1] = bytearray(last + data)
            return len(data)
        parts.append(bytearray(data))
        return len(data) + PART_COST

    def take(self) -> bytes:
        """All of it; nothing is held afterwards."""
        parts, self._parts = self._parts, []
        only = parts[0] if len(parts) == 1 else None
        return only if isinstance(only, bytes) else b"".join(parts)

    def clear(self) -> None:
        """Hold nothing any more."""
        self._parts = []


class Exchange(msgspec.Struct):
    """One finished exchange. ``call`` and ``judgement`` are set for calls that could be read; otherwise ``ignored``,
    ``refusal`` or one of the flags says what it was. ``body`` is the request as the model server reads it, transport
    compression removed; ``wire_body`` the bytes as sent where they differ. ``began`` is how many exchanges had ended
    when it began, over all flows, and ``ended`` its own place among them."""

    flow: int
    stream: int
    sender: str
    path: str = ""
    headers: dict[str, str] = {}  # each instance gets its own
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
    #: The calls that it stands for: one, but where a record of many is read.
    calls: int = 1
    began: int = 0
    ended: int = 0
    #: The tap's clock when the request's head was read, monotonic seconds: not after its first byte.
    began_at: float = 0.0


class BodyBudget:
    """The bytes of bodies that a worker may hold at a time, over all flows: of requests, and of compressed responses
    that wait to be unpacked. And how many exchanges are open, and have ended; and what time it is."""

    __slots__ = ("_open", "exchanges", "finished", "limit", "monotonic", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.exchanges = 0
        self.finished = 0
        #: The tap's clock, in seconds.
        self.monotonic = 0.0
        self._open: dict[int, OpenExchange] = {}

    def take(self, owner: OpenExchange, size: int) -> None:
        """Account for ``size`` more bytes of this body; the largest bodies are given up when the limit is passed."""
        self._open[id(owner)] = owner
        owner.size += size
        self.used += size
        if self.used > self.limit:
            self._make_room()

    def _make_room(self) -> None:
        """Give up the largest bodies until the limit holds, and where they are small some more of them: looking through
        tens of thousands at every piece that comes in would cost a hostile client nothing and the worker all it has."""
        largest_first = sorted(self._open.values(), key=_size, reverse=True)
        enough = self.limit
        for held in largest_first:
            if self.used <= enough:
                return
            if held.size < self.limit >> SPARE_SHIFT:
                enough = self.limit - (self.limit >> SPARE_SHIFT)
            held.exchange.oversized = True
            held.drop()

    def give_back_some(self, owner: OpenExchange, size: int) -> None:
        """So many bytes of ``owner`` are held no longer."""
        owner.size -= size
        self.used -= size

    def give_back(self, owner: OpenExchange) -> None:
        """Nothing of ``owner`` is held any longer."""
        if self._open.pop(id(owner), None) is not None:
            self.used -= owner.size
        owner.size = 0


def _size(held: OpenExchange) -> int:
    return held.size


class OpenExchange(msgspec.Struct, eq=False):
    """An exchange in progress. ``body_size``: bytes of the request so far; ``size`` is what the budget accounts for."""

    exchange: Exchange
    budget: BodyBudget
    parts: Parts = msgspec.field(default_factory=Parts)
    body_size: int = 0
    size: int = 0
    response: Response = msgspec.field(default_factory=Response)
    probe: FieldProbe | GzipProbe | None = None
    reader: GrpcReader | None = None
    encoding: bytes = b""
    compressed: Parts | None = None
    compressed_size: int = 0
    compressed_cost: int = 0
    started: bool = False
    opaque: bool = False

    def drop(self) -> None:
        """Hold no bytes any more."""
        self.parts.clear()
        if self.compressed is not None:
            # Without it there is no version to be found.
            self.compressed = self.probe = None
            self.compressed_size = self.compressed_cost = 0
        self.exchange.body = self.exchange.wire_body = None
        self.budget.give_back(self)
