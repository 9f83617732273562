from __future__ import annotations

import random

from capture.config import WorkerConfig
from capture.store_pace import MUCH, StorePace, bounds_of

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
