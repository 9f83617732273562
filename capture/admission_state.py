"""What :mod:`capture.admission` remembers, and how it answers."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Final

import msgspec

from capture.levels import split
from capture.store.base import RecordKey

#: A sample of another shape than the most frequent one is replaced once that shape was seen this many times as often.
SHAPE_LEAD: Final = 2


@dataclass(slots=True)
class Known:
    """What is remembered of one signature. ``sample_at`` is None where there is none; ``held`` the id of its further
    sample."""

    first_seen: float
    last_seen: float
    hits: int = 0
    hours: int = 0
    last_hour: int = -1
    shapes: dict[str, int] = field(default_factory=dict)
    sample_at: float | None = None
    sample_shapes: str = ""
    sample_proven: bool = False
    sample_size: int = 0
    held: str = ""
    held_at: float = 0.0
    evicted: bool = False
    #: It does not come back before this time: the store, which others write too, has evicted it.
    barred_until: float = 0.0

    @property
    def rank(self) -> tuple[int, int, float]:
        """The lowest is evicted first: seen in the fewest distinct hours, then with the fewest hits, then oldest."""
        return (self.hours, self.hits, self.first_seen)


@dataclass(slots=True)
class Held:
    """One held-out request and its roles."""

    digest: str
    size: int
    captured_at: float
    draw: float | None
    for_signature: bool


class Decision(msgspec.Struct):
    """What to do with one call. ``hold`` is the held-out request to store; ``released`` maps ids of others to the roles
    that they keep; ``evicted`` are signatures that lose their requests. ``urgent``: nothing as good is stored; what
    replaces something old can wait."""

    new: bool = False
    new_hour: bool = False
    admitted: bool = True
    sample: bool = False
    urgent: bool = False
    hold: tuple[float | None, bool] | None = None
    released: dict[str, tuple[float | None, bool]] = {}  # each instance gets its own
    evicted: list[RecordKey] = []


class VersionState:
    """State of one model version. The reservoir is those of ``held`` that have a draw; ``heap`` orders it by the
    largest draw, and may name some that have left. ``ranks`` orders the signatures that are not evicted by rank: a rank
    only grows, so what stands there is never above the true one and is set right when it comes to the front."""

    __slots__ = (
        "calls",
        "classes",
        "cut",
        "cut_age",
        "full",
        "heap",
        "held",
        "last_seen",
        "live",
        "new_by_hour",
        "ranks",
        "reservoir_bytes",
        "reservoir_count",
        "signatures",
        "told_at",
        "told_cut",
    )

    def __init__(self) -> None:
        self.signatures: dict[str, Known] = {}
        #: Records of each wire signature that a level tells apart.
        self.classes: dict[str, int] = {}
        #: Signatures that are not evicted.
        self.live = 0
        self.ranks: list[tuple[tuple[int, int, float], str]] = []
        self.held: dict[str, Held] = {}
        self.heap: list[tuple[float, str]] = []
        self.reservoir_count = 0
        self.reservoir_bytes = 0
        #: Proven calls by hour: the size of the window that the reservoir is drawn from.
        self.calls: dict[int, int] = {}
        self.new_by_hour: tuple[int, int] = (-1, 0)
        #: Draws below it enter a reservoir that is not full; None when it must be computed, ``cut_age`` calls after it
        #: was.
        self.cut: float | None = None
        self.cut_age = 0
        #: The reservoir was at its bound (requests or bytes) when it last changed.
        self.full = False
        self.last_seen = 0.0
        #: Draws below it enter the reservoir of all sidecars together, as the store said at ``told_at``.
        self.told_cut = 1.0
        self.told_at = float("-inf")

    def learn(self, digest: str, known: Known) -> None:
        """Remember one more."""
        self.signatures[digest] = known
        wire, level = split(digest)
        if level:
            self.classes[wire] = self.classes.get(wire, 0) + 1

    def unlearn(self, digest: str) -> None:
        """Remember it no longer."""
        del self.signatures[digest]
        wire, level = split(digest)
        if level:
            self.classes[wire] -= 1
            if not self.classes[wire]:
                del self.classes[wire]

    def enliven(self, digest: str) -> None:
        """A signature is new or back; it is not evicted."""
        self.live += 1
        self.rerank(digest)

    def rerank(self, digest: str) -> None:
        """Take up the rank of a signature, which may be lower than before."""
        if len(self.ranks) > 2 * self.live + 64:
            self.ranks = [(known.rank, name) for name, known in self.signatures.items() if not known.evicted]
            heapq.heapify(self.ranks)
        else:
            heapq.heappush(self.ranks, (self.signatures[digest].rank, digest))

    def lowest(self) -> str | None:
        """The signature to evict first."""
        while self.ranks:
            rank, digest = self.ranks[0]
            known = self.signatures.get(digest)
            if known is None or known.evicted:
                heapq.heappop(self.ranks)
            elif known.rank != rank:
                heapq.heapreplace(self.ranks, (known.rank, digest))
            else:
                return digest
        return None

    def add(self, held_id: str, held: Held) -> None:
        """Hold one more request."""
        self.held[held_id] = held
        if held.draw is not None:
            self.reservoir_count += 1
            self.reservoir_bytes += held.size
            if len(self.heap) > 2 * self.reservoir_count + 64:
                self.heap = [(-one.draw, name) for name, one in self.held.items() if one.draw is not None]
                heapq.heapify(self.heap)
            else:
                heapq.heappush(self.heap, (-held.draw, held_id))

    def largest(self) -> tuple[float, str] | None:
        """The largest draw in the reservoir and whose it is."""
        while self.heap:
            negative, held_id = self.heap[0]
            held = self.held.get(held_id)
            if held is not None and held.draw == -negative:
                return -negative, held_id
            heapq.heappop(self.heap)
        return None

    def leave_reservoir(self, held_id: str) -> None:
        """Take the reservoir's role from a held-out request."""
        held = self.held[held_id]
        if held.draw is not None:
            held.draw = None
            self.reservoir_count -= 1
            self.reservoir_bytes -= held.size

    def remove(self, held_id: str) -> Held:
        """Hold a request no longer."""
        self.leave_reservoir(held_id)
        held = self.held.pop(held_id)
        known = self.signatures.get(held.digest)
        if known is not None and known.held == held_id:
            known.held = ""
        return held
