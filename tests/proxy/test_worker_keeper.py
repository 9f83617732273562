"""When a worker is called stuck, and when it is killed."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from capture.counters import Counters
from proxy.configs import relay_config, worker_config
from proxy.keeping import Orders
from proxy.logs import LineSink
from proxy.pair import Pair
from proxy.settings import from_data
from proxy.worker_keeper import KILL_SECONDS, LOOK_LATE_SECONDS, STUCK_SECONDS, WorkerKeeper
from proxy.worker_socket import WorkerSocket
from proxy.worker_tap import WorkerTap


class Running:
    """In the place of a process: counts the kills."""

    pid = 7
    kills = 0

    def signal_kill(self) -> None:
        self.kills += 1


@pytest.fixture
def counters() -> Counters:
    return Counters.create()


@pytest.fixture
def worker() -> Running:
    return Running()


@pytest.fixture
def keeper(counters: Counters, worker: Running) -> WorkerKeeper:
    """Of a worker that reads, for which ten bytes wait."""
    settings = from_data({"listeners": [{"listen": "127.0.0.1:0", "upstream": "127.0.0.1:1"}]})
    orders = Orders(relay_config(settings), worker_config(settings, "run"))
    pair = Pair(0, sockets=[], orders=orders, counters=counters, sink=LineSink(), changed=lambda: None)
    pair.worker._child = worker  # type: ignore[assignment]
    counters.add("worker_ready")
    counters.add("client_bytes", 10)
    return pair.worker


def test_it_is_told_and_then_killed(keeper: WorkerKeeper, worker: Running, caplog: pytest.LogCaptureFixture) -> None:
    states, kills = {}, {}
    for now in range(int(KILL_SECONDS) + 3):
        keeper.look(float(now))
        states[now], kills[now] = keeper.state, worker.kills
    assert states[int(STUCK_SECONDS)] == "reading"
    assert states[int(STUCK_SECONDS) + 1] == "stuck"
    assert kills[int(KILL_SECONDS)] == 0
    assert kills[int(KILL_SECONDS) + 1] == kills[int(KILL_SECONDS) + 2] == 1
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        "worker does not read what waits for it",
        "worker is stuck; it is killed",
    ]


def test_one_that_reads_or_has_nothing_to_read_is_left_alone(
    keeper: WorkerKeeper, worker: Running, counters: Counters
) -> None:
    for now in range(100):
        counters.add("tap_frames")
        keeper.look(float(now))
        assert keeper.state == "reading"
    counters.add("tap_client_bytes", 4)
    counters.add("tap_lost_client_bytes", 6)
    for now in range(100, 200):
        keeper.look(float(now))
        assert keeper.state == "reading"
    assert worker.kills == 0


def test_a_supervisor_that_was_stopped_blames_nobody(keeper: WorkerKeeper, worker: Running) -> None:
    keeper.look(0.0)
    keeper.look(KILL_SECONDS + LOOK_LATE_SECONDS)
    assert (keeper.state, worker.kills) == ("reading", 0)


async def test_a_tap_that_no_worker_elsewhere_comes_for_is_given_up(
    keeper: WorkerKeeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.worker_keeper.HOLD_SECONDS", 0.01)
    keeper._held = held = WorkerTap(0)
    held.relay_end.setblocking(False)
    elsewhere = WorkerSocket(str(tmp_path / "worker.sock"))
    elsewhere.listen()
    loop = asyncio.get_running_loop()
    waiting = loop.create_task(keeper._next_link(elsewhere))
    assert await loop.sock_recv(held.relay_end, 1) == b""
    assert keeper._held is None
    assert not waiting.done()
    keeper._orders.stop.set()
    assert await waiting is None
    held.relay_end.close()
    elsewhere.close()
