from __future__ import annotations

from dataclasses import replace
from typing import Any

from capture.export.base import Selection
from capture.export.manifest import covered_calls
from capture.export.select import select
from capture.export.table import FORMATS
from capture.signature import wire_signature
from capture.store.base import StoredSignature
from tests.support.calls import signature_def
from tests.support.stores import key_of, signature


def row(
    *outputs: str,
    version: str = "1",
    hits: int = 1,
    outcome: str = "proven",
    at: float | None = 100.0,
    inputs: tuple[str, ...] = ("x",),
    family: str = "tfserving",
) -> StoredSignature:
    one = signature(outputs, inputs=inputs, family=family)
    return StoredSignature(
        key=key_of(one, version),
        signature=one,
        proven=hits,
        unproven=0,
        first_seen=0.0,
        last_seen=0.0,
        hours=1,
        shapes={},
        senders={},
        evicted=at is None,
        sample_at=at,
        sample_size=10,
        sample_shapes="",
        sample_outcome="" if at is None else outcome,
    )


def lines(selection: Selection) -> list[tuple[tuple[str, ...] | None, str, int]]:
    return [(record.signature.outputs, record.key.owner.version, record.hits) for record in selection.records]


def choose(*rows: StoredSignature, **options: Any) -> Selection:
    return select(rows, families=options.pop("families", ("tfserving",)), **options)


def test_the_union_over_versions_most_used_first() -> None:
    found = choose(
        row("a", version="1", hits=5), row("a", version="2", hits=6), row("b", hits=10), row("c", version="2")
    )
    assert [(outputs, hits) for outputs, _, hits in lines(found)] == [(("a",), 11), (("b",), 10), (("c",), 1)]


def test_equal_hits_have_one_order() -> None:
    rows = [row(name) for name in "abcdef"]
    assert lines(choose(*rows)) == lines(choose(*rows[::-1]))


def test_the_versions_own_sample_wins() -> None:
    rows = [row("a", version="1", at=300.0), row("a", version="2", at=200.0), row("a", version="3", at=400.0)]
    assert lines(choose(*rows, version="2")) == [(("a",), "2", 3)]
    # Without one of its own, the newest.
    assert lines(choose(*rows, version="9")) == [(("a",), "3", 3)]
    assert lines(choose(*rows)) == [(("a",), "3", 3)]


def test_a_proven_sample_of_another_version_beats_an_unproven_own_one() -> None:
    rows = [row("a", version="1"), row("a", version="2", outcome="unproven")]
    assert lines(choose(*rows, version="2")) == [(("a",), "1", 2)]
    assert lines(choose(row("a", at=None, version="2"), row("a"), version="2")) == [(("a",), "1", 2)]


def test_only_one_version() -> None:
    rows = [row("a", version="1"), row("b", version="2")]
    assert lines(choose(*rows, version="2", only_version=True)) == [(("b",), "2", 1)]


def test_other_families_are_not_there_at_all() -> None:
    found = choose(row("a"), row("b", family="eas"))
    assert lines(found) == [(("a",), "1", 1)]
    assert found.left_out == []


def test_what_is_left_out_and_why() -> None:
    found = choose(row("a", outcome="unproven", hits=3), row("b", at=None, hits=9), row("c"))
    assert [(one.signature.outputs, one.hits, one.reason) for one in found.left_out] == [
        (("b",), 9, "no request of it is stored"),
        (("a",), 3, "never seen to succeed (unproven)"),
    ]
    assert len(choose(row("a", outcome="unproven"), unproven=True).records) == 1


def test_the_limit_cuts_the_least_used() -> None:
    found = choose(*(row(f"o{hits}", hits=hits) for hits in range(1, 6)), limit=2)
    assert [hits for _, _, hits in lines(found)] == [5, 4]
    assert [(one.hits, one.reason) for one in found.left_out] == [(hits, "cut by the limit of 2") for hits in (3, 2, 1)]


DEFS = {"serving_default": signature_def({"x": "x:0"}, {"a": "y:0", "b": "y:0", "c": "z:0"})}


def test_one_record_for_each_executor_key() -> None:
    rows = [row("a", hits=5), row("b", hits=7), row("a", "c", hits=2), row("b", "c", hits=1)]
    found = choose(*rows, defs=DEFS)
    assert [record.signature.outputs for record in found.records] == [("b",), ("a", "c")]
    assert found.records[0].covers == [rows[0].key.digest]
    assert str(found.records[0].executor_key) == "feed (x:0) fetch (y:0)"
    assert covered_calls(found, rows, FORMATS["tfrecord"]) == (15, 15, 15)


def test_the_most_used_executor_comes_first() -> None:
    rows = [row("a", hits=40), row("b", hits=39), row("c", hits=50)]
    found = choose(*rows, defs=DEFS, limit=1)
    assert [record.signature.outputs for record in found.records] == [("a",)]
    assert covered_calls(found, rows, FORMATS["tfrecord"]) == (79, 79, 129)


def test_what_does_not_fit_is_left_out_with_the_servers_reason() -> None:
    found = choose(row("w"), row(inputs=("x", "u"), hits=2), row("a"), defs=DEFS)
    assert [one.reason for one in found.left_out] == ["does not fit: no input u", "does not fit: no output w"]
    assert len(found.records) == 1


def test_what_the_format_cannot_hold_is_left_out_with_the_reason() -> None:
    found = choose(
        row("a", hits=2), row("b", hits=3), refuses=lambda one: "cannot be held" if one.outputs == ("b",) else ""
    )
    assert lines(found) == [(("a",), "1", 2)]
    assert [(one.signature.outputs, one.hits, one.reason) for one in found.left_out] == [(("b",), 3, "cannot be held")]
    session = wire_signature("tfserving", "m", "SessionRun", "", ["x:0"], ["y:0"])
    assert "UNIMPLEMENTED" in FORMATS["tfrecord"].refuses(session)
    for method in ("Predict", "Classify", "Regress", "MultiInference"):
        assert FORMATS["tfrecord"].refuses(wire_signature("tfserving", "m", method, "", ["x"], ["y"])) == ""
    assert FORMATS["jsonl"].refuses(session) == ""


def classed(one: StoredSignature, level: str) -> StoredSignature:
    return replace(one, key=one.key._replace(digest=f"{one.key.digest}.{level}"))


def test_what_a_level_tells_apart_is_never_merged() -> None:
    defs = {"serving_default": signature_def({"x": "x:0"}, {"a": "y:0", "b": "y:0"})}
    rows = [
        classed(row("a", hits=5), "11"), classed(row("a", hits=3), "22"), classed(row("b", hits=4), "11"), row("a"),
    ]  # fmt: skip
    assert len(choose(*rows).records) == 4
    found = choose(*rows, defs=defs)
    # Of one class and one executor: both signatures are one record.
    assert [(record.key.digest.partition(".")[2], record.hits) for record in found.records] == [
        ("11", 9), ("22", 3), ("", 1),
    ]  # fmt: skip
    calls = covered_calls(found, rows, FORMATS["tfrecord"])
    assert (calls.covered, calls.seen) == (13, 13)
