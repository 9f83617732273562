"""What :mod:`capture.admission` remembers, and how it answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from capture.store.base import RecordKey


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


@dataclass(slots=True)
class Decision:
    """What to do with one call. ``hold`` is the held-out request to store; ``released`` maps ids of others to the roles
    that they keep; ``evicted`` are signatures that lose their requests."""

    new: bool = False
    new_hour: bool = False
    admitted: bool = True
    sample: bool = False
    hold: tuple[float | None, bool] | None = None
    released: dict[str, tuple[float | None, bool]] = field(default_factory=dict)
    evicted: list[RecordKey] = field(default_factory=list)


class VersionState:
    """State of one model version."""

    __slots__ = ("calls", "cut", "cut_age", "full", "held", "held_bytes", "last_seen", "new_by_hour", "signatures")

    def __init__(self) -> None:
        self.signatures: dict[str, Known] = {}
        self.held: dict[str, Held] = {}
        self.held_bytes = 0
        #: Proven calls by hour: the size of the window that the reservoir is drawn from.
        self.calls: dict[int, int] = {}
        self.new_by_hour: tuple[int, int] = (-1, 0)
        #: Draws below it enter the reservoir; None when it must be computed, ``cut_age`` calls after it was.
        self.cut: float | None = None
        self.cut_age = 0
        #: The reservoir was at its bound (requests or bytes) when it last changed.
        self.full = False
        self.last_seen = 0.0
