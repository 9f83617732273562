"""A sidecar that speaks TLS, under load, and what is done to it: new certificates, a successor, a stop."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capture.counters import Counters
from tests.proxy.test_sidecar_life import DOUBLE, settings
from tests.support.certificates import Authority
from tests.support.net_grpc import GrpcLoad, grpc_server
from tests.support.net_http import Echo, Load, echo_server
from tests.support.net_sidecar import Sidecar
from tests.support.net_tls import TlsSocket, client_context, server_context
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def secured(port: int, authority: Authority) -> TlsSocket:
    return TlsSocket(socket.create_connection(("127.0.0.1", port), PATIENCE), client_context(authority.ca), "127.0.0.1")


def serial(port: int, authority: Authority) -> str:
    """Of the certificate that a new connection sees."""
    with secured(port, authority) as sock:
        found = sock.object.getpeercert()
        assert found is not None
        return str(found["serialNumber"])


def closed(counters: Counters) -> dict[str, int]:
    """Flows that ended, by reason."""
    prefix = "flows_closed_"
    return {name.removeprefix(prefix): n for name, n in counters.snapshot().items() if name.startswith(prefix) and n}


def test_certificates_and_the_sidecar_itself_are_replaced_under_load(tmp_path: Path, authority: Authority) -> None:
    """Some clients keep a connection for a while, some never do, and a gRPC channel stays open: no request fails and no
    connection is refused."""
    tls = authority.issue("relay")._asdict()
    with echo_server() as http_model, grpc_server() as grpc_model, contextlib.ExitStack() as stack:

        def config(http_port: int, grpc_port: int) -> str:
            return settings(
                tmp_path,
                "",
                listeners=[
                    {"listen": f"127.0.0.1:{http_port}", "upstream": http_model, "tls": tls},
                    {"listen": f"127.0.0.1:{grpc_port}", "upstream": grpc_model, "tls": tls},
                ],
                # Longer than a client of these ever thinks.
                relay={"drain_delay": 0, "drain_quiet": 2, "shutdown_timeout": 6},
                takeover_socket=str(tmp_path / "takeover"),
            )

        old = stack.enter_context(Sidecar("--config", config(0, 0), cwd=tmp_path, module=DOUBLE))
        ports = old.ready()
        later = config(*ports)
        seen = {serial(ports[0], authority)}
        with GrpcLoad(ports[1], Path(authority.ca).read_bytes()) as calls:
            with Load(ports[0], context=client_context(authority.ca), each=5) as load:
                for turn in range(3):
                    authority.issue("relay")
                    old.process.send_signal(signal.SIGHUP)
                    old.wait_for('msg="settings reloaded"', turn + 1)
                    while len(seen) < turn + 2:
                        seen.add(serial(ports[0], authority))
                    load.more(20)
                    calls.more(5)
                until((tmp_path / "takeover").exists)
                counters = old.counters()
                successor = stack.enter_context(Sidecar("--config", later, "--take-over", cwd=tmp_path, module=DOUBLE))
                successor.wait_for("taken over")
                load.more(10)
                # The channel is served by the old one still.
                calls.more(5)
            with calls.resting():
                assert old.process.wait(PATIENCE) == 0
            calls.more(5)
            assert not load.failures
            assert not calls.failures
        # Clients that leave tickets unread reset; and the channel may have had a frame of its own to send after its
        # last answer, which makes it look busy to the end.
        assert set(closed(counters)) <= {"finished", "client_reset", "drained", "shutdown"}


class Halting:
    """A socket that sends half of what it is first given, and then waits."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.halted, self.go = threading.Event(), threading.Event()

    def sendall(self, data: bytes) -> None:
        if not self.halted.is_set():
            self.sock.sendall(data[: len(data) // 2])
            data = data[len(data) // 2 :]
            self.halted.set()
            self.go.wait(PATIENCE)
        self.sock.sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


@pytest.fixture
def answer() -> threading.Event:
    """Lets the model server answer a GET."""
    return threading.Event()


@pytest.fixture
def model(authority: Authority, answer: threading.Event) -> Iterator[str]:
    """It speaks TLS: its session tickets alone are longer than what counts as an answer."""

    class Slow(Echo):
        def do_GET(self) -> None:
            answer.wait(PATIENCE)
            self.do_POST()

    with echo_server(Slow, context=server_context(authority.issue("model"))) as address:
        yield address


def request(sock: TlsSocket, method: bytes) -> int:
    """Send one; its bytes."""
    sent = method + b" / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"
    sock.sendall(sent)
    return len(sent)


def answered(sock: TlsSocket) -> bool:
    """Whether the answer to it comes, whole."""
    wanted, got = hashlib.sha256(b"body").hexdigest().encode(), b""
    while wanted not in got and (data := sock.recv(1000)):
        got += data
    return got.endswith(wanted)


def test_a_stop_closes_idle_tls_connections_and_waits_for_busy_ones(
    tmp_path: Path, authority: Authority, model: str, answer: threading.Event
) -> None:
    """What counts is what client and server said, not what TLS says itself: tickets are no answer, and a handshake that
    runs is somebody who waits."""
    listener = {
        "listen": "127.0.0.1:0",
        "upstream": model,
        "tls": authority.issue("relay")._asdict(),
        "upstream_tls": {"ca": authority.ca},
    }
    relay = {"drain_delay": 0, "drain_quiet": 0.05, "shutdown_timeout": 3600, "tls_handshake_timeout": 3600}
    config = settings(tmp_path, "", listeners=[listener], relay=relay)
    with Sidecar("--config", config, cwd=tmp_path, module=DOUBLE) as sidecar, contextlib.ExitStack() as stack:
        (port,) = sidecar.ready()
        counters = sidecar.counters()
        idle, unused, busy = (stack.enter_context(secured(port, authority)) for _ in range(3))
        silent, raw = (stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE)) for _ in range(2))
        sent = request(idle, b"POST") + request(busy, b"GET")
        assert answered(idle)
        halting = Halting(raw)
        stack.callback(halting.go.set)
        stack.callback(answer.set)
        late: list[bool] = []

        def shake_and_ask() -> None:
            sock = TlsSocket(halting, client_context(authority.ca), "127.0.0.1")  # type: ignore[arg-type]
            request(sock, b"POST")
            late.append(answered(sock))
            late.append(sock.recv(1) == b"")

        shaking = threading.Thread(target=shake_and_ask)
        shaking.start()
        assert halting.halted.wait(PATIENCE)
        until(lambda: counters.snapshot()["client_bytes"] == sent and counters.snapshot()["flows_opened"] == 5)
        sidecar.process.send_signal(signal.SIGTERM)
        # close_notify and FIN: the latter alone would raise.
        assert idle.recv(1) == b""
        assert unused.recv(1) == b""
        assert silent.recv(1) == b""
        until(lambda: closed(counters) == {"drained": 3})
        halting.go.set()
        shaking.join()
        assert late == [True, True]
        answer.set()
        assert answered(busy)
        assert busy.recv(1) == b""
        assert sidecar.process.wait(PATIENCE) == 0
        assert closed(counters) == {"drained": 5}


def resident(pid: int) -> int:
    """Bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_connections_that_come_and_go_leave_no_memory(tmp_path: Path, authority: Authority) -> None:
    """One that stayed would take 19 KB."""
    tls = authority.issue("relay")._asdict()
    context = client_context(authority.ca)
    with echo_server() as model:
        config = settings(tmp_path, "", listeners=[{"listen": "127.0.0.1:0", "upstream": model, "tls": tls}])
        with Sidecar("--config", config, cwd=tmp_path, module=DOUBLE) as sidecar:
            (port,) = sidecar.ready()
            counters = sidecar.counters()

            def come_and_go(times: int) -> int:
                goal = sum(closed(counters).values()) + times
                for _ in range(times):
                    TlsSocket(socket.create_connection(("127.0.0.1", port), PATIENCE), context, "127.0.0.1").close()
                until(lambda: sum(closed(counters).values()) == goal)
                return resident(sidecar.pid("relay"))

            first = come_and_go(200)
            assert come_and_go(500) - first < 3 << 20
