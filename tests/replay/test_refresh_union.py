"""What a refreshed file holds: captures of all versions and what stood in it; the trial is by script."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from capture.errors import UserError
from capture.export.manifest import MANIFEST_SUFFIX
from capture.export.scrub_rules import read_rules
from capture.export.tfrecord import WARMUP_PATH, frame, prediction_log, read_records
from capture.schema import messages
from capture.signature import wire_signature
from capture.store.base import Batch, RecordKey, Store
from replay.refreshing import contents
from replay.refreshing.ages import Ages
from replay.refreshing.draft import Wanted
from replay.refreshing.history import MAX_EVENTS, SLACK, Event, History
from replay.refreshing.job import What, run_job
from tests.support.calls import predict
from tests.support.refreshing import Script, body, job, refreshed, saved_model
from tests.support.stores import NOW, add, filled, signature

DAY = 86400.0
#: 43 sets of six outputs.
SETS = [sets for size in (1, 2, 3, 4) for sets in itertools.combinations("abcdef", size)][:43]


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return saved_model(tmp_path / "m" / "2", {name: f"{name}:0" for name in "abcdef"})


@pytest.fixture
def fill(tmp_path: Path) -> Iterator[Callable[[Batch], Store]]:
    opened: list[Store] = []

    def filling(batch: Batch) -> Store:
        opened.append(filled(tmp_path / "store", batch))
        return opened[-1]

    yield filling
    for store in opened:
        store.close()


def captured(*sets: tuple[str, ...], version: str = "1", at: float = NOW, text: str = "carried") -> Batch:
    batch = Batch("run")
    for outputs in sets:
        add(batch, signature(outputs), version=version, body=body(text, *outputs), at=at)
    return batch


def file_of(version: Path) -> Path:
    return version / WARMUP_PATH


def records(version: Path) -> list[bytes]:
    return list(read_records(file_of(version).read_bytes()))


def manifest(version: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((version / (WARMUP_PATH + MANIFEST_SUFFIX)).read_bytes())
    return found


def outputs_of(record: bytes) -> tuple[str, ...]:
    request = messages.PredictLog.FromString(messages.PredictionLog.FromString(record).predict_log).request
    return tuple(messages.PredictRequest.FromString(request).output_filter)


def by_hand(version: Path, *requests: bytes) -> list[bytes]:
    """A file that somebody else wrote: its records."""
    logs = [prediction_log(request) for request in requests]
    path = file_of(version)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(map(frame, logs)))
    return logs


def test_own_and_carried_signatures_and_what_was_made_by_hand(version: Path, fill: Callable[[Batch], Store]) -> None:
    own, carried = SETS[:3], SETS[3:]
    batch = captured(*carried, *own)
    for outputs in own:
        add(batch, signature(outputs), version="2", body=body("own", *outputs))
    add(batch, signature(tuple("abcde")), body=body("bad", *"abcde"))
    hand = by_hand(version, body("made by hand"))
    done = refreshed(fill(batch), version, in_place=True)
    assert (done.what, done.records) == (What.PUBLISHED, 43 + 1)
    assert records(version)[0] == hand[0]
    assert {outputs_of(record) for record in records(version)[1:]} == set(SETS)
    assert sum(b"own" in record for record in records(version)) == len(own)
    assert [one.reason for one in done.left_out] == ["does not run on version 2: INVALID_ARGUMENT: bad"]
    assert (version / f"{WARMUP_PATH}.prev").read_bytes() == b"".join(map(frame, hand))
    assert [one["origin"] for one in manifest(version)["records"]].count("hand-made") == 1


def test_the_same_set_is_not_written_again(version: Path, fill: Callable[[Batch], Store]) -> None:
    store = fill(captured(("a",), ("b",)))
    refreshed(store, version)
    before = file_of(version).stat()
    # A newer sample of the same signature, and a version of its own that uses it too, are no change.
    store.apply(captured(("a",), text="newer", at=NOW + DAY))
    store.apply(captured(("b",), text="own", version="2", at=NOW + DAY))
    done = refreshed(store, version, in_place=True)
    assert (done.what, done.records) == (What.UNCHANGED, 2)
    assert file_of(version).stat() == before
    assert not (version / f"{WARMUP_PATH}.prev").exists()
    store.apply(captured(("c",), at=NOW + DAY))
    assert refreshed(store, version, in_place=True).what is What.PUBLISHED
    assert len(records(version)) == 3


def test_without_in_place_a_served_file_is_left_alone(version: Path, fill: Callable[[Batch], Store]) -> None:
    by_hand(version, body("x", "a"))
    done = refreshed(fill(captured(("b",))), version)
    assert (done.what, done.text) == (What.PASSED, "has a warm-up file already")
    assert len(records(version)) == 1


def test_a_record_of_the_file_outlives_its_place_in_the_store(version: Path, fill: Callable[[Batch], Store]) -> None:
    store = fill(captured(("a",), ("b",)))
    refreshed(store, version)
    kept = records(version)
    store.apply(Batch("run", forget_before=NOW + DAY))
    store.apply(captured(("c",), at=NOW + DAY))
    assert refreshed(store, version, in_place=True).records == 3
    assert set(kept) < set(records(version))
    assert {one["origin"] for one in manifest(version)["records"]} == {"captured"}


def test_age_is_what_shrinks_a_set(version: Path, fill: Callable[[Batch], Store]) -> None:
    hand = by_hand(version, body("x", "f"))
    store = fill(captured(("a",), ("b",)))
    store.apply(captured(("b",), version="2", at=NOW + 9 * DAY))
    refreshed(store, version, in_place=True)
    assert len(records(version)) == 3
    # Neither is in the store any more: what the manifest tells of their age is what counts.
    store.apply(Batch("run", forget_before=NOW + 20 * DAY))
    store.apply(captured(("c",), at=NOW + 9 * DAY))
    wanted = Wanted(retire_after=10 * DAY)
    done = refreshed(store, version, in_place=True, wanted=wanted, now=NOW + 11 * DAY)
    assert [one.reason for one in done.left_out] == ["retired by retire_after: not seen since 2023-11-14"]
    assert {outputs_of(record) for record in records(version)} == {("f",), ("b",), ("c",)}
    refreshed(store, version, in_place=True, wanted=wanted, now=NOW + 1000 * DAY)
    assert records(version) == hand


def test_age_is_remembered_for_longer_than_the_store_does(
    version: Path, fill: Callable[[Batch], Store], tmp_path: Path
) -> None:
    store = fill(captured(("a",), ("b",)))

    def at(day: float) -> int:
        wanted = Wanted(retire_after=10 * DAY)
        done = refreshed(store, version, in_place=True, wanted=wanted, now=NOW + day * DAY, ages=Ages(tmp_path))
        return done.records

    assert at(0.1) == 2
    store.apply(captured(("a",), at=NOW + 9 * DAY))
    assert at(9) == 2
    # The store forgets both; the file was written on the first day, and never again since.
    store.apply(Batch("run", forget_before=NOW + 30 * DAY))
    store.apply(captured(("c",), at=NOW + 30 * DAY))
    assert at(9.5) == 3
    assert at(11) == 2
    assert at(18) == 2
    assert at(20) == 1
    assert Ages(tmp_path).known().keys() == {signature(("c",)).digest}


def test_a_record_made_by_hand_that_does_not_run_is_left_out_and_replaced(
    version: Path, fill: Callable[[Batch], Store]
) -> None:
    by_hand(version, body("bad", "a"), predict(("x",), outputs=("gone",)), body("good", "b"))
    done = refreshed(fill(captured(("a",), ("b",))), version, in_place=True)
    assert done.records == 2
    assert sorted(one.reason for one in done.left_out) == [
        "stood in the file, and does not fit: no output gone",
        "stood in the file, and does not run on version 2: INVALID_ARGUMENT: bad; another request of the same executor"
        " is in the file",
    ]
    assert [b"carried" in record for record in records(version)] == [True, False]


def test_what_the_server_refuses_or_passes_over(version: Path, fill: Callable[[Batch], Store]) -> None:
    no_log = b""
    refused = messages.PredictionLog(session_run_log=b"").SerializeToString()
    path = file_of(version)
    path.parent.mkdir()
    path.write_bytes(frame(no_log) + frame(refused))
    done = refreshed(fill(captured(("a",))), version, in_place=True)
    assert records(version)[1:] == [no_log]
    assert len(done.left_out) == 1
    assert done.left_out[0].reason.startswith("stood in the file, and is a session_run_log, which TF Serving refuses")


def test_hand_made_duplicates_of_an_executor_all_stay(version: Path, fill: Callable[[Batch], Store]) -> None:
    hand = by_hand(version, *(predict({"x": (1, (rows,))}, outputs=("a",)) for rows in (1, 8, 32)))
    done = refreshed(fill(captured(("a",), ("b",))), version, in_place=True)
    assert sorted(records(version)[:3]) == sorted(hand)
    assert done.records == 4


def test_a_record_that_somebody_added_to_warmtaps_file_is_theirs(version: Path, fill: Callable[[Batch], Store]) -> None:
    store = fill(captured(("a",)))
    refreshed(store, version)
    added = prediction_log(body("added", "b"))
    with file_of(version).open("ab") as file:
        file.write(frame(added))
    store.apply(captured(("c",), at=NOW + 99 * DAY))
    done = refreshed(store, version, in_place=True, wanted=Wanted(retire_after=DAY), now=NOW + 99 * DAY)
    assert done.records == 2
    assert records(version)[0] == added
    assert outputs_of(records(version)[1]) == ("c",)


def test_a_broken_file_fails_its_version_and_stays(version: Path, fill: Callable[[Batch], Store]) -> None:
    by_hand(version, body("x", "a"))
    file_of(version).write_bytes(file_of(version).read_bytes()[:-1])
    broken = file_of(version).read_bytes()
    done = refreshed(fill(captured(("b",))), version, in_place=True)
    assert done.what is What.FAILED
    assert done.text.startswith("version 2: record 1: corrupted record at byte 0")
    assert file_of(version).read_bytes() == broken


def test_unverified_writes_own_proven_requests_only(version: Path, fill: Callable[[Batch], Store]) -> None:
    batch = captured(("a",), ("b",))
    add(batch, signature(("b",)), version="2", body=body("own", "b"))
    add(batch, signature(("c",)), version="2", proven=0, unproven=5, body=body("own", "c"))
    script = Script()
    done = refreshed(fill(batch), version, script, wanted=Wanted(unverified=True))
    assert script.rounds == []
    assert [outputs_of(record) for record in records(version)] == [("b",)]
    assert (done.records, done.text) == (1, "1 records, as they are: none was run")
    proof = manifest(version)["proof"]
    assert (proof["level"], proof["verdict"]) == ("none", "unverified: nothing was run")
    # Once they are run, the manifest says so.
    assert refreshed(fill(Batch("run")), version, in_place=True).what is What.PUBLISHED
    assert manifest(version)["proof"]["level"] == "executor"


@pytest.mark.parametrize("named", [{"sizes": (1, 8)}, {"rules": read_rules((), {})}])
def test_unverified_goes_with_nothing_that_must_be_run(named: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="neither batch sizes nor scrub"):
        Wanted(unverified=True, **named)


def test_the_bound_of_a_file_never_costs_what_was_made_by_hand(
    version: Path, fill: Callable[[Batch], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "MAX_RECORDS", 2)
    hand = by_hand(version, body("x", "f"))
    batch = captured(("b",))
    add(batch, signature(("a",)), proven=99, body=body("often", "a"))
    done = refreshed(fill(batch), version, in_place=True)
    assert records(version) == [hand[0], prediction_log(body("often", "a"))]
    assert [one.reason for one in done.left_out] == ["a warm-up file holds at most 2 records"]


def test_classes_of_a_level_are_records_of_their_own(version: Path, fill: Callable[[Batch], Store]) -> None:
    batch = Batch("run")
    for level in ("aaaa", "bbbb"):
        key = add(batch, signature(("a",)), body=body(level, "a"))
        for kept in (batch.seen, batch.samples):
            kept[RecordKey(key.owner, f"{key.digest}.{level}")] = kept.pop(key)  # type: ignore[index, attr-defined]
    hand = by_hand(version, body("x", "a"))
    store = fill(batch)
    # Of which class a record is that was made by hand cannot be told.
    assert refreshed(store, version, in_place=True).records == 3
    assert records(version)[0] == hand[0]
    script = Script()
    assert refreshed(store, version, script, in_place=True).what is What.UNCHANGED
    assert script.rounds == []
    store.apply(Batch("run", forget_before=NOW + DAY))
    store.apply(captured(("b",), at=NOW + DAY))
    assert refreshed(store, version, in_place=True).records == 4


def test_a_rest_request_and_its_record_are_one(version: Path, fill: Callable[[Batch], Store]) -> None:
    batch = Batch("run")
    rest = wire_signature("tfserving", "m", "REST Predict column", "", ["x"], [])
    add(batch, rest, body=b'{"inputs": {"x": [1.0]}}')
    store = fill(batch)
    assert refreshed(store, version).records == 1
    assert refreshed(store, version, in_place=True).what is What.UNCHANGED
    # Its age is that of the REST call.
    wanted = Wanted(retire_after=DAY)
    assert (
        refreshed(store, version, in_place=True, wanted=wanted, now=NOW + 3 * DAY)
        .left_out[0]
        .reason.startswith("retired by retire_after")
    )


def test_a_file_that_was_exported_is_run_before_it_counts_as_settled(
    version: Path, fill: Callable[[Batch], Store]
) -> None:
    store = fill(captured(("a",)))
    refreshed(store, version)
    path = version / (WARMUP_PATH + MANIFEST_SUFFIX)
    told = manifest(version) | {"proof": {"level": "fits"}}
    path.write_text(json.dumps(told))
    script = Script()
    assert refreshed(store, version, script, in_place=True).what is What.UNCHANGED
    assert len(script.rounds) == 1


def test_batch_sizes_stay_and_are_not_made_twice(version: Path, fill: Callable[[Batch], Store]) -> None:
    store = fill(captured(("a",)))
    wanted = Wanted(sizes=(1, 8))
    refreshed(store, version, wanted=wanted)
    batches = [one["batch"] for one in manifest(version)["records"]]
    assert refreshed(store, version, in_place=True, wanted=wanted).what is What.UNCHANGED
    store.apply(Batch("run", forget_before=NOW + DAY))
    store.apply(captured(("b",), at=NOW + DAY))
    refreshed(store, version, in_place=True, wanted=wanted)
    assert [one["batch"] for one in manifest(version)["records"]] == batches * 2


def test_history_is_bounded_and_survives_a_line_that_was_cut(tmp_path: Path) -> None:
    history = History(tmp_path)
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"at": "2026-01-01T00:00:00Z", "event": "pub')
    event = Event("2026-01-01T00:00:00Z", "published", "m", "1", "because")
    history.add(event)
    assert history.events() == [event]
    history.add_news(event)
    assert history.events() == [event]
    line = path.read_bytes().splitlines()[-1] + b"\n"
    path.write_bytes(line * (MAX_EVENTS + SLACK))
    history.add(Event("2026-01-02T00:00:00Z", "failed", "m", "1"))
    assert len(history.events()) == MAX_EVENTS
    assert history.events()[-1].event == "failed"


def test_the_history_says_what_changed_and_why(version: Path, fill: Callable[[Batch], Store]) -> None:
    store = fill(captured(("a",), ("gone",)))
    run_job(job(version.parent, history=True), store, trial=Script(), now=lambda: NOW)
    events = History(version.parent).events()
    assert [one.event for one in events] == ["publishing", "published"]
    assert events[1].added == ("Predict m/serving_default (x) -> (a)",)
    assert events[1].why == "1 added, 0 removed"
    assert [line.partition(": ")[2] for line in events[1].left_out] == ["does not fit: no output gone"]
    assert events[1].at == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW))
