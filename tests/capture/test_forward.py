"""The forward bound: what is counted, and that it holds on made-up production."""

from __future__ import annotations

import pytest

from capture.binomial import clopper_pearson
from capture.coverage import Call
from capture.forward import Bound, bound, hold_out, lost_share
from tests.support.forward_traffic import SCENARIOS, violations

HOUR = 3600.0
T = 1000 * HOUR + 900.0


def counts(calls: list[Call], hours: float, block_hours: int = 24) -> tuple[int, int]:
    held = hold_out(calls, T, T + HOUR * hours, block_hours)
    return held.missed, held.blocks


def test_a_block_is_a_client_and_a_day_however_many_calls_it_has() -> None:
    calls = [Call(1001, "a", 5, missed=False), Call(1024, "a", 1, missed=True), Call(1024, "a", 9**9, missed=False)]
    assert counts(calls, 48) == (1, 1)
    assert counts([*calls, Call(1024, "b", 1, missed=False)], 48) == (1, 2)
    assert counts([*calls, Call(1025, "a", 1, missed=False)], 49) == (1, 2)


def test_calls_of_the_files_own_hour_and_before_say_nothing() -> None:
    assert counts([Call(999, "a", 1, missed=True), Call(1000, "a", 1, missed=True)], 48) == (0, 0)


def test_a_stretch_that_is_not_over_counts_only_against_the_file() -> None:
    assert counts([Call(1001, "a", 1, missed=False)], 24) == (0, 0)
    assert counts([Call(1001, "a", 1, missed=False)], 25) == (0, 1)
    assert counts([Call(1001, "a", 1, missed=True)], 2) == (1, 1)
    assert counts([Call(1001, "a", 1, missed=False)], 2, block_hours=1) == (0, 1)


def test_without_a_block_nothing_is_known() -> None:
    assert hold_out([], T, T + 100 * HOUR).upper == 1.0
    # A file of tomorrow's clock.
    held = hold_out([], T, T - 100 * HOUR)
    assert (held.blocks, held.until_hour) == (0, held.since_hour)


def test_what_began_late_is_not_thinned_by_the_time_before() -> None:
    calls = [Call(1001 + 24 * day, "a", 10, missed=day >= 36) for day in range(40)]
    held = hold_out(calls, T, T + HOUR * (24 * 40 + 1))
    assert (held.missed, held.blocks, held.recent_missed, held.recent_blocks) == (4, 40, 4, 10)
    assert held.upper == clopper_pearson(4, 10).high > clopper_pearson(4, 40).high
    early = [call._replace(missed=call.hour < 1001 + 24 * 4) for call in calls]
    assert hold_out(early, T, T + HOUR * (24 * 40 + 1)).upper == clopper_pearson(4, 40).high


@pytest.mark.parametrize(
    ("counted", "share"),
    [
        ({}, 0.0),
        ({"requests_proven": 90, "requests_unproven": 5, "requests_lost": 5}, 0.05),
        ({"requests_proven": 90, "requests_oversized": 5, "requests_undecodable": 5}, 0.1),
        ({"requests_proven": 100, "signatures_turned_away": 10}, 0.1),
        # Large calls are lost first: one of a hundred by number, half by bytes.
        ({"requests_proven": 99, "requests_lost": 1, "tap_client_bytes": 50, "tap_lost_client_bytes": 50}, 0.5),
        ({"requests_proven": 100, "flows_opened": 10, "flows_undecodable": 1, "flows_blind": 1}, 0.2),
        # Channels that were open before the window are not counted as opened.
        ({"requests_proven": 100, "flows_blind": 1}, 1.0),
        ({"requests_shed": 1}, 1.0),
    ],
)
def test_what_was_not_seen_counts_in_full(counted: dict[str, int], share: float) -> None:
    assert lost_share(counted) == pytest.approx(share)


def test_the_parts_of_the_bound_add_up_to_at_most_one() -> None:
    held = hold_out([Call(1001 + 24 * day, "a", 10, missed=False) for day in range(40)], T, T + HOUR * 961)
    found = bound(held, {"requests_proven": 98, "requests_lost": 2}, excluded_calls=100)
    assert (found.lost, found.excluded) == (0.02, 0.2)
    assert found.total == pytest.approx(clopper_pearson(0, 40).high + 0.02 + 0.2)
    assert Bound(held, 0.6, 0.5).total == 1.0


# --- on made-up production; `python -m tests.support.forward_traffic 1000` for more of it ---

RUNS = 60


@pytest.mark.parametrize("factor", [1.0, 10.0])
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_bound_holds(name: str, factor: float) -> None:
    assert violations(SCENARIOS[name], factor, RUNS) <= 0.05 * RUNS


def test_machines_of_one_client_are_no_independent_trials() -> None:
    """Why a client is a program: with its networks as trials of their own the bound would be wrong."""
    assert violations(SCENARIOS["clustered clients"], 1.0, RUNS, by_network=True) > 0.05 * RUNS
