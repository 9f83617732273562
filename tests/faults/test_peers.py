"""Clients and model servers that fail in every way, beside clients that must not notice."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from proxy.relay import RESERVED_DESCRIPTORS
from tests.faults.conftest import Start
from tests.support.few_descriptors import LIMIT
from tests.support.net_http import echo_server
from tests.support.net_relay import receive_until_end, reset, server
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server

#: Seconds of a new connection for each request.
CONNECTION_SECONDS = float(os.environ.get("FAULT_SECONDS", "60"))
IDLE = 10_000
_HOLD = """
import asyncio, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
async def hold(reader, writer):
    await reader.read()
    writer.close()
async def main():
    server = await asyncio.start_server(hold, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Accepts any number of connections and says nothing."""
    with subprocess.Popen([sys.executable, "-c", _HOLD], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def send(port: int, data: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    try:
        sock.sendall(data)
    except OSError:
        sock.close()
        raise
    return sock


def refused_by(port: int) -> bool:
    """Whether the connection is reset before a byte was read."""
    try:
        with send(port, REQUEST) as sock:
            return receive_until_end(sock) == (b"", False)
    except ConnectionError:
        return True


REQUEST = b"POST /x HTTP/1.1\r\nHost: m\r\nContent-Length: 1000\r\n\r\n"


def test_model_servers_that_refuse_reset_hang_and_half_close(start: Start) -> None:
    done = threading.Event()

    def resets(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\npart")
        reset(sock)

    def hangs(sock: socket.socket) -> None:
        sock.recv(1 << 20)
        done.wait(PATIENCE)

    def half_closes(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(b"HTTP/1.0 200 OK\r\n\r\nwhole")
        sock.shutdown(socket.SHUT_WR)
        receive_until_end(sock)

    refused = f"127.0.0.1:{free_port()}"
    with server(resets) as one, server(hangs) as two, server(half_closes) as three:
        relay = {"drain_delay": 0, "shutdown_timeout": 2}
        front = start(upstreams=(refused, str(one), str(three)), relay=relay)
        with front.unharmed():
            for _ in range(10):
                assert refused_by(front.ports[1])
                with send(front.ports[2], REQUEST) as sock:
                    said, clean = receive_until_end(sock)
                    assert (said.endswith(b"part"), clean) == (True, False)
                with send(front.ports[3], REQUEST) as sock:
                    assert receive_until_end(sock) == (b"HTTP/1.0 200 OK\r\n\r\nwhole", True)
        # In front of that one alone: on a busy machine any server may take half a second.
        patient = start(upstreams=(str(two),), relay=relay | {"first_byte_timeout": 0.5})
        with send(patient.ports[1], REQUEST) as sock:
            assert receive_until_end(sock) == (b"", False)
        done.set()
        assert front.count("flows_closed_connect_failed") == 10
        assert patient.count("flows_closed_first_byte_timeout") == 1
        assert front.count("flows_closed_server_reset") >= 10


def test_a_model_server_that_dies_and_returns(start: Start) -> None:
    port = free_port()
    front = start(upstreams=(f"127.0.0.1:{port}",))
    with front.unharmed():
        for _ in range(3):
            with contextlib.suppress(ConnectionError), send(front.ports[1], REQUEST) as sock:
                assert receive_until_end(sock) == (b"", False)
            with (
                echo_server(port=port),
                contextlib.closing(
                    http.client.HTTPConnection("127.0.0.1", front.ports[1], timeout=PATIENCE)
                ) as connection,
            ):
                connection.request("POST", "/", b"x")
                assert connection.getresponse().status == 200


def test_clients_that_vanish_in_mid_body_and_clients_that_speak_nonsense(start: Start) -> None:
    front = start()
    nonsense = [b"\x16\x03\x01\x02\x00" + os.urandom(200), os.urandom(500), b"GET / HTTP/9.9\r\n\r\n", b"\0" * 1000]
    with front.unharmed():
        for number in range(50):
            with send(front.port, REQUEST + b"x" * (number * 10)) as sock:
                if number % 2:
                    reset(sock)
            send(front.port, nonsense[number % 4]).close()
    # HTTP/1.1 servers answer some nonsense with 400: every connection ends, however.
    until(lambda: front.count("flows_open") == 0, "the end of all flows")
    until(lambda: front.count("flows_undecodable") >= 25)
    front.captures()


def test_slow_clients_take_no_more_than_their_connection(start: Start) -> None:
    front = start()
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(send(front.port, b"P")) for _ in range(500)]
        with front.unharmed():
            for byte in REQUEST[1:20]:
                for sock in slow:
                    sock.sendall(bytes([byte]))
        assert front.count("flows_open") >= 500
        for sock in slow:
            sock.sendall(REQUEST[20:] + b"x" * 1000)
        assert all(b" 200 " in sock.recv(4096) for sock in slow)


def test_ten_thousand_idle_connections(start: Start) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The relay has two descriptors for each. A hard limit of 20,000, as containers often have, leaves it 9,968.
    idle = min(IDLE, hard // 2 - 100)
    if idle < 9000:
        pytest.skip(f"{IDLE} connections need {2 * IDLE} descriptors, and the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with silent_server() as silent, contextlib.ExitStack() as stack:
            front = start(upstreams=(silent,))
            relay = front.sidecar.pid("relay")
            before = resident(relay)
            with front.unharmed():
                for number in range(idle):
                    # One address has 28,000 ports for both ends.
                    sock = socket.socket()
                    stack.enter_context(sock)
                    sock.bind((f"127.0.1.{number % 4 + 1}", 0))
                    sock.connect(("127.0.0.1", front.ports[1]))
                until(lambda: front.count("flows_open") >= idle, "all connections")
            each = (resident(relay) - before) / idle
            print(f"{each:.0f} bytes of the relay for each of {idle} idle connections")
            # A read buffer of 64 KiB for each would be 640 MB.
            assert each < 32 << 10
            assert front.count("flows_closed_limit") == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_storm_of_connections_is_accepted(start: Start) -> None:
    with silent_server() as silent, contextlib.ExitStack() as stack:
        front = start(upstreams=(silent,))
        with front.unharmed():
            for _ in range(2000):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", front.ports[1]))
            until(lambda: front.count("flows_opened") >= 2000, "all connections")
        assert front.count("flows_closed_connect_failed") == front.count("flows_closed_connect_timeout") == 0


def test_descriptors_never_run_out(start: Start) -> None:
    """Beyond what two descriptors each allow a client is accepted and reset; the others go on."""
    fit = (LIMIT - RESERVED_DESCRIPTORS) // 2
    with silent_server() as silent, contextlib.ExitStack() as stack:
        front = start("tests.support.few_descriptors", upstreams=(silent,))
        with front.unharmed():
            # Room is left for the clients beside.
            for _ in range(fit - 10):
                stack.enter_context(socket.create_connection(("127.0.0.1", front.ports[1]), timeout=PATIENCE))
            until(lambda: front.count("flows_open") >= fit - 10)
        over = [stack.enter_context(socket.socket()) for _ in range(100)]
        for sock in over:
            sock.settimeout(PATIENCE)
            with contextlib.suppress(ConnectionError):
                sock.connect(("127.0.0.1", front.ports[1]))
        until(lambda: front.count("flows_closed_limit") >= 90, "resets")
        assert front.count("flows_open") <= fit
        stack.close()
        until(lambda: front.count("flows_open") == 0, "the end of all flows")
        front.captures()
        assert front.count("relay_starts") == 1


def resident(pid: int) -> int:
    """Bytes."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_a_connection_for_each_request_at_full_speed(start: Start) -> None:
    # What waits for a worker that gets no CPU is no growth of the relay's own.
    front = start(tap={"buffer_bytes": 2 << 20})
    relay = front.sidecar.pid("relay")
    with front.unharmed(keep_alive=False) as clients:
        before, began = resident(relay), clients.answered
        stop = threading.Event()
        threading.Timer(CONNECTION_SECONDS, stop.set).start()
        stop.wait()
        assert not clients.failures
        print(f"{clients.answered - began} connections in {CONNECTION_SECONDS:g} s")
        grown = resident(relay) - before
    assert grown < 32 << 20, f"the relay grew by {grown} bytes"
    assert front.count("flows_closed_limit") == front.count("flows_closed_connect_failed") == 0
