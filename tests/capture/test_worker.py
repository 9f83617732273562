"""The worker as a process, fed through a socket pair as a relay would."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from capture.config import WORKER_CLOSE_SECONDS, Limits, ListenerConfig
from capture.counters import Counters
from capture.dialects.table import BY_NAME
from capture.store.base import Batch, Sample, open_store
from capture.store_writer import StoreWriter
from proxy.worker_keeper import WORKER_GRACE
from tests.support.calls import eas, predict, predict_response
from tests.support.tap_frames import Flow, GrpcFlow
from tests.support.waiting import PATIENCE, until
from tests.support.worker_process import Worker

pytestmark = pytest.mark.server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


def hits(path: Path) -> dict[str, int]:
    with closing(open_store(str(path))) as store:
        return {str(row.signature): row.hits for row in store.signatures()}


def test_everything_is_stored_when_the_tap_ends(path: Path) -> None:
    worker = Worker(path, shed_lag=0.0)
    worker.greet()
    grpc, http = GrpcFlow(1), Flow(2, listener=1)
    for number in range(20):
        grpc.call(predict(outputs=[f"o{number % 4}"]), predict_response())
        http.post("/api/predict/rank", eas())
    grpc.request(predict(outputs=["never answered"]))
    worker.send(grpc, http)
    code, text = worker.end()
    assert code == 0, text
    assert hits(path) == {
        **{f"Predict m/serving_default (x) -> (o{number})": 5 for number in range(4)},
        "predict rank/serving_default (x) -> (*)": 20,
        "Predict m/serving_default (x) -> (never answered)": 1,
    }
    with closing(open_store(str(path))) as store:
        assert all(store.sample(row.key) is not None for row in store.signatures())
        counters = store.counters()
    assert (counters["requests_observed"], counters["requests_proven"], counters["requests_unproven"]) == (41, 40, 1)
    assert worker.counters.snapshot()["tap_frames"] > 40


def test_levels_reach_it(path: Path) -> None:
    worker = Worker(path, level="shapes", levels={"plain": "names"})
    worker.greet()
    grpc = GrpcFlow(1)
    for model in ("m", "plain"):
        for rows in (1, 2, 2):
            grpc.call(predict({"x": (1, (rows,))}, model=model), predict_response())
    worker.send(grpc)
    code, text = worker.end()
    assert code == 0, text
    with closing(open_store(str(path))) as store:
        found = sorted((row.key.owner.model, row.hits, "." in row.key.digest) for row in store.signatures())
    assert found == [("m", 1, True), ("m", 2, True), ("plain", 3, False)]


def test_it_stores_while_it_runs_and_knows_it_all_after_a_restart(path: Path) -> None:
    first = Worker(path)
    first.greet()
    flow = GrpcFlow()
    flow.call(predict(), predict_response())
    flow.call(predict(), predict_response())
    first.send(flow)
    first.wait_for("requests_proven", 2)
    writes = first.counters.snapshot()["store_writes"]
    flow.call(predict(), predict_response())
    first.send(flow)
    first.wait_for("store_writes", writes + 1)
    assert first.end()[0] == 0
    with closing(open_store(str(path))) as store:
        (row,) = store.signatures()
        sample, held = store.sample(row.key), {one.id for _, one in store.held_out()}
    second = Worker(path)
    second.greet()
    again = GrpcFlow()
    again.call(predict(fill=b"other"), predict_response())
    second.send(again)
    assert second.end()[0] == 0
    with closing(open_store(str(path))) as store:
        (row,) = store.signatures()
        assert row.hits == 4
        assert store.sample(row.key) == sample
        assert held < {one.id for _, one in store.held_out()}


@pytest.mark.parametrize("interval", [0.01, 3600.0])
def test_hits_of_a_known_signature_wait_for_the_flush_interval(path: Path, interval: float) -> None:
    """A new request is written at once, what is only counted with the next write or at the end."""
    # The clock of these frames stands still: it must not look as if the worker were behind.
    worker = Worker(path, flush_interval=interval, shed_lag=0.0, limits=Limits(held_out_requests=0))
    worker.greet()
    flow = GrpcFlow()
    flow.call(predict(), predict_response())
    flow.call(predict(), predict_response())
    worker.send(flow)
    worker.wait_for("requests_proven", 2)
    until(lambda: worker.counters.snapshot()["store_writes"] >= 1)
    # The second was the further sample of its signature; from the third on there are hits alone.
    until(lambda: hits(path).get("Predict m/serving_default (x) -> (*)") == 2)
    for number in range(3, 6):
        flow.call(predict(), predict_response())
        worker.send(flow)
        worker.wait_for("requests_proven", number)
    if interval < 1:
        until(lambda: list(hits(path).values()) == [5])
    assert list(hits(path).values()) == ([5] if interval < 1 else [2])
    assert worker.end()[0] == 0
    assert list(hits(path).values()) == [5]


@pytest.mark.parametrize("kind", ["directory", "absent", "foreign"])
def test_a_store_that_cannot_be_used_is_one_line_and_exit_1(tmp_path: Path, kind: str) -> None:
    path = {"directory": tmp_path, "absent": tmp_path / "none" / "s", "foreign": tmp_path / "f"}[kind]
    if kind == "foreign":
        path.write_bytes(b"no database, but a file of some length\n" * 40)
    code, text = Worker(path).end()
    assert code == 1
    assert len(text.splitlines()) == 1
    assert f'msg="store unusable" error="store {path}: ' in text


def test_an_unknown_dialect_is_one_line_and_exit_1(path: Path) -> None:
    code, text = Worker(path, listeners=(ListenerConfig("x", dialect="nope"),)).end()
    assert (code, len(text.splitlines())) == (1, 1)
    known = re.search(r'msg="unknown dialect" dialect=nope known=(\S+)', text)
    assert known is not None, text
    assert known[1].split(",") == list(BY_NAME)


def test_a_tap_of_another_version_is_exit_1_and_keeps_the_store(path: Path) -> None:
    worker = Worker(path)
    worker.socket.sendall(b"\xff" * 100)
    code, text = worker.end()
    assert code == 1
    assert 'msg="tap unreadable"' in text
    assert hits(path) == {}


def test_a_store_that_is_locked_for_a_while_loses_nothing(path: Path) -> None:
    worker = Worker(path, shed_lag=0.0)
    worker.greet()
    worker.wait_for("store_writes", 1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    flow = GrpcFlow()
    for number in range(30):
        flow.call(predict(outputs=[f"o{number}"]), predict_response())
        worker.send(flow)
    worker.wait_for("requests_proven", 30)
    worker.wait_for("store_failures", 1)
    other.execute("ROLLBACK")
    other.close()
    code, text = worker.end()
    assert code == 0, text
    assert sum(hits(path).values()) == 30
    assert worker.counters.snapshot()["store_dropped"] == 0
    assert 'msg="store failed"' in text


def test_a_store_that_stays_locked_ends_in_exit_1_and_is_counted(path: Path) -> None:
    worker = Worker(path)
    worker.greet()
    worker.wait_for("store_writes", 1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    flow = GrpcFlow()
    flow.call(predict(), predict_response())
    worker.send(flow)
    worker.wait_for("requests_proven", 1)
    code, text = worker.end()
    other.execute("ROLLBACK")
    other.close()
    assert code == 1
    assert 'msg="store not written"' in text
    assert worker.counters.snapshot()["store_dropped"] >= 1


@pytest.mark.parametrize("replaced", [False, True])
def test_a_store_that_is_gone_ends_the_worker_and_the_next_one_begins_anew(path: Path, replaced: bool) -> None:
    worker = Worker(path)
    worker.greet()
    flow = GrpcFlow()
    flow.call(predict(), predict_response())
    worker.send(flow)
    worker.wait_for("requests_proven", 1)
    worker.wait_for("store_writes", 2)
    for file in path.parent.iterdir():
        file.unlink()
    if replaced:
        open_store(str(path), create=True).close()
    flow.call(predict(outputs=["late"]), predict_response())
    worker.send(flow)
    assert worker.process.wait(PATIENCE) == 1
    _, text = worker.end()
    what = "replaced by another file" if replaced else "deleted or moved"
    assert text.count("level=error") == 1
    assert f'msg="store unusable" error="store {path}: {what} while it was open"' in text
    counters = worker.counters.snapshot()
    assert counters["store_failures"] == 1
    assert counters["store_dropped"] >= 1
    second = Worker(path)
    second.greet()
    again = GrpcFlow()
    again.call(predict(), predict_response())
    second.send(again)
    assert second.end()[0] == 0
    with closing(open_store(str(path))) as store:
        (row,) = store.signatures()
        assert store.sample(row.key) is not None


def damage(path: Path) -> None:
    """Overwrite all but the first page."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))


def test_a_store_that_is_damaged_while_it_is_open_is_said_and_counted(path: Path) -> None:
    worker = Worker(path)
    worker.greet()
    worker.wait_for("store_writes", 1)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(path)
    flow = GrpcFlow()
    flow.call(predict(), predict_response())
    worker.send(flow)
    worker.wait_for("store_failures", 1)
    code, text = worker.end()
    assert code == 1
    error = re.escape(f'error="store {path}: database disk image is malformed"')
    assert re.search(rf'msg="store failed" retry_seconds=0\.[0-9]+ {error}', text)
    assert 'msg="store not written"' in text
    assert worker.counters.snapshot()["store_dropped"] == 1


def test_a_store_that_is_damaged_at_the_start_is_one_line_and_exit_1(path: Path) -> None:
    open_store(str(path), create=True).close()
    damage(path)
    code, text = Worker(path).end()
    assert (code, len(text.splitlines())) == (1, 1)
    assert "level=error" in text
    assert 'msg="store unusable"' in text


class Stuck:
    """A store whose write never returns."""

    def __init__(self) -> None:
        self.entered, self.release = threading.Event(), threading.Event()

    def apply(self, _: Batch) -> None:
        self.entered.set()
        self.release.wait(PATIENCE)


def test_the_writer_gives_up_in_time_whatever_hangs() -> None:
    counters, store = Counters.create(), Stuck()
    writer = StoreWriter(store, counters)  # type: ignore[arg-type]
    batch = Batch("run")
    batch.samples = dict.fromkeys("ab", Sample(b"", None, {}, "", "", "proven", 0.0))  # type: ignore[arg-type]
    writer.write(batch)
    store.entered.wait(PATIENCE)
    writer.write(batch)
    assert not writer.stop(0.01)
    assert counters.snapshot()["store_dropped"] == 4
    store.release.set()
    assert WORKER_GRACE > WORKER_CLOSE_SECONDS


def test_killed_in_the_middle_of_writes(path: Path) -> None:
    stored: dict[str, int] = {}
    for turn in range(4):
        worker = Worker(path, limits=Limits(new_signatures_per_hour=100_000))
        worker.greet()
        flow = GrpcFlow()
        before = worker.counters.snapshot()["store_writes"]
        for number in range(40):
            flow.call(predict(outputs=[f"t{turn}n{number}"], fill=bytes(20_000)), predict_response())
            worker.send(flow)
            if number == 10 * turn:
                worker.wait_for("store_writes", before + 2)
        worker.process.send_signal(signal.SIGKILL)
        worker.end()
        db = sqlite3.connect(path)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT count(*) FROM signatures s LEFT JOIN samples p ON p.signature_id = s.id"
                          " WHERE p.body IS NULL").fetchone() == (0,)  # fmt: skip
        db.close()
        found = hits(path)
        assert found.items() >= stored.items()
        assert len(found) > len(stored)
        stored = found


def test_nothing_of_the_traffic_is_logged(path: Path) -> None:
    worker = Worker(path, log_level="debug")
    worker.greet()
    flow = Flow(1, listener=1)
    flow.post("/api/predict/rank?token=SECRET", eas(), headers="Authorization: SECRET\r\n").client(b"SECRET junk")
    worker.send(flow.closed())
    code, text = worker.end()
    assert code == 0
    assert "SECRET" not in text
    assert "msg=stopped status=0" in text
    assert os.fspath(path) in text
