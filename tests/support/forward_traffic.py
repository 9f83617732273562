"""Made-up production for the forward bound: what clients call before and after a file is written, and what is seen of
it. ``python -m tests.support.forward_traffic RUNS`` judges every scenario by that many runs.

The truth that a bound must hold against is what its words say: the share of calls that miss, each client and day
weighing the same, in windows with the same clients, releases and habits; taken from many such windows.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from capture.coverage import Call
from capture.forward import bound, hold_out

DAYS: Final = 14
HOURS: Final = 24 * DAYS
START: Final = 1_000_000
#: Windows that the truth is taken from.
WINDOWS: Final = 20
#: Keys that are called now and then, the first most often.
RARE: Final = 30


@dataclass(frozen=True, slots=True)
class Scenario:
    """``bursts`` of rare keys a day and client, each of up to ``burst_hours``; ``day_only``: by day, less at weekends;
    ``release``: at some time one client begins to send a new key with every tenth call, in half of the runs;
    ``networks`` that send whatever their client sends; ``loss``: rare calls are large, and lost more often;
    ``retries``: a call that misses is sent that often."""

    bursts: float = 0.01
    burst_hours: int = 3
    clients: int = 5
    day_only: bool = False
    release: bool = False
    networks: int = 1
    loss: bool = False
    retries: int = 1


class Burst(NamedTuple):
    """Calls of a key that is not in the file."""

    hour: int
    client: int
    calls: int


class Lost(NamedTuple):
    """What is seen of calls, and what is not."""

    seen: int
    lost: int


class World:
    """One run: its clients, their habits, the file, and windows of traffic after it."""

    def __init__(self, scenario: Scenario, random: Random) -> None:
        self.scenario, self.random = scenario, random
        weights = [1 / (place + 1) for place in range(RARE)]
        self.rates = [scenario.bursts * weight / sum(weights) for weight in weights]
        #: Calls of covered keys an hour, by client.
        self.volume = [round(random.lognormvariate(4, 1)) + 1 for _ in range(scenario.clients)]
        self.released = random.randrange(HOURS) if scenario.release and random.random() < 0.5 else HOURS
        self.file = {key for _, _, key in self._bursts() if random.random() < 0.95}

    def _bursts(self) -> Iterator[tuple[int, int, int]]:
        """(hour, client, key) at which bursts begin, as a Poisson process."""
        random = self.random
        for client in range(self.scenario.clients):
            at = 0.0
            total = sum(self.rates) / 24
            while (at := at + random.expovariate(total)) < HOURS:
                hour = int(at)
                if self._busy(hour) > random.random():
                    yield hour, client, random.choices(range(RARE), self.rates)[0]

    def _busy(self, hour: int) -> float:
        if not self.scenario.day_only:
            return 1.0
        return (1.0 if 8 <= hour % 24 < 20 else 0.1) * (0.4 if hour // 24 % 7 >= 5 else 1.0)

    def missed(self) -> list[Burst]:
        """Calls of a window that miss."""
        found = []
        for begin, client, key in self._bursts():
            if key not in self.file:
                found += [
                    Burst(hour, client, self.scenario.retries * self.random.randint(1, 20 * self.volume[client]))
                    for hour in range(begin, min(HOURS, begin + self.random.randint(1, self.scenario.burst_hours)))
                ]
        for hour in range(self.released, HOURS):
            if sent := sum(self.random.random() < 0.1 for _ in range(min(50, self.volume[0]))):
                found.append(Burst(hour, 0, sent))
        return found

    def covered(self) -> list[Burst]:
        """Calls of a window that do not."""
        return [
            Burst(hour, client, max(1, round(volume * self._busy(hour))))
            for client, volume in enumerate(self.volume)
            for hour in range(0, HOURS, 6)
        ]

    def truth(self) -> float:
        """The share of calls that miss, each client and day weighing the same."""
        total = 0.0
        calm: Counter[tuple[int, int]] = Counter()
        for hour, client, calls in self.covered():
            calm[hour // 24, client] += calls
        for _ in range(WINDOWS):
            missed: Counter[tuple[int, int]] = Counter()
            for hour, client, calls in self.missed():
                missed[hour // 24, client] += calls
            total += sum(calls / (calls + calm[place]) for place, calls in missed.items()) / len(calm)
        return total / WINDOWS

    def bound(self, *, by_network: bool = False, block_hours: int = 24) -> float:
        """What is said after one window. ``by_network``: as if networks of one client were independent."""
        calls: list[Call] = []
        counted: Counter[str] = Counter()
        names = [str(network) if by_network else "" for network in range(self.scenario.networks if by_network else 1)]
        for bursts, missed in ((self.covered(), False), (self.missed(), True)):
            for hour, client, number in bursts:
                seen, lost = self._lose(number, missed)
                counted["requests_proven"] += seen
                counted["requests_lost"] += lost
                if seen:
                    calls += [Call(START + 1 + hour, f"{client}{name}", seen, missed) for name in names]
        held = hold_out(calls, 3600.0 * START, 3600.0 * (START + 1 + HOURS), block_hours)
        return bound(held, counted, 0).total

    def _lose(self, calls: int, missed: bool) -> Lost:
        if not self.scenario.loss:
            return Lost(calls, 0)
        # A whole burst of large calls may go unseen.
        lost = round(calls * self.random.choice((0.3, 0.9, 1.0)) if missed else calls * 0.005)
        return Lost(calls - lost, lost)


SCENARIOS: Final = {
    "bursty": Scenario(),
    "diurnal": Scenario(day_only=True),
    "new client release": Scenario(release=True),
    "clustered clients": Scenario(clients=3, networks=20),
    "size-correlated loss": Scenario(loss=True),
    "retries": Scenario(retries=5, day_only=True),
    "all": Scenario(day_only=True, release=True, loss=True, retries=5),
}
#: How often rare keys are called, as multiples: from hardly ever to every day.
FACTORS: Final = (0.3, 1.0, 3.0, 10.0, 50.0)


def violations(scenario: Scenario, factor: float, runs: int, *, by_network: bool = False, block_hours: int = 24) -> int:
    """In how many of these runs the truth is above the bound."""
    parts = {name: getattr(scenario, name) for name in Scenario.__slots__}
    parts["bursts"] *= factor
    found = 0
    for run in range(runs):
        world = World(Scenario(**parts), Random(f"{run} {factor}"))
        found += world.truth() > world.bound(by_network=by_network, block_hours=block_hours)
    return found


if __name__ == "__main__":
    count = int(sys.argv[1])
    for title, one in SCENARIOS.items():
        print(f"{title:22}", *(f"{violations(one, factor, count) / count:7.2%}" for factor in FACTORS), flush=True)
