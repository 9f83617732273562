"""Which stored requests may stand for a record, and that no signature is lost between the lists."""

from __future__ import annotations

import random

from capture.export.base import Selection
from capture.store.base import StoredSignature
from tests.capture.export.test_select import DEFS, choose, row
from tests.support.calls import signature_def


def candidates(selection: Selection) -> list[list[tuple[tuple[str, ...] | None, str]]]:
    return [
        [(one.signature.outputs, one.key.owner.version) for one in record.candidates] for record in selection.records
    ]


def test_all_versions_samples_proven_then_own_then_newest() -> None:
    rows = [
        row("a", version="1", at=100.0),
        row("a", version="2", outcome="unproven", at=900.0),
        row("a", version="3", at=300.0),
        row("a", version="4", at=None),
        row("a", version="5", at=200.0),
    ]
    found = choose(*rows, version="5", unproven=True)
    assert candidates(found) == [[(("a",), version) for version in ("5", "3", "1", "2")]]
    assert candidates(choose(*rows, version="2")) == [[(("a",), version) for version in ("3", "5", "1")]]
    assert found.records[0].key == found.records[0].candidates[0].key


def test_a_proven_signature_stands_for_an_unproven_one_that_is_used_more() -> None:
    rows = [row("a", hits=90, outcome="unproven"), row("b", hits=2), row("c", hits=50)]
    found = choose(*rows, defs=DEFS, unproven=True)
    assert candidates(found) == [[(("b",), "1"), (("a",), "1")], [(("c",), "1")]]
    first = found.records[0]
    assert (first.signature.outputs, first.outcome, first.hits) == (("b",), "proven", 92)
    assert first.covers == [rows[0].key.digest]


def test_another_candidate_in_its_place() -> None:
    rows = [row("a", hits=5), row("b", hits=7), row("b", hits=1, version="2", at=1.0)]
    record = choose(*rows, defs=DEFS).records[0]
    other = record.replaced(record.candidates[2])
    assert (other.signature.outputs, other.hits, other.covers) == (("a",), 13, [rows[1].key.digest])
    assert other.executor_key == record.executor_key
    same = record.replaced(record.candidates[1])
    assert (same.key.owner.version, same.covers) == ("2", record.covers)


def test_a_cut_record_leaves_out_all_that_it_stood_for() -> None:
    rows = [row("a", hits=40), row("b", hits=39), row("c", hits=100)]
    found = choose(*rows, defs=DEFS, limit=1)
    assert [(one.signature.outputs, one.hits) for one in found.left_out] == [(("a",), 40), (("b",), 39)]


def test_nothing_vanishes() -> None:
    chance = random.Random(7)
    defs = {"serving_default": signature_def({"x": "x:0"}, {name: f"t{ord(name) % 3}:0" for name in "abcdef"})}
    for _ in range(300):
        rows: dict[object, StoredSignature] = {}
        for _ in range(chance.randrange(12)):
            one = row(
                *chance.sample("abcdefz", chance.randrange(1, 3)),
                version=str(chance.randrange(3)),
                hits=chance.randrange(1, 9),
                outcome=chance.choice(["proven", "unproven"]),
                at=chance.choice([None, 1.0, 2.0]),
            )
            rows[one.key] = one
        found = choose(
            *rows.values(),
            version="1",
            defs=chance.choice([None, defs]),
            unproven=chance.choice([True, False]),
            limit=chance.choice([None, 1, 2]),
        )
        inside = [digest for record in found.records for digest in (record.key.digest, *record.covers)]
        outside = [one.key.digest for one in found.left_out]
        assert sorted(inside + outside) == sorted({one.key.digest for one in rows.values()})
        hits = sum(record.hits for record in found.records) + sum(one.hits for one in found.left_out)
        assert hits == sum(one.hits for one in rows.values())
