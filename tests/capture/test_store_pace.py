from __future__ import annotations

import itertools
import random

from capture.config import WorkerConfig
from capture.store.base import ModelVersion, RecordKey, SampleTold, Told
from capture.store_pace import BATCHES_PER_SECOND, MUCH, StorePace, bounds_of, retry_waits

CONFIG = WorkerConfig(store="s", run="r", listeners=(), flush_interval=1.0, shared_flush_interval=10.0)


def test_a_store_of_ones_own_is_written_at_once_or_after_its_interval() -> None:
    pace = StorePace(CONFIG, shared=False, chance=random.random)
    pace.wrote(100.0)
    assert pace.due(100.0, True, 1)
    assert not pace.due(100.9, False, 0)
    assert pace.due(101.0, False, 0)


def test_a_fleets_store_is_written_less_often_and_never_in_step() -> None:
    waits, urgent = set(), set()
    chance = random.Random(1)
    pace = StorePace(CONFIG, shared=True, chance=chance.random)
    for _ in range(50):
        pace.wrote(0.0)
        waits.add(next(tenth for tenth in range(1000) if pace.due(tenth / 10, False, 0)) / 10)
        urgent.add(next(tenth for tenth in range(1000) if pace.due(tenth / 10, True, 1)) / 10)
        # What fills the memory does not wait.
        assert pace.due(0.0, True, MUCH)
    assert 5.0 <= min(waits) < 6.5 < 13.5 < max(waits) <= 15.0
    assert 0.5 <= min(urgent) < 0.7 < 1.3 < max(urgent) <= 1.5


def test_the_bounds_are_those_of_the_settings() -> None:
    bounds = bounds_of(CONFIG.limits, CONFIG.refresh_after)
    assert bounds.signatures_per_version == CONFIG.limits.signatures_per_version
    assert (bounds.store_bytes, bounds.refresh_after) == (CONFIG.limits.store_bytes, CONFIG.refresh_after)


def waits(pace: StorePace, urgent: bool) -> float:
    """Seconds after which this is due, on average."""
    found = []
    for _ in range(200):
        pace.wrote(0.0)
        found.append(next(second for second in range(100_000) if pace.due(second / 5, urgent, 1)) / 5)
    return sum(found) / len(found)


def shared() -> StorePace:
    return StorePace(CONFIG, shared=True, chance=random.Random(1).random)


def test_the_larger_the_fleet_the_more_seldom_each_of_it_writes() -> None:
    pace = shared()
    pace.hear(Told(writers=int(BATCHES_PER_SECOND * 10)))
    assert 9 < waits(pace, False) < 11
    pace.hear(Told(writers=int(BATCHES_PER_SECOND * 40)))
    assert 36 < waits(pace, False) < 44
    assert 3.6 < waits(pace, True) < 4.4
    # A store that does not say so changes nothing.
    pace.hear(Told())
    assert 36 < waits(pace, False) < 44
    pace.hear(Told(writers=3))
    assert 9 < waits(pace, False) < 11


def test_who_brings_what_others_have_brought_takes_its_time() -> None:
    pace = shared()
    key = RecordKey(ModelVersion("tfserving", "m", "1"), "w1-1")
    declined = Told(samples={key: SampleTold(1.0, 1, "", "proven")})
    expected = [2, 4, 8, 10, 10]
    for wait in expected:
        pace.hear(declined)
        assert 0.9 * wait < waits(pace, True) < 1.1 * wait + 0.2
    # Counts are written as ever.
    assert 9 < waits(pace, False) < 11
    pace.hear(Told())
    assert 4.5 < waits(pace, True) < 5.7
    pace.hear(Told(samples=declined.samples, taken=1))
    assert 0.9 < waits(pace, True) < 1.3


def test_attempts_are_further_and_further_apart_and_never_in_step() -> None:
    found = [list(itertools.islice(retry_waits(random.Random(seed).random), 9)) for seed in range(50)]
    for place, most in enumerate((0.5, 1, 2, 4, 8, 16, 30, 30, 30)):
        column = [row[place] for row in found]
        assert most / 2 <= min(column) < 0.6 * most < 0.9 * most < max(column) <= most
