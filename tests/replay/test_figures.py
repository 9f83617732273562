from __future__ import annotations

from typing import Any

import pytest

from replay.calls import Counts, Ran
from replay.figures import Figures, Herd, Pass, executors, figures, group_figures
from replay.traffic import Judged
from tests.support.stores import signature


def judged(group: str = "g") -> Judged:
    return Judged(signature([group]), group, b"body")


def ran(builds: int | None = 0, compilations: int | None = 0, *, seconds: float = 0.001) -> Ran:
    return Ran(True, "", seconds, builds, compilations)


CASES = [judged("g"), judged("h"), judged("g"), judged("g")]
RESULTS = [ran(1, 2, seconds=0.5), ran(1, seconds=0.7), ran(seconds=0.002), ran(0, 1, seconds=0.004)]


def test_figures_tell_first_calls_from_later_ones() -> None:
    assert figures(CASES, Pass(RESULTS, repeats={"h": [0.003]})) == {
        "graph_builds": 2,
        "xla_compilations": 3,
        "first_ms_max": 700.0,
        "steady_ms_p50": 3.0,
    }


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([], {"graph_builds": 0, "xla_compilations": 0, "first_ms_max": None, "steady_ms_p50": None}),
        ([ran(None)], {"graph_builds": None, "xla_compilations": 0, "first_ms_max": 1.0, "steady_ms_p50": None}),
        ([ran(0, None)], {"graph_builds": 0, "xla_compilations": None, "first_ms_max": 1.0, "steady_ms_p50": None}),
    ],
)
def test_figures_that_are_not_known(results: list[Ran], expected: dict[str, Any]) -> None:
    assert figures([judged() for _ in results], Pass(results)) == expected


def test_each_executor_has_its_own() -> None:
    assert group_figures(CASES, Pass(RESULTS, repeats={"h": [0.001, 0.003]})) == {
        "g": Figures(1, 3, 0.5, 0.003),
        "h": Figures(1, 0, 0.7, 0.002),
    }
    assert group_figures(CASES, Pass(load_error="x")) == {}


def test_the_herd_stands_beside_them() -> None:
    cold = Pass(RESULTS)
    first, second = executors(CASES, cold, {"g": Herd(8, 4, 0, 1.5)}, Pass(load_error="x"))
    assert first["signature"] == CASES[0].signature.digest
    assert (first["executor_key"], first["judged_by"], first["warm"]) == ("g", 3, None)
    assert first["cold"] == {"graph_builds": 1, "xla_compilations": 3, "first_ms": 500.0, "steady_ms": 3.0}
    assert first["herd"] == {"callers": 8, "graph_builds": 4, "xla_compilations": 0, "slowest_ms": 1500.0}
    assert second["herd"] is None
    assert second["cold"]["steady_ms"] is None


@pytest.mark.parametrize(
    ("found", "slow"),
    [
        (Figures(0, 0, 0.2, 0.01), True),
        (Figures(0, 0, 0.04, 0.01), False),
        (Figures(1, 0, 0.2, 0.01), False),
        (Figures(None, None, 0.2, 0.01), False),
        (Figures(0, 0, 0.2, None), False),
        # A hundred times the steady latency, and nothing that a user feels.
        (Figures(0, 0, 0.004, 0.00004), False),
    ],
)
def test_slow_is_what_a_user_feels_and_no_build_explains(found: Figures, slow: bool) -> None:
    assert found.slow == slow


def test_counts_since() -> None:
    assert Counts(5, 3).since(Counts(2, 3)) == Counts(3, 0)
    assert Counts(None, 3).since(Counts(2, None)) == Counts(None, None)
