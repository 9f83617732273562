"""``capture proxy`` as three processes: any of them may be killed or stopped, and no client notices."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.counters import Counters
from proxy import control, relay_main
from proxy.address import Address
from proxy.keeping import Backoff
from proxy.listening import Listening
from proxy.logs import LineSink
from proxy.relay_main import RelayConfig
from proxy.settings import from_data
from proxy.supervisor import Supervisor
from proxy.watch import LOSSES, STARTS, CaptureWatch, summary
from tests.support import net_sidecar
from tests.support.net_http import Load, echo_server
from tests.support.net_relay import receive_all, receive_until_end, server
from tests.support.net_sidecar import Sidecar, wait_gone
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server
DOUBLE = "tests.support.net_sidecar_main"


@pytest.fixture
def model() -> Iterator[str]:
    """Address of a real HTTP/1.1 server."""
    with echo_server() as address:
        yield address


def settings_file(tmp_path: Path, upstream: str, shutdown: float = 0, tap_bytes: int = 64 << 20) -> str:
    path = tmp_path / "settings.yaml"
    path.write_text(
        f"listeners: [{{listen: '127.0.0.1:0', upstream: '{upstream}'}}]\n"
        f"relay: {{drain_delay: 0, shutdown_timeout: {shutdown}}}\ntap: {{buffer_bytes: {tap_bytes}}}\n"
    )
    return str(path)


def balanced(sidecar: Sidecar) -> dict[str, int]:
    """The counters, once every relayed byte is read or lost."""
    counters = sidecar.counters()
    os.close(counters.fd)

    def even() -> bool:
        now = counters.snapshot()
        return net_sidecar.balanced(now) and min(now["client_bytes"], now["server_bytes"]) > 0

    try:
        until(even)
    except AssertionError:
        raise AssertionError(f"no balance: {counters.snapshot()}") from None
    return counters.snapshot()


def test_several_listeners_a_ready_line_and_a_clean_stop(tmp_path: Path, model: str) -> None:
    pair = ("--listen", "127.0.0.1:0", "--upstream", model)
    with Sidecar(*pair, *pair, cwd=tmp_path, module=DOUBLE) as sidecar:
        ports = sidecar.ready()
        assert len(set(ports)) == 2
        for port in ports:
            with Load(port) as load:
                load.more(20)
        assert balanced(sidecar)["tap_lost_client_bytes"] == 0
        assert sidecar.stop(signal.SIGINT) == 0
    assert not [line for line in sidecar.lines if "level=error" in line]


def test_with_the_real_worker(tmp_path: Path, model: str) -> None:
    with Sidecar("--listen", "127.0.0.1:0", "--upstream", model, "--store", "s.sqlite", cwd=tmp_path) as sidecar:
        with Load(sidecar.ready()[0]) as load:
            load.more(50)
        assert balanced(sidecar)["tap_lost_client_bytes"] == 0
    assert (tmp_path / "s.sqlite").exists()


def test_killing_the_worker_fails_no_request_and_capture_resumes(tmp_path: Path, model: str) -> None:
    """A dead worker (EPIPE each turn) costs no request; what it missed is counted to the byte."""
    with Sidecar("--config", settings_file(tmp_path, model), cwd=tmp_path, module=DOUBLE) as sidecar:
        with Load(sidecar.ready()[0]) as load:
            for start in (1, 2, 3):
                before = balanced_later(sidecar)
                load.more()
                until(lambda before=before: balanced_later(sidecar) > before)  # type: ignore[misc]
                os.kill(sidecar.pid("worker", start), signal.SIGKILL)
                load.more()
                sidecar.pid("worker", start + 1)
            read = balanced_later(sidecar)
            load.more()
        now = balanced(sidecar)
        assert now["tap_detached"] == 3
        assert now["worker_starts"] == 4
        assert now["tap_client_bytes"] > read
        assert not load.failures
    assert not [line for line in sidecar.lines if "offset" in line]


def balanced_later(sidecar: Sidecar) -> int:
    """Client bytes read so far."""
    counters = sidecar.counters()
    os.close(counters.fd)
    return counters.snapshot()["tap_client_bytes"]


def test_a_stopped_worker_fails_no_request_and_loses_exactly(tmp_path: Path, model: str) -> None:
    """A stopped worker: the buffer fills, bytes are lost and counted, and capture goes on when it does."""
    with Sidecar("--config", settings_file(tmp_path, model), cwd=tmp_path, module=DOUBLE) as sidecar:
        with Load(sidecar.ready()[0]) as load:
            load.more()
            worker = sidecar.pid("worker")
            os.kill(worker, signal.SIGSTOP)
            counters = sidecar.counters()
            os.close(counters.fd)
            until(lambda: counters.snapshot()["tap_lost_client_bytes"] > 1_000_000 or load.failures)
            load.more()
            os.kill(worker, signal.SIGCONT)
            load.more()
        now = balanced(sidecar)
        assert (now["tap_detached"], now["worker_starts"]) == (0, 1)
        assert not load.failures
    assert not [line for line in sidecar.lines if "offset" in line]


def test_killing_the_relay_refuses_no_connection(tmp_path: Path, model: str) -> None:
    """The listener outlives the relay: a new connection waits in the backlog for the next one."""
    with Sidecar("--config", settings_file(tmp_path, model), cwd=tmp_path, module=DOUBLE) as sidecar:
        (port,) = sidecar.ready()
        with Load(port) as load:
            load.more(50)
        os.kill(sidecar.pid("relay"), signal.SIGKILL)
        for _ in range(20):
            with Load(port) as load:
                load.more(2)
            assert not load.failures
        sidecar.pid("worker", 2)
        until(lambda: balanced_later(sidecar) > 0)
        with Load(port) as load:
            load.more(50)
        assert balanced(sidecar)["relay_starts"] == 2


def test_killing_the_supervisor_ends_both_children(tmp_path: Path, model: str) -> None:
    """PR_SET_PDEATHSIG. They are stopped, or they would end by themselves when they hear no supervisor any more."""
    with Sidecar("--config", settings_file(tmp_path, model), cwd=tmp_path, module=DOUBLE) as sidecar:
        sidecar.ready()
        children = sidecar.pid("relay"), sidecar.pid("worker")
        counters = sidecar.counters()
        until(lambda: counters.snapshot()["worker_ready"], "both to run their programs")
        for pid in children:
            os.kill(pid, signal.SIGSTOP)
        sidecar.process.kill()
        sidecar.process.wait(PATIENCE)  # not stop(): the children hold its pipes until they are gone
        try:
            for pid in children:
                wait_gone(pid)
        finally:
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_a_stop_lets_flows_finish_and_resets_the_rest(tmp_path: Path) -> None:
    asked = threading.Event()
    answer = threading.Event()

    def handle(sock: socket.socket) -> None:
        sock.recv(10)
        asked.set()
        answer.wait(PATIENCE)
        sock.sendall(b"late answer")

    with server(handle) as upstream:
        config = settings_file(tmp_path, str(upstream), 5)
        with Sidecar("--config", config, cwd=tmp_path, module=DOUBLE) as sidecar:
            (port,) = sidecar.ready()
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
                client.sendall(b"?")
                asked.wait(PATIENCE)
                sidecar.process.send_signal(signal.SIGTERM)
                sidecar.wait_for("msg=stopping")
                answer.set()
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == b"late answer"
            assert sidecar.process.wait(PATIENCE) == 0


def test_a_slow_reader_of_64_mb_costs_the_relay_little_memory(tmp_path: Path) -> None:
    """Memory per flow is bounded whatever the body's size: the resident set of the relay process."""
    body = b"x" * (64 << 20)
    with server(lambda sock: sock.sendall(body)) as upstream:
        config = settings_file(tmp_path, str(upstream), tap_bytes=1 << 20)
        with Sidecar("--config", config, cwd=tmp_path, module=DOUBLE) as sidecar:
            (port,) = sidecar.ready()
            relay = sidecar.pid("relay")
            before = resident(relay)
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
                counters = sidecar.counters()
                os.close(counters.fd)
                seen = -1
                while seen != (seen := counters.snapshot()["server_bytes"]) or not seen:
                    threading.Event().wait(0.2)  # until the server is held back
                held = resident(relay) - before
                got, _ = receive_until_end(client)
            assert len(got) == len(body)
            # One chunk on the way, and the tap's buffer of 1 MiB; 64 MB would be the body.
            assert held < 12 << 20, held
            assert resident(relay) - before < 16 << 20


def resident(pid: int) -> int:
    """Bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def test_an_unread_stderr_stops_nobody(tmp_path: Path, model: str) -> None:
    """Logging blocks: with stderr a full pipe that nobody reads, the sidecar serves, restarts a worker, and stops."""
    port = free_port()
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"\n" * 4096)
    os.set_blocking(write, True)
    sidecar = Sidecar("--listen", f"127.0.0.1:{port}", "--upstream", model, cwd=tmp_path, stderr=write)

    def serves() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        return False

    until(serves)
    with Load(port) as load:
        load.more(100)
        counters = sidecar.counters()
        os.close(counters.fd)
        for pid in children(sidecar.process.pid, "capture.worker"):
            os.kill(pid, signal.SIGKILL)
        until(lambda: counters.snapshot()["worker_starts"] == 2)
        load.more(100)
    assert not load.failures
    assert sidecar.stop() == 0
    os.close(read)
    os.close(write)


def children(parent: int, word: str) -> list[int]:
    pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in pids if word in Path(f"/proc/{pid}/cmdline").read_text()]


def test_an_address_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with Sidecar("--listen", address, "--upstream", "127.0.0.1:1", cwd=tmp_path) as sidecar:
            assert sidecar.process.wait(PATIENCE) == 1
    assert sidecar.lines == [f"capture proxy: cannot listen on {address}: Address already in use"]


class StopWhen(logging.Handler):
    """Stops a supervisor in this process at a log line; keeps all of them."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self.supervisor: Supervisor | None = None
        self.seen: list[logging.LogRecord] = []
        self._message = message

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record)
        if record.getMessage() == self._message:
            assert self.supervisor is not None
            self.supervisor._on_stop(True)

    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.seen]


async def test_a_relay_that_dies_before_it_is_ready_died_and_was_not_late() -> None:
    lines, log = StopWhen("relay died"), logging.getLogger("supervisor")
    log.addHandler(lines)
    lines.supervisor = Supervisor(
        from_data({"listeners": [{"listen": "127.0.0.1:0", "upstream": "127.0.0.1:1"}]}),
        listening=[Listening.bind(Address("127.0.0.1", 0))],
        counters=Counters.create(),
        sink=LineSink(),
        run="run",
        relay_command=(sys.executable, "-c", "raise SystemExit(3)"),
        worker_command=(sys.executable, "-c", ""),
    )
    try:
        assert await lines.supervisor.run() == 0
    finally:
        log.removeHandler(lines)
    (died,) = [record for record in lines.seen if record.getMessage() == "relay died"]
    assert died.fields["status"] == 3  # type: ignore[attr-defined]
    assert "relay is not ready in time" not in lines.messages()


async def test_a_tap_message_without_its_descriptor_does_not_stop_the_relay(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    counters, loop, thresholds = Counters.create(), asyncio.get_running_loop(), gc.get_threshold()
    relay = loop.create_task(relay_main.run(RelayConfig(generation=0, listeners=()), theirs, counters))
    try:
        async with asyncio.timeout(PATIENCE):
            assert await loop.sock_recv(ours, 64) == control.READY
            ours.send(control.TAP)
            reader, writer = socket.socketpair()
            with reader, writer:
                reader.setblocking(False)
                socket.send_fds(ours, [control.TAP], [writer.fileno()])
                assert await loop.sock_recv(reader, 1)
                ours.send(control.DRAIN)
                await relay
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
        ours.close()
        theirs.close()
    assert [record.getMessage() for record in caplog.records] == ["control message without use"]


def test_a_capture_that_does_not_run_is_said_and_the_proxy_serves(tmp_path: Path, model: str) -> None:
    (tmp_path / "store").mkdir()
    with Sidecar("--listen", "127.0.0.1:0", "--upstream", model, "--store", "store", cwd=tmp_path) as sidecar:
        with Load(sidecar.ready()[0]) as load:
            load.more(20)
        sidecar.wait_for("capture is not running: see the worker's lines above")
    (line,) = [line for line in sidecar.lines if "capture summary" in line]
    assert "level=warning" in line
    assert re.search(r"flows_opened=[1-9]\d* requests_observed=0 .*tap_lost_client_bytes=[1-9].* worker_starts=", line)
    assert any("msg=ready" in line and line.endswith(" capture=starting") for line in sidecar.lines)


def test_a_run_without_losses_says_so_at_its_end(tmp_path: Path, model: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(
        f"listeners: [{{listen: '127.0.0.1:0', upstream: '{model}'}}]\nrelay: {{drain_delay: 0}}\n"
        "capture: {shed_lag: 0}\n"
    )
    with Sidecar("--config", str(path), cwd=tmp_path) as sidecar:
        (port,) = sidecar.ready()
        sidecar.wait_for("msg=reading")
        with Load(port) as load:
            load.more(20)
        assert balanced(sidecar)["worker_ready"] == 1
    (line,) = [line for line in sidecar.lines if "capture summary" in line]
    assert "level=info" in line
    assert re.search(r"requests_observed=[1-9]\d* requests_proven=0$", line)


def test_losses_are_said_once_a_minute_and_only_when_they_change() -> None:
    counters = Counters.create()
    watch = CaptureWatch(0.0)

    def look(now: float, reading: bool = True) -> list[tuple[str, dict[str, int]]]:
        return [(line.message, line.fields) for line in watch.look(now, reading, counters.snapshot())]

    for name in STARTS:
        counters.add(name)
    assert look(1) == look(60) == []
    counters.add("store_failures", 2)
    counters.add("worker_starts")
    assert look(61) == []
    assert look(120) == [("capture lost", {"store_failures": 2, "worker_starts": 2})]
    assert look(180) == look(240) == []
    counters.add("requests_missed")
    assert look(300) == [("capture lost", {"requests_missed": 1, "store_failures": 2, "worker_starts": 2})]
    assert summary(counters.snapshot()).fields["requests_missed"] == 1
    assert {*LOSSES, *STARTS} <= set(counters.snapshot())


def test_a_worker_that_does_not_read_is_said_once_each_time() -> None:
    zero = Counters.create().snapshot()
    watch = CaptureWatch(0.0)
    said = [(now, bool(watch.look(now, now in (15, 16), zero))) for now in range(40)]
    assert [now for now, spoken in said if spoken] == [10, 27]


def test_restarts_wait_longer_while_a_child_dies_quickly() -> None:
    backoff = Backoff()
    assert [backoff.after(1) for _ in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.after(60) == 0
    assert [backoff.after(1) for _ in range(2)] == [0, 0.5]
