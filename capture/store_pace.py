"""When a worker writes, and what it tells a store that many write. Pure: clock and chance are handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from capture.config import Limits, WorkerConfig
from capture.store.base import Bounds, Told

#: Bytes of requests that wait for no interval.
MUCH: Final = 8 << 20
#: Batches in a second that sidecars of a fleet together write at most, but for new requests: a core of a server does
#: several times as many (docs/scale.md).
BATCHES_PER_SECOND: Final = 50.0
#: Seconds between attempts to write, doubled up to the second number.
RETRY_SECONDS: Final = (0.5, 30.0)


def retry_waits(chance: Callable[[], float]) -> Iterator[float]:
    """Seconds to wait before each further attempt: sidecars that lost their store together do not come back together.
    ``chance`` gives numbers in [0, 1)."""
    wait, longest = RETRY_SECONDS
    while True:
        yield wait * (0.5 + chance() / 2)
        wait = min(2 * wait, longest)


class StorePace:
    """Times are monotonic seconds. A store of one worker is written at once when there is a new request, and every
    ``flush_interval`` otherwise. A store of a fleet is written at those intervals with new requests, and every
    ``shared_flush_interval`` otherwise; each interval is drawn anew between half and one and a half of it, so that
    sidecars which start together do not write together. Both grow with the fleet beyond ``BATCHES_PER_SECOND``. While
    others have already stored what is new here, as when a sidecar joins a fleet, new requests wait twice as long each
    time, up to the interval of all else."""

    def __init__(self, config: WorkerConfig, *, shared: bool, chance: Callable[[], float]) -> None:
        """``chance`` gives numbers in [0, 1)."""
        self._config = config
        self._shared = shared
        self._chance = chance
        self._written_at = 0.0
        self._factor = 1.0
        #: How many times their length the intervals are: for the size of the fleet, and for new requests.
        self._crowd = 1.0
        self._patience = 1.0

    def hear(self, told: Told) -> None:
        """What the store said of a batch."""
        if told.writers:
            self._crowd = max(1.0, told.writers / BATCHES_PER_SECOND / self._shared_interval)
        if told.taken:
            self._patience = 1.0
        elif told.samples or told.refused:
            self._patience = min(2 * self._patience, self._shared_interval / self._config.flush_interval)
        else:
            self._patience = max(self._patience / 2, 1.0)

    @property
    def _shared_interval(self) -> float:
        return max(self._config.shared_flush_interval, self._config.flush_interval)

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
        if urgent and payload_bytes >= MUCH:
            return True
        interval = self._patience * self._config.flush_interval if urgent else self._shared_interval
        return waited >= self._factor * self._crowd * interval


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
