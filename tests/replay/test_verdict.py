from __future__ import annotations

from typing import Any

from capture.coverage import explanation
from capture.signature import SignatureDef, TensorInfo, WireSignature, executor_key, wire_signature
from replay.calls import Ran
from replay.figures import Pass
from replay.traffic import Evidence, Judged
from replay.verdict import decide, decide_static
from tests.support.stores import signature

A, B = signature(["a"]), signature(["a", "model_version_id"])
FILE = {A.digest: A}


def judged(one: WireSignature = A, *, group: str = "g", same: bool = False) -> Judged:
    return Judged(one, group, b"body", same)


def ran(builds: int | None = 0, *, seconds: float = 0.001, error: str = "", compilations: int = 0) -> Ran:
    return Ran(not error, error, seconds, builds, compilations)


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


def test_a_compilation_fails_it_where_a_level_tells_classes_apart() -> None:
    classed = Judged(A, "g class 0123456789abcdef", b"body", level="0123456789abcdef")
    assert classed.key == "g"
    assert verdict((classed, ran(compilations=2))) == (
        "failed",
        (f"{A}: XLA compiled 2 times; no record is of its class 012345",),
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
    assert explanation(A, ()) == "the file has no record"
    assert "same signature is in the file" in explanation(A, FILE.values())
    session = wire_signature("tfserving", "m", "SessionRun", "", ["x:0"], ["y:0"])
    assert explanation(session, FILE.values()).startswith("a warm-up file cannot hold SessionRun")
    assert explanation(B, FILE.values()) == f"nearest record {A.digest[:15]}: fetches also: model_version_id"


def test_another_session_of_a_group_that_builds_fails_it() -> None:
    kind, reasons = verdict((judged(), ran()), others=[0, 3])
    assert kind == "failed"
    assert reasons == (
        "session 3 of 3 built 3 graphs: the warm-up reached the first one only,"
        " and each session has executors of its own",
    )


def test_a_slow_first_call_without_a_build_is_told_and_fails_nothing() -> None:
    slow = ran(0, seconds=0.2)
    found = decide(Evidence([judged()]), Pass([slow], repeats={"g": [0.01, 0.012]}), FILE)
    assert found.verdict == "proved"
    (note,) = found.notes
    assert note.startswith(f"{A}: first call 200.0 ms, steady 11.0 ms at 0 builds; not a graph: ")


def test_what_xla_compiled_is_told_with_its_count() -> None:
    compiled = Ran(True, "", 0.2, 0, 2)
    found = decide(Evidence([judged()]), Pass([compiled], repeats={"g": [0.01]}), FILE)
    assert found.verdict == "proved"
    assert found.notes == (
        f"{A}: first call 200.0 ms, steady 10.0 ms at 0 builds;"
        " XLA compiled 2 times: for shapes or constants that no record has",
    )
    quick = decide(Evidence([judged()]), Pass([Ran(True, "", 0.01, 0, 1)], repeats={"g": [0.01]}), FILE)
    assert quick.notes == (f"{A}: XLA compiled 1 times: for shapes or constants that no record has",)


# --- by names alone ---------------------------------------------------------------------------------------------------

X, Y, Z = TensorInfo("x:0"), TensorInfo("a:0"), TensorInfo("v:0")
DEFS = {"serving_default": SignatureDef({"x": X}, {"a": Y, "model_version_id": Z})}


def static(*cases: Judged, file: dict[str, WireSignature] = FILE, **values: Any) -> tuple[str, tuple[str, ...]]:
    found = decide_static(Evidence(list(cases)), file, DEFS, **values)
    return found.verdict, found.reasons


def of(one: WireSignature, **values: Any) -> Judged:
    return judged(one, group=str(executor_key(one, DEFS)), **values)


def test_names_that_fit() -> None:
    assert static(of(A)) == ("fits", ())


def test_names_do_not_judge_classes() -> None:
    classed = Judged(A, f"{executor_key(A, DEFS)} class 0123456789abcdef", b"body", level="0123456789abcdef")
    found = decide_static(Evidence([classed]), FILE, DEFS)
    assert (found.verdict, len(found.notes)) == ("fits", 1)


def test_names_that_no_record_has() -> None:
    assert static(of(A), of(B)) == (
        "failed",
        (f"{B}: would build a graph; nearest record {A.digest[:15]}: fetches also: model_version_id",),
    )


def test_names_do_not_judge_what_never_succeeded() -> None:
    hopeless = Judged(B, str(executor_key(B, DEFS)), b"body", held_out=False, proven=False)
    found = decide_static(Evidence([of(A), hopeless]), FILE, DEFS)
    assert found.verdict == "fits"
    (note,) = found.notes
    assert note.startswith(f"{B}: not judged, production never saw it succeed: that must be run; nearest record")


def test_a_record_that_the_model_refuses() -> None:
    gone = signature(["gone"])
    assert static(of(A), file={A.digest: A, gone.digest: gone}) == (
        "failed",
        (f"record {gone.digest[:15]} {gone}: this model refuses it: no output gone",),
    )


def test_names_claim_no_more_than_runs_do() -> None:
    assert static()[0] == "self-check"
    assert static(of(A, same=True))[0] == "self-check"
    assert static(of(A), unreadable="corrupted record at byte 90")[0] == "failed"
