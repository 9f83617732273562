"""The worker's process on a store of a fleet: what it does while the server is away, and that nothing counts twice."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from capture.store.base import open_store
from tests.support.calls import predict, predict_response
from tests.support.tap_frames import GrpcFlow
from tests.support.valkey import Server
from tests.support.worker_process import Worker

pytestmark = pytest.mark.server


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("s"), "--appendonly", "yes", "--appendfsync", "always") as one:
        yield one


def worker_on(url: str, run: str = "run1") -> Worker:
    worker = Worker(url, shared_flush_interval=0.02, run=run)
    worker.greet()
    return worker


def call(worker: Worker, times: int, *outputs: str) -> None:
    flow = GrpcFlow()
    for _ in range(times):
        flow.call(predict(outputs=outputs), predict_response())
    worker.send(flow)


def stored(url: str) -> tuple[int, int]:
    """(calls, signatures with a sample)"""
    with closing(open_store(url)) as store:
        rows = store.signatures()
        return sum(row.hits for row in rows), sum(store.sample(row.key) is not None for row in rows)


def test_what_passes_while_the_server_is_stopped_is_written_once_it_goes_on(server: Server) -> None:
    url = f"{server.url}?timeout=0.2"
    first, second = worker_on(url), worker_on(url)
    for worker in (first, second):
        call(worker, 5, "a")
        worker.wait_for("requests_proven", 5)
        worker.wait_for("store_writes", 2)
    server.send(signal.SIGSTOP)
    try:
        for number, worker in enumerate((first, second)):
            call(worker, 7, "a")
            call(worker, 3, f"new{number}")
            worker.wait_for("requests_proven", 15)
            worker.wait_for("store_failures", 2)
            # As long as it has waited.
            worker.wait_for("store_delay_us", 400_000)
    finally:
        server.send(signal.SIGCONT)
    for worker in (first, second):
        status, text = worker.end()
        assert status == 0
        assert 'msg="store failed"' in text
        assert "is it stopped, or behind a firewall?" in text
        counters = worker.counters.snapshot()
        assert (counters["store_dropped"], counters["requests_proven"]) == (0, 15)
        assert worker.counters.total()["store_delay_us"] == 0
    assert stored(server.url) == (30, 3)


def test_a_worker_begins_while_the_server_is_away_and_outlives_its_death(server: Server) -> None:
    server.kill()
    worker = worker_on(server.url)
    call(worker, 4, "a")
    worker.wait_for("requests_proven", 4)
    worker.wait_for("store_failures", 2)
    server.start()
    worker.wait_for("store_writes", 1)
    server.kill()
    call(worker, 6, "b")
    worker.wait_for("requests_proven", 10)
    failures = worker.counters.snapshot()["store_failures"]
    worker.wait_for("store_failures", failures + 1)
    server.start()
    assert worker.end()[0] == 0
    assert stored(server.url) == (10, 2)


def test_a_sidecar_that_nobody_calls_is_no_run_that_ended_long_ago(server: Server) -> None:
    idle, busy = worker_on(server.url, run="idle"), worker_on(server.url, run="busy")
    idle.wait_for("store_writes", 1)
    call(busy, 3, "a")
    busy.wait_for("requests_proven", 3)
    assert (busy.end()[0], idle.end()[0]) == (0, 0)
    with closing(open_store(server.url)) as store:
        assert "idle" in store.runs()
        assert store.counters()["requests_proven"] == 3


def test_what_cannot_be_written_in_the_end_is_counted(server: Server, tmp_path: Path) -> None:
    worker = worker_on(server.url)
    worker.wait_for("store_writes", 1)
    server.kill()
    call(worker, 1, "a")
    worker.wait_for("requests_proven", 1)
    status, text = worker.end()
    assert status == 1
    assert text.count("level=error") == 1
    assert f'msg="store not written" store={server.url}' in text
    assert worker.counters.snapshot()["store_dropped"] == 1


def test_a_wrong_password_is_a_line_that_names_it_and_shows_none(server: Server) -> None:
    with server.client() as client:
        client.config_set("requirepass", "right")
    url = server.url.replace("//", "//:wr0ng@")
    worker = worker_on(url)
    call(worker, 1, "a")
    worker.wait_for("store_failures", 1)
    with server.client(password="right") as client:
        client.config_set("requirepass", "wr0ng")
    # It is tried again and again, and what came in between is written.
    worker.wait_for("store_writes", 1)
    status, text = worker.end()
    assert status == 0
    assert "WRONGPASS: wrong user or password" in text
    assert "wr0ng" not in text
    assert stored(url) == (1, 1)
