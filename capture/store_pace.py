"""When a worker writes, and what it tells a store that many write. Pure: clock and chance are handed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from capture.config import Limits, WorkerConfig
from capture.store.base import Bounds

#: Bytes of requests that wait for no interval.
MUCH: Final = 8 << 20


class StorePace:
    """Times are monotonic seconds. A store of one worker is written at once when there is a new request, and every
    ``flush_interval`` otherwise. A store of a fleet is written at those intervals with new requests, and every
    ``shared_flush_interval`` otherwise; each interval is drawn anew between half and one and a half of it, so that
    sidecars which start together do not write together."""

    def __init__(self, config: WorkerConfig, *, shared: bool, chance: Callable[[], float]) -> None:
        """``chance`` gives numbers in [0, 1)."""
        self._config = config
        self._shared = shared
        self._chance = chance
        self._written_at = 0.0
        self._factor = 1.0

    def wrote(self, now: float) -> None:
        """A batch was handed over."""
        self._written_at = now
        if self._shared:
            self._factor = 0.5 + self._chance()

    def due(self, now: float, urgent: bool, payload_bytes: int) -> bool:
        """Whether to write. ``urgent``: there is a new request."""
        waited = now - self._written_at
        if not self._shared:
            return urgent or waited >= self._config.flush_interval
        if urgent and (payload_bytes >= MUCH or waited >= self._factor * self._config.flush_interval):
            return True
        return waited >= self._factor * max(self._config.shared_flush_interval, self._config.flush_interval)


def bounds_of(limits: Limits, refresh_after: float) -> Bounds:
    """What a store that many write holds at most."""
    return Bounds(
        limits.signatures_per_version,
        limits.new_signatures_per_hour,
        limits.store_bytes,
        limits.held_out_requests,
        limits.held_out_bytes,
        limits.held_out_seconds,
        refresh_after,
    )
