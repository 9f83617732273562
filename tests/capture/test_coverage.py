"""What is covered, missing, excluded and useless, and how it is explained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from capture.coverage import Call, Coverage, calls_of, coverage
from capture.signature import ExecutorKey, SignatureDef, TensorInfo, WireSignature
from capture.store.base import RecordKey, StoredBlock, StoredSignature
from tests.support.stores import key_of, signature

A, ALSO, ALL = signature(["a"]), signature(["a", "model_version_id"]), signature()
#: Its outputs are two, so "all" is the same executor as ALSO.
DEFS = {
    "serving_default": SignatureDef(
        {"x": TensorInfo("x:0")}, {"a": TensorInfo("a:0"), "model_version_id": TensorInfo("v:0")}
    )
}


def row(
    one: WireSignature, hits: int = 1, *, version: str = "1", at: float = 100.0, sender: str = "c 10.0.0.0/24"
) -> StoredSignature:
    return StoredSignature(
        key_of(one, version), one, hits, 0, at, at, 1, {}, {sender: hits}, False, at, 1, "", "proven"
    )  # fmt: skip


def missing(found: Coverage) -> list[tuple[str, int, str]]:
    return [(one.signatures[0].digest, one.hits, one.explained) for one in found.missing]


def test_by_wire_signature_where_the_model_is_not_known() -> None:
    found = coverage([row(A, 6), row(ALSO, 3), row(ALL, 1)], [A, ALL], None)
    assert (found.calls_covered, found.calls, found.keys_covered, found.share) == (7, 10, 2, 0.7)
    assert missing(found) == [(ALSO.digest, 3, f"nearest record {A.digest[:15]}: fetches also: model_version_id")]
    assert found.missing[0].key == ALSO.digest


def test_by_executor_key_where_it_is() -> None:
    rows = [row(A, 6), row(ALSO, 3), row(ALL, 1)]
    assert coverage(rows, [A, ALL], DEFS).missing == []
    found = coverage(rows, [A], DEFS)
    assert (found.calls_covered, found.keys_covered, len(found.missing)) == (6, 1, 1)
    (one,) = found.missing
    assert one.key == ExecutorKey(("x:0",), ("a:0", "v:0"))
    assert (one.hits, one.signatures) == (4, [ALSO, ALL])


def test_a_missing_key_adds_up_over_versions() -> None:
    rows = [row(ALL, 5, at=200.0), row(ALL, 2, version="2", at=50.0, sender="d 10.1.0.0/24")]
    (one,) = coverage(rows, [A], None).missing
    assert (one.hits, one.first_seen, one.senders) == (7, 50.0, {"c 10.0.0.0/24": 5, "d 10.1.0.0/24": 2})
    assert one.signatures == [ALL]


def test_what_the_model_refuses_is_excluded_and_a_record_of_it_useless() -> None:
    other = signature(["gone"])
    found = coverage([row(A, 6), row(other, 3), row(other, 1, version="2")], [A, other], DEFS)
    assert (found.calls, found.share, found.missing) == (6, 1.0, [])
    assert [(one.signature, one.hits, one.reason) for one in found.excluded] == [(other, 4, "no output gone")]
    assert [(one.signature, one.reason) for one in found.useless] == [(other, "no output gone")]


def test_a_record_that_is_useless_explains_nothing() -> None:
    assert missing(coverage([row(A, 6)], [signature(["gone"])], DEFS)) == [(A.digest, 6, "the file has no record")]


def test_what_no_file_can_hold_says_so() -> None:
    session = replace(A, method="SessionRun")
    assert missing(coverage([row(session)], [A], None))[0][2].startswith("a warm-up file cannot hold SessionRun")


def test_nothing_called_is_nothing_missed() -> None:
    found = coverage([], [A], None)
    assert (found.share, found.reaches(1.0)) == (1.0, True)


@pytest.mark.parametrize(("least", "reached"), [(0.0, True), (0.99, True), (0.9999999, False), (1.0, False)])
def test_at_one_a_single_call_decides(least: float, reached: bool) -> None:
    assert coverage([row(A, 999_999), row(ALL, 1)], [A], None).reaches(least) == reached
    billions = coverage([row(A, 10**17), row(ALL, 1)], [A], None)
    assert (billions.share, billions.reaches(1.0)) == (1.0, False)


def test_blocks_are_sorted_by_what_the_file_does_for_them() -> None:
    other = signature(["gone"])
    rows = [row(A), row(ALL), row(other)]
    blocks = [StoredBlock(key_of(one), 7, "c", 10) for one in (A, ALL, other)]
    blocks.append(StoredBlock(RecordKey(A_OWNER_OF_ANOTHER, A.digest), 7, "c", 10))
    calls, excluded = calls_of(blocks, rows, coverage(rows, [A], DEFS))
    assert (calls, excluded) == ([Call(7, "c", 10, missed=False), Call(7, "c", 10, missed=True)], 10)


A_OWNER_OF_ANOTHER = key_of(A, "another version").owner
