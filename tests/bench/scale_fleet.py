"""A fleet of sidecars on one store, by a simulated clock: the real admission, pace and store client over a real server.

What is simulated is the traffic and the time between events; every batch is a real one, and is really written. A tick
is a second of one sidecar: its calls, then what its worker would do at that time. All sidecars take turns in one
thread, so what the server is asked is exact, and how long it takes to answer moves no clock.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from bisect import bisect
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from capture.admission_told import learn
from capture.config import Limits, WorkerConfig
from capture.counters import TABLE
from capture.signature import WireSignature, wire_signature
from capture.store.base import Batch, ModelVersion, RecordKey, StoreError, open_store
from capture.store.redis_store import RedisStore
from capture.store_pace import StorePace, bounds_of, retry_waits
from tests.support.fleet import Sidecar
from tests.support.stores import NOW

#: Names of inputs and outputs as long as real ones: a signature is some 600 bytes of text.
INPUTS: Final = tuple(f"user_feature_{number}_embedding" for number in range(16))
OUTPUTS: Final = tuple(f"score_head_{number}" for number in range(12))
#: Shapes of one signature: rows in a request.
ROWS: Final = (1, 8, 16, 32)
#: Programs that call, over the fleet. A sidecar sees a few of them.
CLIENTS: Final = 40
#: The hit rate of the signature of rank r is proportional to r ** -ZIPF.
ZIPF: Final = 1.1
#: What requests are cut from. Nothing here compresses.
NOISE: Final = random.Random(0).randbytes(1 << 20)
COUNTERS: Final = tuple(row.name for row in TABLE if row.kind == "count")
SECONDS_OF_BURST: Final = 5
#: Draws below it are those of a reservoir over some million calls.
A_WEEKS_DRAW: Final = 1e-4


@cache
def signature_of(model: str, number: int) -> WireSignature:
    """The signature of this number: a set of inputs and of outputs that no other number has."""
    chosen = [name for place, name in enumerate(OUTPUTS) if number >> place & 1]
    inputs = INPUTS[: 4 + (number >> len(OUTPUTS)) % 12]
    return wire_signature("tfserving", model, "Predict", "", inputs, chosen)


@cache
def body_bytes(number: int) -> int:
    """Bytes of the requests of a signature: log-normal, most between 2 and 60 KB, 10 KB in the middle."""
    return min(len(NOISE), int(10_000 * math.exp(random.Random(number).gauss(0, 0.8))))


@dataclass(frozen=True, slots=True)
class Traffic:
    """What passes one sidecar. ``calls``: a second on average, a burst of ten times as many now and then included.
    ``signatures``: that each one uses; nine in ten are those of all, the others are shared by few. ``models``: of which
    each sidecar serves one. ``body``: bytes of each request instead of the usual mix."""

    calls: float = 10.0
    signatures: int = 200
    models: int = 1
    body: int = 0


@dataclass(slots=True)
class Counted:
    """What all sidecars did. ``flushes`` by whole simulated second; ``rows``: signatures in all of them."""

    calls: int = 0
    rows: int = 0
    flushes: dict[int, int] = field(default_factory=dict)
    failures: int = 0


class Simulated(Sidecar):
    """One sidecar: its worker's life between the tap and the store, tick by tick."""

    def __init__(self, number: int, url: str, traffic: Traffic, config: WorkerConfig, counted: Counted) -> None:
        limits = bounds_of(config.limits, config.refresh_after)
        super().__init__(f"{number:016x}-1", open_store(url, create=True), limits, number)
        self.number = number
        self.traffic = traffic
        self.version = "1"
        self._config = config
        self._url = url
        self._counted = counted
        self._life = 1
        chance = self.chance = random.Random(f"sidecar {number}")
        self._model = f"ranking-{number % traffic.models}"
        own = max(0, traffic.signatures // 10)
        # Nine in ten are common to all; the others are those of a tenth of the fleet.
        self.signatures = list(range(traffic.signatures - own))
        self.signatures += [traffic.signatures + number % 10 * own + place for place in range(own)]
        self._fresh = itertools.count(100_000 + number * 1000)
        self._weigh()
        self._clients = [chance.randrange(CLIENTS) for _ in range(5)]
        self._begin()

    def _begin(self) -> None:
        """The worker starts."""
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._pace = StorePace(self._config, shared=True, chance=self.chance.random)
        self._writing: Batch | None = None
        self._waits: Iterator[float] = iter(())
        self._again_at = 0.0
        self._dirty = True
        self._burst_until = 0.0
        self._first = True

    def _weigh(self) -> None:
        weights = [1 / (rank + 1) ** ZIPF for rank in range(len(self.signatures))]
        self._weights = list(itertools.accumulate(weights))

    def restart(self) -> None:
        """The worker is killed, and a new one starts: it knows nothing."""
        self.store.close()
        self._life += 1
        fresh = Simulated(self.number, self._url, self.traffic, self._config, self._counted)
        self.store, self.admission, self.chance = fresh.store, fresh.admission, fresh.chance
        self.name = f"{self.number:016x}-{self._life}"
        self.batch = Batch(self.name)
        self._begin()

    def new_signature(self) -> None:
        """From now on a signature passes here that nobody has seen."""
        self.signatures.append(next(self._fresh))
        self._weigh()

    def tick(self, now: float, *, calls: bool = True) -> None:
        """A second passes."""
        self.now = now
        if self._first:
            self._first = False
            self._flush(now)  # as a worker does when it starts
        if calls:
            self._call(now)
        if self._writing is not None and now >= self._again_at:
            self._write(now)
        payload = self.batch.payload_bytes if self.urgent else 0
        if self._dirty and self._writing is None and self._pace.due(now, self.urgent, payload):
            self._flush(now)

    def know_all(self, now: float) -> None:
        """Each signature passes six times, as if this sidecar had run for long; and all is written. What is drawn has
        draws as the smallest of a week's calls have, or the reservoir would be filled all the time that is measured."""
        self.now, self._first = now, False
        for _ in range(6):
            for number in self.signatures:
                self._pass(number, draw=self.chance.random() * A_WEEKS_DRAW)
            self._flush(now)

    def know_as(self, other: Simulated) -> None:
        """Know what another one knows that has written all."""
        self._first = False
        self.admission = deepcopy(other.admission)
        for mine, theirs in zip(self._remembered(), other._remembered(), strict=True):
            mine.update(theirs)

    def _remembered(self) -> tuple[dict[RecordKey, str], set[RecordKey], set[ModelVersion]]:
        assert isinstance(self.store, RedisStore)
        writer = self.store._writer
        return writer._tokens, writer._named, writer._listed

    def _call(self, now: float) -> None:
        rate = self.traffic.calls
        if now >= self._burst_until and self.chance.random() < 0.002:
            self._burst_until = now + SECONDS_OF_BURST
        # Bursts are a tenth of all calls.
        rate *= 10 if now < self._burst_until else 0.9
        many = int(rate) + (self.chance.random() < rate % 1)
        for _ in range(many):
            place = bisect(self._weights, self.chance.random() * self._weights[-1])
            self._pass(self.signatures[min(place, len(self.signatures) - 1)])
        self._counted.calls += many
        for name in ("requests_observed", "requests_proven", "tap_client_bytes", "client_bytes"):
            self._counters[name] += many * (1 if name.startswith("requests") else 10_000)
        self._dirty = self._dirty or many > 0

    def _pass(self, number: int, draw: float | None = None) -> None:
        """A call with the signature of this number."""
        rows = ROWS[min(int(self.chance.expovariate(0.7)), len(ROWS) - 1)]
        self.call(
            signature_of(self._model, number),
            version=self.version,
            shapes=f"x:float[{rows},16]",
            body=NOISE[: self.traffic.body or body_bytes(number)],
            sender=f"program-{self.chance.choice(self._clients)}/1.0 10.{self.number % 250}.0.0/24",
            draw=draw,
        )

    def _flush(self, now: float) -> None:
        """What :meth:`capture.worker.Worker._flush` and the writer's thread do."""
        self._pace.wrote(now)
        self._dirty = False
        if int(now) % 300 == 0:
            self.admission.expire(now)
        batch, self.batch, self.urgent = self.batch, Batch(self.name), False
        batch.updated_at, batch.bounds = now, self.bounds
        self._writing, self._waits = batch, retry_waits(self.chance.random)
        self._write(now)

    def _write(self, now: float) -> None:
        assert self._writing is not None
        self._writing.counters = dict(self._counters)
        try:
            told = self.store.apply(self._writing)
        except StoreError:
            self._counted.failures += 1
            self._counters["store_failures"] += 1
            self._again_at = now + next(self._waits)
            return
        assert told is not None
        self._counted.rows += len(self._writing.seen)
        self.told, self._writing = told, None
        self._counters["store_writes"] += 1
        self._counted.flushes[int(now)] = self._counted.flushes.get(int(now), 0) + 1
        learn(self.admission, told, now)
        self._pace.hear(told)


class Fleet:
    """``sidecars`` on the store at ``url``, beginning within ``spread`` seconds."""

    def __init__(
        self,
        url: str,
        sidecars: int,
        traffic: Traffic = Traffic(),
        *,
        config: WorkerConfig | None = None,
        spread: float = 0.0,
    ) -> None:
        self.config = config or WorkerConfig(store=url, run="", listeners=(), limits=Limits())
        self.now = NOW
        self.counted = Counted()
        self.sidecars = [Simulated(number, url, traffic, self.config, self.counted) for number in range(sidecars)]
        chance = random.Random("fleet")
        self._due = [(self.now + chance.random() * max(spread, 1.0), one.number) for one in self.sidecars]
        heapq.heapify(self._due)

    def run(self, seconds: float, *, each_second: Callable[[int], None] | None = None, calls: bool = True) -> None:
        """Let time pass. ``each_second`` is called with the number of each second that has passed."""
        end, last = self.now + seconds, int(self.now)
        while self._due[0][0] < end:
            at, number = self._due[0]
            if int(at) > last and each_second is not None:
                for second in range(last, int(at)):
                    each_second(second)
                last = int(at)
            self.now = at
            self.sidecars[number].tick(at, calls=calls)
            heapq.heapreplace(self._due, (at + 1.0, number))
        self.now = end
        if each_second is not None:
            each_second(last)

    def settle(self) -> None:
        """All sidecars have run for long: everyone knows all signatures, and is told how large the fleet is. One of
        those that use the same ones learns them, and the others know what it knows."""
        learned: dict[tuple[str, tuple[int, ...]], Simulated] = {}
        for one in self.sidecars:
            first = learned.setdefault((one._model, tuple(one.signatures)), one)
            if first is one:
                one.know_all(self.now)
            else:
                one.know_as(first)
        for one in self.sidecars:
            one._flush(self.now)
        # The last one to write knows how many there are.
        for one in self.sidecars:
            one._pace.hear(self.sidecars[-1].told)
        self.forget()

    def forget(self) -> None:
        """Count from nothing."""
        self.counted.flushes.clear()
        self.counted.calls = self.counted.rows = self.counted.failures = 0

    def skip(self, seconds: float) -> None:
        """Time passes in which nothing is asked: the clocks jump."""
        self.now += seconds
        self._due = [(at + seconds, number) for at, number in self._due]
        heapq.heapify(self._due)

    def close(self) -> None:
        for one in self.sidecars:
            one.store.close()
