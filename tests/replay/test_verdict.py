from __future__ import annotations

from typing import Any

import pytest

from capture.signature import WireSignature, wire_signature
from replay.calls import Ran
from replay.traffic import Evidence, Judged
from replay.verdict import Pass, decide, explanation, figures
from tests.support.stores import signature

A, B = signature(["a"]), signature(["a", "model_version_id"])
FILE = {A.digest: A}


def judged(one: WireSignature = A, *, group: str = "g", same: bool = False) -> Judged:
    return Judged(one, group, b"body", same)


def ran(builds: int | None = 0, *, seconds: float = 0.001, error: str = "") -> Ran:
    return Ran(not error, error, seconds, builds)


def verdict(*cases: tuple[Judged, Ran], **done: Any) -> tuple[str, tuple[str, ...]]:
    found = decide(Evidence([one for one, _ in cases]), Pass([result for _, result in cases], **done), FILE)
    return found.verdict, found.reasons


def test_proved() -> None:
    assert verdict((judged(), ran()), (judged(same=True), ran())) == ("proved", ())


def test_a_build_fails_it_and_names_the_difference() -> None:
    assert verdict((judged(), ran()), (judged(B), ran(1))) == (
        "failed",
        (f"{B}: built 1 graph; nearest record {A.digest[:15]}: fetches also: model_version_id",),
    )


def test_one_line_for_each_signature() -> None:
    kind, reasons = verdict((judged(B), ran(2)), (judged(B), ran(2)), (judged(A), ran(error="no input x")))
    assert kind == "failed"
    assert len(reasons) == 2
    assert "built 2 graphs" in reasons[0]
    assert reasons[1] == f"{A}: did not run: no input x"


def test_a_request_that_did_not_run_fails_it_even_if_nothing_was_built() -> None:
    assert verdict((judged(), ran(error="boom")))[0] == "failed"


def test_a_file_that_does_not_load() -> None:
    assert verdict((judged(), ran()), load_error="corrupted record at 0") == (
        "failed",
        ("the server would not load this model: corrupted record at 0",),
    )
    found = decide(Evidence([judged()]), Pass(load_error="x"), FILE)
    assert found.verdict == "failed"


def test_without_held_out_requests_it_is_a_self_check() -> None:
    assert verdict()[0] == "self-check"
    assert verdict((judged(same=True), ran()), (judged(same=True), ran()))[0] == "self-check"
    # A failure stays a failure.
    assert verdict((judged(same=True), ran(1)))[0] == "failed"


def test_without_counted_builds_it_only_ran() -> None:
    kind, reasons = verdict((judged(), ran(None)))
    assert kind == "ran"
    assert "cannot be counted" in reasons[0]


def test_a_signature_that_nothing_judges_and_no_record_covers_fails_it() -> None:
    found = decide(Evidence([judged()], missing=[(B, 900)]), Pass([ran()]), FILE)
    assert found.verdict == "failed"
    assert found.reasons == (f"{B}: 900 calls in production, in no record, and no request of it is stored",)


def test_held_out_requests_that_cannot_be_read_fail_it() -> None:
    found = decide(Evidence([judged()], unreadable=2), Pass([ran()]), FILE)
    assert found.verdict == "failed"
    assert found.reasons == ("2 held-out requests cannot be read as requests of this model",)


def test_a_file_that_the_server_reads_in_part_fails_it() -> None:
    found = decide(Evidence([judged()]), Pass([ran()]), FILE, unreadable="corrupted record at byte 90")
    assert found.verdict == "failed"
    assert "corrupted record at byte 90" in found.reasons[0]


def test_what_the_model_refuses_is_told_and_is_no_judge() -> None:
    found = decide(Evidence([judged()], refused={B: ("no output a", 3)}), Pass([ran()]), FILE)
    assert found.verdict == "proved"
    assert found.notes == (f"{B}: not judged, this model refuses it (no output a); 3 held-out requests",)
    alone = decide(Evidence(refused={B: ("no output a", 3)}), Pass(), FILE)
    assert alone.verdict == "self-check"
    assert alone.reasons == ("none of the 3 held-out requests is one that this model takes",)


def test_a_sample_judges_only_beside_held_out_requests() -> None:
    sample = Judged(B, "h", b"body", held_out=False)
    assert decide(Evidence([sample]), Pass([ran()]), FILE).verdict == "self-check"
    assert decide(Evidence([judged(), sample]), Pass([ran(), ran()]), FILE).verdict == "proved"
    assert decide(Evidence([judged(), sample]), Pass([ran(), ran(1)]), FILE).verdict == "failed"


def test_a_request_that_never_succeeded_may_fail() -> None:
    hopeless = Judged(B, "h", b"body", held_out=False, proven=False)
    found = decide(Evidence([judged(), hopeless]), Pass([ran(), ran(1, error="boom")]), FILE)
    assert found.verdict == "proved"
    assert found.notes == (f"{B}: not judged, it fails by itself: boom",)


def test_explanations() -> None:
    assert explanation(A, {}) == "the file has no record"
    assert "same signature is in the file" in explanation(A, FILE)
    session = wire_signature("tfserving", "m", "SessionRun", "", ["x:0"], ["y:0"])
    assert explanation(session, FILE).startswith("a warm-up file cannot hold SessionRun")
    assert explanation(B, FILE) == f"nearest record {A.digest[:15]}: fetches also: model_version_id"


def test_figures_tell_first_calls_from_later_ones() -> None:
    cases = [judged(group="g"), judged(group="h"), judged(group="g"), judged(group="g")]
    results = [ran(1, seconds=0.5), ran(1, seconds=0.7), ran(0, seconds=0.002), ran(0, seconds=0.004)]
    assert figures(cases, Pass(results, repeats={"h": [0.003]})) == {
        "graph_builds": 2,
        "first_ms_max": 700.0,
        "steady_ms_p50": 3.0,
    }


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([], {"graph_builds": 0, "first_ms_max": None, "steady_ms_p50": None}),
        ([ran(None)], {"graph_builds": None, "first_ms_max": 1.0, "steady_ms_p50": None}),
    ],
)
def test_figures_that_are_not_known(results: list[Ran], expected: dict[str, Any]) -> None:
    assert figures([judged() for _ in results], Pass(results)) == expected
