"""What every observer offers. Sans-IO: bytes go in, events come out, nothing waits and nothing is raised."""

from __future__ import annotations

from typing import Protocol

from capture.wire.events import Event, Side


class Observer(Protocol):
    """Reads both directions of one flow, in the order in which the tap saw them.

    For any bytes, any split and any gap the methods return and hold a bounded amount of memory.
    """

    @property
    def unsynced(self) -> bool:
        """True while bytes were missed and framing has not been found again."""

    def feed(self, side: Side, data: bytes) -> list[Event]:
        """The next bytes that ``side`` sent."""

    def gap(self, side: Side, count: int) -> list[Event]:
        """``count`` bytes that ``side`` sent next were missed by the tap (exact; 0 does nothing)."""

    def eof(self, side: Side) -> list[Event]:
        """``side`` sends no more. Completes a close-delimited response; what it left half sent is ``Aborted``."""

    def close(self) -> list[Event]:
        """The connection is gone: what is open is ``Aborted`` (or ``Lost`` where it might have ended unseen)."""

    def held_bytes(self) -> int:
        """Upper estimate of the memory held between calls, in bytes: buffers, tables, memos and open exchanges."""
