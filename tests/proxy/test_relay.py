"""The relay on real sockets: what arrives is identical, and every trap that was measured has a test."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capture import tap
from proxy.address import Address
from proxy.deadlines import Deadlines
from proxy.upstream import UNIX_RETRY, Upstream
from tests.support.net_relay import (
    RelayThread,
    receive_all,
    receive_until_end,
    reset,
    server,
)
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server

Start = Callable[..., RelayThread]


@pytest.fixture(params=["uvloop", "asyncio"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    started: list[RelayThread] = []

    def one(upstream: Address, deadlines: Deadlines | None = None, max_connections: int = 1000) -> RelayThread:
        started.append(RelayThread(request.param, upstream, deadlines or Deadlines(), max_connections))
        return started[-1]

    yield one
    for relay in started:
        relay.stop()
        assert relay.errors == []


def closed_port() -> Address:
    return Address("127.0.0.1", free_port())


def send_in_pieces(sock: socket.socket, data: bytes, rng: random.Random) -> None:
    view = memoryview(data)
    while view:
        piece = rng.choice((1, 7, 100, 1460, 10_000, 300_000))
        sock.sendall(view[:piece])
        view = view[piece:]


@pytest.mark.parametrize("seed", range(6))
def test_both_directions_at_once_arrive_identical(start: Start, seed: int) -> None:
    rng = random.Random(seed)
    upload, download = (rng.randbytes(rng.choice((0, 1, 1000, 300_000, 3_000_000))) for _ in range(2))
    got: list[bytes] = []

    def handle(sock: socket.socket) -> None:
        sender = threading.Thread(target=send_in_pieces, args=(sock, download, random.Random(seed)))
        sender.start()
        got.append(receive_all(sock))
        sender.join()

    with server(handle) as upstream:
        relay = start(upstream)
        with relay.connect() as client:
            answer: list[bytes] = []
            reader = threading.Thread(target=lambda: answer.append(receive_all(client)))
            reader.start()
            send_in_pieces(client, upload, rng)
            client.shutdown(socket.SHUT_WR)
            reader.join()
        relay.ended("finished")
    assert (got, answer) == ([upload], [download])
    assert relay.count("client_bytes") == len(upload)
    assert relay.count("server_bytes") == len(download)


@pytest.mark.parametrize("slow", ["server", "client"])
def test_a_slow_reader_gets_64_mb_and_the_other_side_waits(start: Start, slow: str) -> None:
    """Backpressure: the sender is held back long before 64 MB are in the relay, and every byte arrives."""
    size = 64 << 20
    block = random.Random(0).randbytes(1 << 20)
    sent = [0]
    go = threading.Event()
    digests: list[str] = []

    def produce(sock: socket.socket) -> None:
        for _ in range(64):
            sock.sendall(block)
            sent[0] += len(block)
        sock.shutdown(socket.SHUT_WR)

    def consume(sock: socket.socket) -> None:
        go.wait(PATIENCE)
        digest = hashlib.sha256()
        while data := sock.recv(1 << 20):
            digest.update(data)
        digests.append(digest.hexdigest())

    with server(consume if slow == "server" else produce) as upstream:
        relay = start(upstream)
        with relay.connect() as client:
            other = threading.Thread(target=produce if slow == "server" else consume, args=(client,))
            other.start()
            seen = -1
            while seen != (seen := sent[0]) or not seen:  # until the sender is stuck
                threading.Event().wait(0.2)
            held = sent[0]
            go.set()
            other.join()
            if slow == "client":
                client.shutdown(socket.SHUT_WR)
            relay_done = "finished"
            if slow == "server":
                client.close()
            relay.ended(relay_done)
    assert held < size // 2
    assert digests == [hashlib.sha256(block * 64).hexdigest()]


def test_data_and_eof_that_arrive_before_the_upstream_is_connected(start: Start) -> None:
    """Data that arrives before the upstream is connected, with EOF right behind it: kept, replayed, nothing lost."""

    def handle(sock: socket.socket) -> None:
        data = receive_all(sock)
        sock.sendall(hashlib.sha256(data).digest())

    body = random.Random(1).randbytes(200_000)
    with server(handle) as upstream:
        relay = start(upstream)
        for _ in range(40):
            with relay.connect() as client:
                client.sendall(body)
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == hashlib.sha256(body).digest()
        relay.ended("finished", 40)


def test_an_early_answer_reaches_the_client(start: Start) -> None:
    """A server that answers 413 in mid-upload and closes: the answer is drained from the socket and delivered."""
    answer = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n"

    def handle(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(answer)
        sock.close()  # with the upload unread: RST

    got = []
    with server(handle) as upstream:
        relay = start(upstream)
        for _ in range(40):
            with relay.connect() as client:
                try:
                    for _ in range(200):
                        client.sendall(b"u" * 50_000)
                except ConnectionError:
                    pass
                got.append(receive_until_end(client)[0])
        until(lambda: relay.relay.connections == 0)
    assert got == [answer] * 40


def test_a_failing_server_is_a_reset_for_the_client(start: Start) -> None:
    """A cut response is a real reset: with FIN a close-delimited response would look complete."""

    def handle(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(b"HTTP/1.0 200 OK\r\n\r\nhalf of it")
        reset(sock)

    with server(handle) as upstream:
        relay = start(upstream)
        for _ in range(10):
            with relay.connect() as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                got, eof = receive_until_end(client)
                assert b"HTTP/1.0 200 OK\r\n\r\nhalf of it".startswith(got)
                assert not eof
        relay.ended("server_reset", 10)


def test_a_failing_client_is_a_reset_for_the_server(start: Start) -> None:
    """A client that resets: the server sees a reset, not the end of a request."""
    ends: list[bool] = []

    def handle(sock: socket.socket) -> None:
        ends.append(receive_until_end(sock)[1])

    with server(handle) as upstream:
        relay = start(upstream)
        client = relay.connect()
        client.sendall(b"POST")
        until(lambda: relay.count("client_bytes") == 4)
        reset(client)
        relay.ended("client_reset")
        until(lambda: ends)
    assert ends == [False]


def test_a_refusing_upstream_resets_the_client(start: Start) -> None:
    relay = start(closed_port())
    with pytest.raises(ConnectionResetError), relay.connect() as client:
        client.recv(1)
    relay.ended("connect_failed")


@contextlib.contextmanager
def silent() -> Iterator[Address]:
    """A server that never answers a connect: a full backlog drops SYNs."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield Address(*full.getsockname())


def test_a_silent_upstream_meets_the_connect_deadline(start: Start) -> None:
    """An upstream that never answers the connect: reset at the deadline."""
    with silent() as upstream:
        relay = start(upstream, Deadlines(connect=0.3))
        with pytest.raises(ConnectionResetError), relay.connect() as client:
            client.recv(1)
        relay.ended("connect_timeout")


def test_a_client_that_sends_before_the_upstream_is_connected_is_held_back(start: Start) -> None:
    """One chunk may come though reading is paused (on uvloop, up to 256,000 bytes); a body of 64 MB may not."""
    with silent() as upstream:
        relay = start(upstream, Deadlines(connect=0))
        with relay.connect() as client:
            client.setblocking(False)
            sent = 0
            while sent < 64 << 20 and select.select([], [client], [], 0.5)[1]:
                sent += client.send(b"x" * 65536)
            (flow,) = list(relay.relay._live)
            assert sum(map(len, flow._early)) <= 256_000
            assert sent < 64 << 20
        relay.call(relay.relay.stop(0))


def test_a_half_closed_flow_that_is_quiet_ends(start: Start) -> None:
    """Flows that never die: one side has ended and the other says nothing more."""
    done = threading.Event()
    with server(lambda _: done.wait(PATIENCE) and None) as upstream:
        relay = start(upstream, Deadlines(half_closed=0.3))
        with relay.connect() as client:
            client.sendall(b"x")
            client.shutdown(socket.SHUT_WR)
            assert receive_until_end(client) == (b"", False)
        relay.ended("half_closed_timeout")
        done.set()


def test_a_half_closed_flow_that_moves_lives_on(start: Start) -> None:
    def handle(sock: socket.socket) -> None:
        receive_all(sock)
        for _ in range(20):
            sock.sendall(b".")
            time.sleep(0.05)  # the pace under test

    with server(handle) as upstream:
        relay = start(upstream, Deadlines(half_closed=0.8))
        with relay.connect() as client:
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"." * 20
        relay.ended("finished")


def test_closing_with_unsent_data_ends(start: Start) -> None:
    """Flows that never die: both sides have ended, and the client does not read what is left in the relay."""
    relays: list[RelayThread] = []

    def handle(sock: socket.socket) -> None:
        assert receive_all(sock) == b""
        (flow,) = list(relays[0].relay._live)
        sent = 0
        # Until the kernel takes no more; less than would pause the reading, or the relay would not see the end.
        while not flow.client.transport.get_write_buffer_size():
            sock.sendall(b"d" * 8192)
            sent += 8192
            until(lambda sent=sent: relays[0].count("server_bytes") == sent)
        sock.shutdown(socket.SHUT_WR)
        receive_until_end(sock)

    with server(handle) as upstream:
        relays.append(relay := start(upstream, Deadlines(closing=0.3)))
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", relay.port))
            client.shutdown(socket.SHUT_WR)
            relay.ended("closing_timeout")
        until(lambda: relay.relay.connections == 0)


def test_the_first_byte_deadline(start: Start) -> None:
    done = threading.Event()
    with server(lambda _: done.wait(PATIENCE) and None) as upstream:
        relay = start(upstream, Deadlines(first_byte=0.2))
        with relay.connect() as client:
            client.sendall(b"x")
            assert receive_until_end(client) == (b"", False)
        relay.ended("first_byte_timeout")
        done.set()


def test_keep_alive_is_on_at_both_sides(start: Start) -> None:
    """Flows that never die: a vanished peer is found by SO_KEEPALIVE and TCP_USER_TIMEOUT."""
    with server(lambda sock: receive_all(sock) and None) as upstream:
        relay = start(upstream)
        with relay.connect():
            flow = until(lambda: next((f for f in list(relay.relay._live) if f.server.transport), None))
            for side in (flow.client, flow.server):
                sock = side.transport.get_extra_info("socket")
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_both_ends_are_closed_after_both_eofs(start: Start) -> None:
    """After EOF on both sides nothing closes by itself."""
    with server(lambda sock: receive_all(sock) and None) as upstream:
        relay = start(upstream)
        client = relay.connect()
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        relay.ended("finished")
        client.close()


def test_over_the_limit_a_client_is_accepted_and_reset(start: Start) -> None:
    with server(lambda sock: receive_all(sock) and None) as upstream:
        relay = start(upstream, max_connections=2)
        with relay.connect(), relay.connect():
            until(lambda: relay.relay.connections == 2)
            with pytest.raises(ConnectionResetError), relay.connect() as third:
                third.recv(1)
            relay.ended("limit")
        relay.ended("finished", 2)
        with relay.connect() as client:
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""


def test_a_stop_resets_what_remains(start: Start) -> None:
    with server(lambda sock: receive_until_end(sock) and None) as upstream:
        relay = start(upstream)
        with relay.connect() as client:
            until(lambda: relay.relay.connections == 1)
            relay.call(relay.relay.stop(0.1))
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        relay.ended("shutdown")


def closed_flows(relay: RelayThread) -> int:
    return sum(count for name, count in relay.counters.snapshot().items() if name.startswith("flows_closed_"))


def test_clients_that_reset_at_once_are_counted_once(start: Start) -> None:
    """The reset meets the connect to the server at every stage of it."""
    with server(lambda sock: receive_until_end(sock) and None) as upstream:
        relay = start(upstream)
        for number in range(400):
            client = relay.connect()
            if number % 2:
                client.sendall(b"x")
            reset(client)
        until(lambda: relay.count("flows_opened") == 400 and not relay.relay.connections)
        # A flow that would be counted again is at the latest when the next one is through.
        with relay.connect() as client:
            client.shutdown(socket.SHUT_WR)
            receive_until_end(client)
        until(lambda: closed_flows(relay) >= 401)
    assert closed_flows(relay) == relay.count("flows_opened") == 401


class LateUpstream(Upstream):
    """Connects at the moment when it is told not to."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self.asked, self.connected = threading.Event(), threading.Event()

    async def connect(self, loop: asyncio.AbstractEventLoop, factory: Callable[[], asyncio.Protocol]) -> None:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            # A transport that is made already is not unmade by a cancel.
            self._late = loop.create_task(super().connect(loop, factory))
            self._late.add_done_callback(lambda _: self.connected.set())
            raise


def test_a_server_that_accepts_after_the_flow_has_ended_is_counted_once(start: Start) -> None:
    ended = threading.Event()

    def handle(sock: socket.socket) -> None:
        assert receive_until_end(sock)[0] == b""
        ended.set()

    with server(handle) as address:
        relay = start(address)
        upstream = LateUpstream(address)
        listener = socket.create_server(("127.0.0.1", 0))
        relay.call(relay.relay.listen(listener, upstream))
        with socket.create_connection(listener.getsockname()[:2], PATIENCE):
            assert upstream.asked.wait(PATIENCE)
            relay.call(relay.relay.stop(0))
            assert upstream.connected.wait(PATIENCE)
            assert ended.wait(PATIENCE)
        relay.call(asyncio.sleep(0))
    assert (closed_flows(relay), relay.count("flows_opened")) == (1, 1)


def test_names_and_unix_sockets(start: Start, tmp_path: object) -> None:
    with server(lambda sock: sock.sendall(receive_all(sock))) as upstream:
        relay = start(Address("localhost", upstream.port))
        with relay.connect() as client:
            client.sendall(b"hi")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"hi"
    listener = socket.socket(socket.AF_UNIX)
    path = f"{tmp_path}/s"
    listener.bind(path)
    listener.listen()
    relay = start(Address("", 0, path))
    with listener, relay.connect() as client:
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"from unix")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"from unix"


def test_a_unix_socket_whose_backlog_is_full_is_tried_again(tmp_path: Path) -> None:
    """connect() says EAGAIN there, with nothing to wait for; a TCP one would wait in the kernel. (Plain asyncio takes
    it for a connection in progress, and the flow is dead: one of the reasons why it is for development only.)"""
    path = str(tmp_path / "model.sock")
    relay = RelayThread("uvloop", Address("", 0, path), Deadlines(), 1000)
    with socket.socket(socket.AF_UNIX) as model:
        model.settimeout(PATIENCE)
        model.bind(path)
        model.listen(0)
        full = False
        while not full:
            with socket.socket(socket.AF_UNIX) as filler:
                filler.setblocking(False)
                full = bool(filler.connect_ex(path))
        with relay.connect() as client:
            client.sendall(b"patient")
            client.shutdown(socket.SHUT_WR)
            until(lambda: relay.relay.connections == 1)
            relay.call(asyncio.sleep(5 * UNIX_RETRY))  # some attempts
            got = b""
            while not got:  # the fillers have ended and say nothing
                accepted, _ = model.accept()
                with accepted:
                    got = receive_all(accepted)
            assert got == b"patient"
            assert receive_all(client) == b""
        relay.ended("finished")
    relay.stop()
    assert relay.errors == []


def test_the_tap_sees_what_passes_in_causal_order(start: Start) -> None:
    """Order at the tap is causal: the append happens in the same callback as the write."""
    ours, theirs = socket.socketpair()
    with server(lambda sock: sock.sendall(receive_all(sock).upper())) as upstream, theirs:
        relay = start(upstream)
        relay.attach(ours)
        theirs.settimeout(PATIENCE)
        reader = tap.TapReader(theirs, relay.counters.slots)
        with relay.connect() as client:
            client.sendall(b"abc")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"ABC"
        frames: list[tap.Frame] = []
        while not any(kind == tap.CLOSED for kind, *_ in frames):
            frames += reader.read() or []
    about = [f for f in frames if f[1]]
    assert [kind for kind, *_ in about] == [
        *(tap.OPEN, tap.CLIENT, tap.EOF_CLIENT, tap.SERVER, tap.EOF_SERVER, tap.CLOSED),
    ]
    assert [f[3] for f in about[1:]] == [b"abc", b"", b"ABC", b"", b"finished"]
