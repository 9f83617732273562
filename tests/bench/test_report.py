"""What the benchmark makes of its rounds. The rounds themselves are run by ``make bench``."""

from __future__ import annotations

import pytest

from tests.bench import __main__ as bench
from tests.bench.report import Measured, summarise, table, verdict


def measured(contender: str, number: int, microseconds: float, fault: str = "") -> Measured:
    parts = {"all": 1000 * microseconds / 1e6}
    return Measured("post", contender, number, 1000, 1.0, parts, fault)


def test_ratios_are_taken_within_a_round() -> None:
    # The machine became three times slower after the first round; the ratio did not change.
    rounds = [("nginx", 0, 30.0), ("relay alone", 0, 24.0), ("nginx", 1, 90.0), ("relay alone", 1, 72.0)]
    row = summarise([measured(*one) for one in rounds])["post"]["relay alone"]
    assert round(row["ratio"], 6) == 0.8
    assert row["microseconds"] == {"all": 48.0}
    assert row["requests_per_second"] == 1000


def test_a_round_with_a_fault_counts_nowhere() -> None:
    rounds = [measured("nginx", n, 30.0) for n in range(3)]
    rounds += [measured("relay alone", n, 20.0) for n in range(2)] + [measured("relay alone", 2, 1.0, "3 failed")]
    summary = summarise(rounds)
    row = summary["post"]["relay alone"]
    assert (row["rounds"], row["faults"], row["microseconds"]["all"]) == (2, ["3 failed"], 20.0)
    assert "a round does not count: 3 failed" in table(summary)
    assert verdict(summary) == []


def test_a_round_without_its_baseline_has_no_ratio() -> None:
    rounds = [measured("nginx", 0, 30.0, "1 failed"), measured("relay alone", 0, 20.0)]
    assert "ratio" not in summarise(rounds)["post"]["relay alone"]


def test_the_verdict_names_a_relay_that_costs_more_and_rounds_that_do_not_count() -> None:
    rounds = [measured("nginx", 0, 30.0), measured("relay alone", 0, 33.0), measured("aiohttp", 0, 200.0, "x")]
    assert verdict(summarise(rounds)) == [
        "post: aiohttp: only 0 rounds count",
        "post: the relay alone costs 1.10 x nginx",
    ]


def test_what_tls_costs_is_no_promise() -> None:
    rounds = [measured("nginx", 0, 30.0), measured("relay alone", 0, 60.0)]
    assert verdict(summarise([one._replace(scenario="post over TLS") for one in rounds])) == []


def test_missing_tools_are_named_at_once_with_their_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.shutil, "which", lambda tool, path: None if tool in ("wrk", "h2load") else tool)
    monkeypatch.setattr(bench.sys, "argv", ["bench"])
    assert bench.main() == 2
    assert capsys.readouterr().err == "bench: missing: wrk, h2load; on Debian: apt-get install wrk nghttp2-client\n"
