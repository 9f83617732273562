"""What the supervisor says of the capture: that it does not run, and what it lost. Pure: counters in, lines out.

The counters reach users through the store as well, but not while the store is what fails.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final, NamedTuple

from capture.counters import LOSSES as NOT_CAPTURED

#: What was not captured, and what hints at it.
LOSSES: Final = (*NOT_CAPTURED, "tap_detached", "store_failures", "relay_log_dropped")
#: Counters that are 1 for each pair in a run without trouble.
STARTS: Final = ("relay_starts", "worker_starts")
#: Seconds between two looks at the losses.
LOSS_INTERVAL: Final = 60.0
#: Seconds that a worker may take to begin to read.
READING_SECONDS: Final = 10.0


class Line(NamedTuple):
    """One log line."""

    level: int
    message: str
    fields: dict[str, int]


class CaptureWatch:
    """To be asked every second or so."""

    def __init__(self, now: float, pairs: int = 1) -> None:
        """``pairs`` of relay and worker are to run."""
        self._pairs = pairs
        self._not_reading_since: float | None = now
        self._warned = False
        self._next_losses = now + LOSS_INTERVAL
        self._said: dict[str, int] = {}

    def look(self, now: float, reading: bool, counters: Mapping[str, int]) -> list[Line]:
        """``reading``: there is a worker, and it has its store open and reads the tap."""
        lines = []
        if reading:
            self._not_reading_since, self._warned = None, False
        elif self._not_reading_since is None:
            self._not_reading_since = now
        elif now - self._not_reading_since >= READING_SECONDS and not self._warned:
            self._warned = True
            lines.append(Line(logging.WARNING, "capture is not running: see the worker's lines above", {}))
        if now >= self._next_losses:
            self._next_losses = now + LOSS_INTERVAL
            if (lost := losses(counters, self._pairs)) != self._said:
                self._said = lost
                lines.append(Line(logging.WARNING, "capture lost", lost))
        return lines


def losses(counters: Mapping[str, int], pairs: int = 1) -> dict[str, int]:
    """The losses that are not zero, and the starts if there were more than one for each pair."""
    found = {name: counters[name] for name in LOSSES if counters[name]}
    return found | {name: counters[name] for name in STARTS if counters[name] > pairs}


def summary(counters: Mapping[str, int], pairs: int = 1) -> Line:
    """The line for the end of a run."""
    seen = {name: counters[name] for name in ("flows_opened", "requests_observed", "requests_proven")}
    lost = losses(counters, pairs)
    return Line(logging.WARNING if lost else logging.INFO, "capture summary", seen | lost)
