"""Calls without a version, through the pipeline to the store."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from capture import tap
from capture.admission import Admission
from capture.attribution import (
    MAX_LABELS,
    MAX_MODELS,
    MAX_NAME_CHARS,
    MAX_WAIT,
    MAX_WAITING,
    Attribution,
    settle,
)
from capture.config import ListenerConfig
from capture.dialects.base import Judgement, Outcome
from capture.dialects.table import stored_route
from capture.open_exchange import Exchange
from capture.pipeline import Pipeline
from capture.serving import Span
from capture.signature import Call, wire_signature
from capture.status_board import StatusBoard
from capture.status_messages import Answers, Ask, Asks, Metadata, Said
from capture.store.base import UNKNOWN_VERSION, ModelVersion, RecordKey, Store, open_store
from tests.support.stores import NOW

STATUS = "http://s:1"
LISTENER = ListenerConfig("rest", status=STATUS)


class Bench:
    """A pipeline that is handed exchanges, its attribution, and a store that takes its batches."""

    def __init__(self, path: Path, **bounds: Any) -> None:
        self.counts: Counter[str] = Counter()
        plain = {
            "signatures_per_version": 100, "new_signatures_per_hour": 100, "store_bytes": 1 << 20,
            "held_out_requests": 8, "held_out_bytes": 1 << 16, "held_out_seconds": 86400.0, "refresh_after": 86400.0,
        }  # fmt: skip
        self.admission = Admission(**(plain | bounds))
        self.pipeline = Pipeline(
            run="run", name="w", listeners=(LISTENER,), admission=self.admission, request_bytes=1 << 20,
            open_bytes=1 << 20, count=self._count, draw=random.Random(1).random,
        )  # fmt: skip
        self.attribution = self.pipeline.attribution
        self.store: Store = open_store(str(path), create=True)
        self.sent = 0

    def _count(self, name: str, number: int) -> None:
        self.counts[name] += number

    def at(self, seconds: float) -> None:
        clocks = tap.TIME_PAYLOAD.pack(round(1e9 * seconds), round(1e9 * (NOW + seconds)))
        self.pipeline.feed([(tap.TIME, 0, 0, clocks)])

    def call(self, at: float, *, label: str = "", name: str = "x", version: str = "", ok: bool = True) -> None:
        """One call of half a second that ends at this time."""
        self.at(at)
        signature = wire_signature("tfserving", "m", "Predict", "", [name], [])
        exchange = Exchange(1, 1, "curl 10.0.0.0/24", "/path", {}, stored_route("tfserving", "m"))
        exchange.call = Call(signature, (), version_label=label)
        self.sent += 1
        exchange.body = f"{self.sent:04} {label} {version}".encode()
        exchange.request_complete = True
        exchange.judgement = Judgement(Outcome.PROVEN if ok else Outcome.UNPROVEN, version=version)
        exchange.began_at = at - 0.5
        self.pipeline.take_exchange(exchange, LISTENER)

    def told(self, *spans: tuple[float, float, str], label: str = "", ongoing: bool = True) -> None:
        said = Said(STATUS, "m", label, ongoing, tuple(Span(*span) for span in spans))
        self.attribution.learn(Answers((said,)))

    def flush(self) -> None:
        """As the worker does, twice: what settles is in the batch after."""
        for _ in range(2):
            self.store.apply(self.pipeline.take())
            settle(self.attribution, self.admission, self.pipeline.batch, self.pipeline.monotonic)

    def hits(self) -> dict[tuple[str, str], int]:
        return {(row.signature.inputs[0], row.key.owner.version): row.hits for row in self.store.signatures()}

    def key(self, version: str, name: str = "x") -> RecordKey:
        signature = wire_signature("tfserving", "m", "Predict", "", [name], [])
        return RecordKey(ModelVersion("tfserving", "m", version), signature.digest)


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    made = Bench(tmp_path / "s")
    with closing(made.store):
        yield made


def test_a_call_is_stored_at_once_and_moves_when_its_version_is_told(bench: Bench) -> None:
    bench.told((10, 20, "1"))
    bench.call(25)
    bench.flush()
    assert bench.hits() == {("x", UNKNOWN_VERSION): 1}
    assert bench.store.sample(bench.key(UNKNOWN_VERSION)) is not None
    bench.told((10, 30, "1"))
    bench.flush()
    assert bench.hits() == {("x", "1"): 1}
    sample = bench.store.sample(bench.key("1"))
    assert sample is not None
    assert sample.body.startswith(b"0001")
    assert bench.store.sample(bench.key(UNKNOWN_VERSION)) is None
    assert bench.counts["versions_attributed"] == 1
    (row,) = bench.store.signatures()
    assert (row.proven, row.unproven, row.hours, row.senders) == (1, 0, 1, {"curl 10.0.0.0/24": 1})


@pytest.mark.parametrize(
    "spans",
    [((10, 20, "1"), (31, 40, "2")), ((10, 20, "1"),), ((10, 25.9, "1"),), ((24.9, 40, "1"),), ((10, 40, ""),)],
    ids=[
        "another version after",
        "no poll after",
        "a poll within the tap's delay",
        "a poll within it",
        "nobody serves",
    ],
)
def test_what_the_polls_do_not_prove_stays_unknown(bench: Bench, spans: Any) -> None:
    bench.told((10, 20, "1"))
    bench.call(25)
    bench.flush()
    bench.told(*spans, ongoing=False)
    bench.flush()
    assert bench.hits() == {("x", UNKNOWN_VERSION): 1}
    assert bench.store.sample(bench.key(UNKNOWN_VERSION)) is not None
    assert (bench.counts["versions_attributed"], bench.counts["versions_unknown"]) == (0, 1)
    assert not bench.attribution.waits


def test_a_model_of_which_nothing_is_said_waits_for_nothing(bench: Bench) -> None:
    bench.call(25)
    assert bench.counts["versions_unknown"] == 1
    assert not bench.attribution.waits
    assert bench.attribution.asks() == Asks((Ask(STATUS, "m"),))


def test_polls_that_never_come_are_waited_for_no_longer_than_the_bound(bench: Bench) -> None:
    bench.told((10, 20, "1"))
    bench.call(25)
    bench.flush()
    assert bench.attribution.waits
    bench.at(27 + MAX_WAIT)
    bench.flush()
    assert not bench.attribution.waits
    assert bench.hits() == {("x", UNKNOWN_VERSION): 1}


def test_labels_go_their_own_ways(bench: Bench) -> None:
    both = (Said(STATUS, "m", "", True, (Span(10, 20, "2"),)), Said(STATUS, "m", "old", True, (Span(10, 20, "1"),)))
    bench.attribution.learn(Answers(both))
    bench.call(25)
    bench.call(25, label="old", name="y")
    bench.flush()
    assert bench.attribution.asks() == Asks((Ask(STATUS, "m", ("old",)),))
    bench.attribution.learn(
        Answers(
            tuple(Said(one.status, one.model, one.label, True, (one.spans[0]._replace(until=30.0),)) for one in both)
        )
    )
    bench.flush()
    assert bench.hits() == {("x", "2"): 1, ("y", "1"): 1}


def test_a_call_that_tells_its_version_is_left_alone(bench: Bench) -> None:
    bench.told((10, 20, "1"))
    bench.call(25, version="7")
    bench.flush()
    assert not bench.attribution.waits
    assert bench.hits() == {("x", "7"): 1}


def test_traffic_without_end_gives_every_version_its_sample_and_its_held_out_set(bench: Bench) -> None:
    """Polls every ten seconds, a call every half second, a new version at 200."""
    for now in range(20, 801):
        at = now / 2
        if now % 20 == 0:
            spans = [(5.0, min(at, 200) - 1, "1")] + ([(205.0, at - 1, "2")] if at > 210 else [])
            bench.told(*spans)
            bench.flush()
        bench.call(at)
    bench.told((5, 199, "1"), (205, 500, "2"))
    bench.flush()
    hits = bench.hits()
    assert sum(hits.values()) == bench.sent == 781
    assert bench.counts["versions_attributed"] == hits["x", "1"] + hits["x", "2"] > 700
    for version in ("1", "2"):
        assert bench.store.sample(bench.key(version)) is not None
        held = [one for one in bench.store.held_out_index() if one.key.owner.version == version]
        assert sum(one.draw is not None for one in held) == 8
        assert sum(one.for_signature for one in held) == 1
    # What admission believes is what the store has.
    sizes = sum(row.sample_size for row in bench.store.signatures()) + sum(
        one.size for one in bench.store.held_out_index()
    )
    assert bench.admission.stored_bytes == sizes


def test_an_unproven_call_moves_as_such(bench: Bench) -> None:
    bench.told((10, 20, "1"))
    bench.call(25, ok=False)
    bench.flush()
    bench.told((10, 30, "1"))
    bench.flush()
    (row,) = bench.store.signatures()
    assert (row.key.owner.version, row.proven, row.unproven, row.sample_outcome) == ("1", 0, 1, "unproven")


def test_a_version_without_room_leaves_calls_where_they_are(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "s", signatures_per_version=1, new_signatures_per_hour=0)
    with closing(bench.store):
        bench.call(9, version="1", name="a")
        bench.told((10, 20, "1"))
        bench.call(25)
        bench.flush()
        bench.told((10, 30, "1"))
        bench.flush()
        assert bench.hits() == {("a", "1"): 1, ("x", UNKNOWN_VERSION): 1}
        assert bench.counts["versions_unknown"] == 1


def test_a_worker_that_dies_loses_the_version_and_no_call(bench: Bench, tmp_path: Path) -> None:
    bench.told((10, 20, "1"))
    bench.call(25)
    bench.flush()
    successor = Bench(tmp_path / "s")
    with closing(successor.store):
        successor.admission.load(successor.store.signatures(), successor.store.held_out_index())
        successor.attribution.begin(bench.attribution.asks())
        assert successor.attribution.asks().models == (Ask(STATUS, "m"),)
        successor.told((10, 30, "1"))
        successor.call(35)
        successor.flush()
        successor.told((10, 50, "1"))
        successor.flush()
        assert successor.hits() == {("x", UNKNOWN_VERSION): 1, ("x", "1"): 1}


def test_metadata_is_stored_once(bench: Bench) -> None:
    one = Metadata("1", "m", "3", 5.0, b"{}")
    bench.attribution.learn(Answers((), (one,)))
    bench.attribution.learn(Answers((), (one,)))
    bench.flush()
    assert [(stored.owner, stored.fetched_at, stored.body) for stored in bench.store.metadata()] == [
        (ModelVersion("tfserving", "m", "3"), 5.0, b"{}")
    ]
    assert bench.counts["metadata_stored"] == 1
    assert bench.attribution.asks().taken == ("1",)
    # Another model of the same number, as the server has it now.
    bench.attribution.learn(Answers((), (Metadata("2", "m", "3", 6.0, b"[]"),)))
    bench.flush()
    assert [stored.body for stored in bench.store.metadata("m")] == [b"[]"]
    assert bench.store.metadata("other") == []


def test_names_from_traffic_are_bounded() -> None:
    attribution = Attribution(lambda name, number: None)
    key = RecordKey(ModelVersion("tfserving", "", UNKNOWN_VERSION), "d")
    signature = wire_signature("tfserving", "m", "Predict", "", ["x"], [])

    def call(model: str, label: str = "", digest: str = "d") -> None:
        owner = key.owner._replace(model=model)
        attribution.call(RecordKey(owner, digest), Call(signature, (), version_label=label), STATUS, True, 1, 5.0, 6.0)

    for number in range(10 * MAX_MODELS):
        call(f"{number:04}".rjust(MAX_NAME_CHARS, "\U0001f600"))
    for number in range(10 * MAX_LABELS):
        call(
            f"{10 * MAX_MODELS - 2:04}".rjust(MAX_NAME_CHARS, "\U0001f600"),
            f"{number:04}".rjust(MAX_NAME_CHARS, "\U0001f600"),
        )
    StatusBoard.create().ask(attribution.asks())
    for number in range(10 * MAX_MODELS):
        call(f"m{number}")
    call("m" * (MAX_NAME_CHARS + 1))
    call("m\ud800")
    for number in range(10 * MAX_LABELS):
        call(f"m{10 * MAX_MODELS - 2}", f"label{number}")
    asked = attribution.asks().models
    assert len(asked) == MAX_MODELS
    assert asked[-1].model == f"m{10 * MAX_MODELS - 2}"
    assert len(asked[-1].labels) == MAX_LABELS
    attribution.learn(Answers((Said(STATUS, "m1", "", True, (Span(0, 1, "1"),)),)))
    for number in range(MAX_WAITING + 100):
        call("m1", digest=f"d{number}")
    assert len(attribution._waiting) == MAX_WAITING
