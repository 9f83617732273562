"""A worker that cannot keep up, behind a real relay under real traffic: it sheds exchanges, the tap loses nothing."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from capture.config import ListenerConfig
from capture.shedding import FILL_FULL
from capture.store.base import open_store
from proxy.deadlines import Deadlines
from tests.support.calls import eas
from tests.support.net_relay import RelayThread, server
from tests.support.net_sidecar import balanced
from tests.support.waiting import until
from tests.support.worker_process import Worker

pytestmark = pytest.mark.server

#: Bytes that may wait in the relay; far less than the traffic of a test.
TAP_BYTES = 4 << 20
SIGNATURES = 10
CONNECTIONS = 4
REQUESTS = 4000
BODIES = [eas({"x": [1.0] * 500}, outputs=[f"o{number}"]) for number in range(SIGNATURES)]
#: The real worker, in which understanding a request takes 5 ms: 200 requests a second.
SLOW = """
import sys, time
from capture import worker
from capture.dialects.eas_tensorflow import EasTensorFlow
read = EasTensorFlow.read
EasTensorFlow.read = lambda *about: (time.sleep(0.005), read(*about))[1]
sys.exit(worker.main())
"""


def model(sock: socket.socket) -> None:
    """Answers every POST of these lengths, with nothing."""
    sizes = {len(request(number)) for number in range(SIGNATURES)}
    assert len(sizes) == 1
    (size,) = sizes
    got = 0
    while data := sock.recv(1 << 20):
        got += len(data)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" * (got // size))
        got %= size


def request(number: int) -> bytes:
    body = BODIES[number]
    return b"POST /api/predict/rank HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def send(relay: RelayThread, count: int, seed: int, room: Callable[[], Any] = lambda: True) -> None:
    """Requests over one connection, each after the answer to the one before and once there is ``room`` for it, their
    signatures drawn at random."""
    draw = random.Random(seed)
    with relay.connect() as sock:
        for _ in range(count):
            until(room, "room in the tap")
            sock.sendall(request(draw.randrange(SIGNATURES)))
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200")


def flood(relay: RelayThread, room: Callable[[], Any] = lambda: True) -> None:
    senders = [
        threading.Thread(target=send, args=(relay, REQUESTS // CONNECTIONS, seed, room)) for seed in range(CONNECTIONS)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()


@contextmanager
def front(path: Path, *, shed_lag: float, tap_bytes: int = TAP_BYTES) -> Iterator[tuple[RelayThread, Worker]]:
    """A relay with a slow worker behind it; afterwards the worker has ended with 0."""
    with ExitStack() as stack:
        upstream = stack.enter_context(server(model))
        relay = RelayThread("uvloop", upstream, Deadlines(), tap_bytes=tap_bytes)
        stack.callback(relay.stop)
        worker = Worker(
            path,
            counters=relay.counters,
            program=SLOW,
            listeners=(ListenerConfig("eas"),),
            shed_lag=shed_lag,
            tap_bytes=tap_bytes,
        )
        worker.wait_for("worker_ready", 1)
        relay.attach(worker.socket)
        yield relay, worker
        relay.call(relay.tap.drain(60))
        relay.call(_detach(relay))
        code, text = worker.end()
        assert code == 0, text


async def _detach(relay: RelayThread) -> None:
    relay.tap.detach()


def signatures(path: Path) -> set[str]:
    with closing(open_store(str(path))) as store:
        return {(row.signature.outputs or ("",))[0] for row in store.signatures()}


def done(worker: Worker) -> int:
    counted = worker.counters.snapshot()
    return counted["requests_shed"] + counted["requests_observed"]


@pytest.mark.parametrize(
    ("shed_lag", "tap_bytes"), [(3600.0, TAP_BYTES), (0.1, 64 << 20)], ids=["by the buffer", "by the lag"]
)
def test_it_sheds_exchanges_and_the_tap_loses_nothing(tmp_path: Path, shed_lag: float, tap_bytes: int) -> None:
    with front(tmp_path / "store", shed_lag=shed_lag, tap_bytes=tap_bytes) as (relay, worker):
        # As fast as goes, but never so far ahead of the worker that the relay begins to leave flows out: how soon a
        # worker gets a core is not what is shown here. Far enough that it has to shed.
        flood(relay, lambda: relay.tap.queued_bytes < TAP_BYTES * FILL_FULL)
        until(lambda: done(worker) >= REQUESTS, "every request read or shed")
        counted = worker.counters.snapshot()
        assert counted["requests_shed"] > 0
        assert counted["requests_observed"] + counted["requests_shed"] == REQUESTS
        until(lambda: balanced(worker.counters.snapshot()), "every byte read")
        for name, value in worker.counters.snapshot().items():
            if name.startswith(("tap_lost", "flows_un", "flows_blind", "requests_lost", "requests_missed")):
                assert value == 0, name

        # Caught up: it reads every request again.
        def read_in_full() -> bool:
            shed, before = worker.counters.snapshot()["requests_shed"], done(worker)
            send(relay, 10, 99)
            until(lambda: done(worker) >= before + 10, "ten more requests")
            return worker.counters.snapshot()["requests_shed"] == shed

        until(read_in_full, "ten requests of which none is shed")
    assert signatures(tmp_path / "store") == {f"o{number}" for number in range(SIGNATURES)}


def test_without_shedding_the_same_traffic_costs_bytes(tmp_path: Path) -> None:
    with front(tmp_path / "store", shed_lag=0.0) as (relay, worker):
        flood(relay)
        assert relay.count("tap_lost_client_bytes") > 0
        assert relay.count("requests_shed") == 0
        worker.process.kill()
        worker.process.wait()
        worker.process.returncode = 0
