"""Sending records to a server: how often, how many at once, how fast, for how long; and what came of each."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from replay.client import Outgoing, Sender, Sent
from replay.records import Record

#: Distinct reasons kept for each record; servers may put something new into every one.
MAX_REASONS = 8
OTHER = "(other)"
#: Latencies kept for each record: the last ones.
MAX_LATER = 1000


@dataclass(frozen=True, slots=True)
class Pace:
    """``count`` rounds over all records, with ``loop`` as many as ``duration`` seconds allow; ``concurrency`` requests
    on their way at once, at most ``rate`` a second (0: no bound). None is begun after ``duration`` (0: no bound)."""

    count: int = 1
    concurrency: int = 1
    rate: float = 0.0
    duration: float = 0.0
    loop: bool = False


@dataclass(slots=True)
class Played:
    """What came of one record. ``first`` is the latency of its first call that was answered well, ``later`` those of
    the last others, in seconds; ``failures`` counts reasons."""

    record: Record
    sent: int = 0
    first: float | None = None
    later: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_LATER))
    failures: Counter[str] = field(default_factory=Counter)
    #: Of the failures, those that tell that the server was not there.
    unavailable: int = 0

    @property
    def failed(self) -> int:
        """Requests that failed; one where the record cannot be sent at all."""
        return self.failures.total()

    @property
    def steady(self) -> float | None:
        """The median of the later calls; None without one."""
        return median(self.later) if self.later else None

    def take(self, sent: Sent) -> None:
        """Count one request."""
        self.sent += 1
        if sent.error:
            known = sent.error in self.failures or len(self.failures) < MAX_REASONS
            self.failures[sent.error if known else OTHER] += 1
            self.unavailable += sent.unavailable
        elif self.first is None:
            self.first = sent.seconds
        else:
            self.later.append(sent.seconds)


class Player:
    """Plays records once; ``played`` may be read while it does."""

    def __init__(self, records: Sequence[Record], pace: Pace) -> None:
        self.played = [Played(record) for record in records]
        for one in self.played:
            if one.record.outgoing is None and not one.record.elsewhere:
                one.failures[one.record.fault] += 1
        self.seconds = 0.0
        self._pace = pace
        self._begun = 0

    @property
    def sent(self) -> int:
        """Requests that were answered, or failed, so far."""
        return sum(one.sent for one in self.played)

    @property
    def unavailable(self) -> bool:
        """Whether nothing but "not there" was heard of the server."""
        sent = self.sent
        return sent > 0 and sum(one.unavailable for one in self.played) == sent

    async def play(self, sender: Sender) -> None:
        """Send until the pace says that it is enough."""
        start = time.monotonic()
        order = self._order()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._pace.concurrency):
                    group.create_task(self._work(sender, order, start))
        finally:
            self.seconds = time.monotonic() - start

    def _order(self) -> Iterator[tuple[Played, Outgoing]]:
        """Round by round: the first calls of all come before any second one."""
        sendable = [(one, one.record.outgoing) for one in self.played if one.record.outgoing is not None]
        rounds = itertools.count() if self._pace.loop and sendable else range(self._pace.count)
        for _ in rounds:
            yield from sendable

    async def _work(self, sender: Sender, order: Iterator[tuple[Played, Outgoing]], start: float) -> None:
        for one, request in order:
            if self._pace.rate:
                # Each has its time; one that is late does not wait, and later ones do not hurry more than that.
                due = self._begun / self._pace.rate
                self._begun += 1
                if self._pace.duration and due >= self._pace.duration:
                    return
                await asyncio.sleep(max(0.0, start + due - time.monotonic()))
            if self._pace.duration and time.monotonic() - start >= self._pace.duration:
                return
            one.take(await sender.send(request))
