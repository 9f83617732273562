"""What the worker's process may take of memory, what it does when that is near, and the gauges that show it."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from capture import tap
from capture.config import WorkerConfig
from capture.store.base import open_store
from capture.worker import DONE, MEMORY_SHARE, OUT_OF_MEMORY
from capture.worker_memory import OOM_SCORE, offer_to_the_oom_killer
from proxy.configs import worker_config
from proxy.settings import Capture, Listener, Settings
from tests.support.calls import eas
from tests.support.processes import ROOT
from tests.support.tap_frames import Flow, encode
from tests.support.waiting import until
from tests.support.worker_process import Worker

pytestmark = pytest.mark.server

#: The real worker, in which reading the third request (and each one after it) does something more.
PATCHED = """
import sys, time
from capture import worker
from capture.dialects.eas_tensorflow import EasTensorFlow
from capture.store.sqlite import SqliteStore
held = []
def more():
    {more}
def patched(read, seen=[]):
    def wrapped(*about):
        seen.append(1)
        if len(seen) > 2:
            more()
        return read(*about)
    return wrapped
{where} = patched({where})
sys.exit(worker.main())
"""
READ, APPLY = "EasTensorFlow.read", "SqliteStore.apply"
#: Without bound, and touched.
GROW = "while True: held.append(b'x' * (4 << 20))"
GROW_SOME = "held.append(b'x' * (4 << 20))"
SLOW = "time.sleep(0.01)"


def patched(more: str, where: str = READ) -> str:
    return PATCHED.format(more=more, where=where)


def post(worker: Worker, number: int, size: int = 2) -> None:
    flow = Flow(number, listener=1)
    flow.post("/api/predict/rank", eas({"x": [1.0] * size}, outputs=[f"o{number}"]))
    worker.send(flow.closed())


def post_until_it_ends(worker: Worker, grows: int = 0) -> int:
    """One request after the other, each read, and its growth seen by the worker, before the next; how many."""
    for sent in range(1, 100):
        try:
            post(worker, sent)
        except ConnectionError:
            until(lambda: worker.process.poll() is not None, "its end")
        if read_or_ended(worker, sent, (sent - 2) * grows):
            return sent
    raise AssertionError("far beyond the limit")


def read_or_ended(worker: Worker, count: int, memory: int) -> bool:
    """Until so many requests are read and so much memory is seen, or until it has ended, which is True."""

    def ended() -> bool:
        return worker.process.poll() is not None

    def read() -> bool:
        now = worker.counters.total()
        return ended() or (now["requests_proven"] >= count and now["worker_memory_bytes"] >= memory)

    until(read, f"{count} requests, {memory} bytes")
    return ended()


def stored(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with closing(open_store(str(path))) as store:
        rows = store.signatures()
        assert all(store.sample(row.key) is not None for row in rows)
        return sum(row.hits for row in rows)


def test_the_address_space_is_limited_and_the_oom_killer_comes_here_first(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "s", memory_bytes=300 << 20)
    worker.greet()
    worker.wait_for("worker_ready", 1)
    proc = Path(f"/proc/{worker.process.pid}")
    (line,) = (line for line in (proc / "limits").read_text().splitlines() if line.startswith("Max address space"))
    assert line.split()[3] == str(300 << 20)
    assert (proc / "oom_score_adj").read_text().strip() == str(OOM_SCORE)
    assert worker.end()[0] == DONE


def test_without_a_limit_there_is_none(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "s")
    worker.wait_for("worker_ready", 1)
    limits = Path(f"/proc/{worker.process.pid}/limits").read_text()
    assert "Max address space         unlimited" in limits
    assert worker.end()[0] == DONE


def test_a_lower_limit_from_outside_stays() -> None:
    program = (
        "import resource as r; from capture.worker_memory import limit_address_space as limit;"
        "r.setrlimit(r.RLIMIT_AS, (1 << 30, 2 << 30)); limit(3 << 30); print(*r.getrlimit(r.RLIMIT_AS));"
        "limit(1 << 29); print(*r.getrlimit(r.RLIMIT_AS))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(1 << 30), str(2 << 30), str(1 << 29), str(2 << 30)]


def test_a_score_that_cannot_be_raised_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        offer_to_the_oom_killer(tmp_path / "none" / "oom_score_adj")
    assert [record.getMessage() for record in caplog.records] == ["oom_score_adj cannot be raised"]


def test_the_default_limit_leaves_room_for_what_the_worker_may_hold(tmp_path: Path) -> None:
    """An idle worker's address space, all open bodies, what waits for the store, and one message of the largest size in
    its parts, joined, and parsed: 16 times as large where it is all empty strings (test_hostile[million-strings])."""
    config = worker_config(Settings((Listener(listen="127.0.0.1:1", upstream="127.0.0.1:2"),)), "run")
    worker = Worker(tmp_path / "s", memory_bytes=config.memory_bytes)
    worker.greet()
    worker.wait_for("store_writes", 1)
    idle = worker.memory("VmSize")
    assert worker.end()[0] == DONE
    assert idle < 128 << 20
    limits = config.limits
    assert idle + limits.open_bytes + 2 * (64 << 20) + 18 * limits.request_bytes < config.memory_bytes


def test_a_worker_elsewhere_has_no_limit_of_its_own() -> None:
    listeners = (Listener(listen="127.0.0.1:1", upstream="127.0.0.1:2"),)
    elsewhere = Settings(listeners, capture=Capture(worker_socket="/run/warmtap/worker.sock"))
    assert worker_config(elsewhere, "run").memory_bytes == 0


@pytest.mark.parametrize("where", [READ, APPLY])
def test_an_allocation_without_bound_ends_it_cleanly(tmp_path: Path, where: str) -> None:
    path = tmp_path / "s"
    worker = Worker(path, memory_bytes=300 << 20, shed_lag=0.0, program=patched(GROW, where))
    worker.greet()
    sent = post_until_it_ends(worker)
    code, text = worker.end()
    assert code == OUT_OF_MEMORY, text
    assert text.count("level=error") == 1
    assert 'level=error process=worker msg="out of memory" limit=314572800' in text
    assert "Traceback" not in text
    # Nothing that is wrong: what is stored is whole, and no more than was sent.
    assert stored(path) < sent
    again = Worker(path)
    again.greet()
    again.wait_for("worker_ready", 1)
    assert again.end()[0] == DONE


def test_near_its_limit_it_writes_what_it_has_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "s"
    limit = 300 << 20
    worker = Worker(path, memory_bytes=limit, shed_lag=0.0, program=patched(GROW_SOME))
    worker.greet()
    post_until_it_ends(worker, 4 << 20)
    code, text = worker.end()
    assert code == DONE, text
    assert worker.counters.total()["worker_limit_restarts"] == 1
    assert 'level=warning process=worker msg="memory limit near, ending" resident=' in text
    assert MEMORY_SHARE * limit < int(text.split("resident=")[1].split()[0]) < limit
    # All that it had read is there.
    assert stored(path) == worker.counters.total()["requests_proven"] > 10


def test_gauges_show_what_is_open_and_are_nothing_at_the_end(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "s")
    worker.greet()
    half = b"POST /api/predict/rank HTTP/1.1\r\nHost: m\r\nContent-Length: 2000000\r\n\r\n" + bytes(1_000_000)
    worker.send(*(Flow(number, listener=1).client(half) for number in (1, 2, 3)))
    until(lambda: worker.counters.total()["worker_open_flows"] == 3, "three open flows")
    until(lambda: 3_000_000 <= worker.counters.total()["worker_open_bytes"] < 3_100_000, "three million bytes")
    until(
        lambda: abs(worker.counters.total()["worker_memory_bytes"] - worker.memory("VmRSS")) < 4 << 20,
        "the resident memory",
    )
    assert worker.counters.total()["worker_lag_us"] == 0
    gauges = {
        name
        for name in worker.counters.total()
        if name.startswith("worker_") and name not in worker.counters.snapshot()
    }
    assert worker.end()[0] == DONE
    assert gauges == {"worker_lag_us", "worker_memory_bytes", "worker_open_flows", "worker_open_bytes"}
    assert [worker.counters.total()[name] for name in gauges] == [0, 0, 0, 0]


def test_the_lag_is_that_of_the_batch_being_read(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "s", shed_lag=0.0, program=patched(SLOW))
    worker.greet()
    worker.wait_for("worker_ready", 1)
    # A batch of 100 s ago, which takes some seconds to read.
    then = time.monotonic_ns() - 100 * 10**9
    worker.socket.sendall(encode([(tap.TIME, 0, 0, tap.TIME_PAYLOAD.pack(then, time.time_ns()))]))
    flow = Flow(1, listener=1)
    for _ in range(500):
        flow.post("/api/predict/rank", eas({"x": [1.0] * 1000}))
    worker.send(flow)
    until(lambda: worker.counters.total()["worker_lag_us"] > 100 * 10**6, "a lag of 100 s")
    worker.wait_for("requests_observed", 500)
    until(lambda: worker.counters.total()["worker_lag_us"] == 0, "no lag")
    assert worker.end()[0] == DONE


def test_what_the_tap_may_hold_is_told_to_the_worker() -> None:
    config = worker_config(Settings((Listener(listen="127.0.0.1:1", upstream="127.0.0.1:2"),)), "run")
    assert (config.tap_bytes, config.tap_frames) == (64 << 20, 16384)
    assert WorkerConfig("s", "r", ()).tap_bytes == 0
