"""Counters in shared memory, over pairs of relay and worker."""

from __future__ import annotations

from capture.counters import SLOT, Counters


def test_what_nobody_read_is_lost_in_the_end() -> None:
    counters = Counters.create(2)
    pair = counters.of(1)
    for name, value in (("client_bytes", 10), ("tap_client_bytes", 4), ("tap_lost_client_bytes", 1)):
        pair.slots[SLOT[name]] = value
    counters.settle()
    counters.settle()
    assert pair.snapshot()["tap_lost_client_bytes"] == 6
    assert counters.total()["tap_lost_client_bytes"] == 6
