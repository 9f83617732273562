"""TLS on either side of the relay, on real sockets: what it says arrives, and nothing else does."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import random
import shutil
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from capture import tap
from proxy.address import Address
from proxy.deadlines import Deadlines
from proxy.flow import Flow
from proxy.tls_contexts import RelayTls, RelayUpstreamTls, UpstreamContexts, listen_context
from tests.support.certificates import Authority, Issued
from tests.support.net_relay import RelayThread, receive_all, receive_until_end, reset, server
from tests.support.net_tls import TlsSocket, client_context, server_context
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server

#: Which sides speak TLS.
SIDES = {"clients": (True, False), "upstream": (False, True), "both": (True, True)}


class Pki(NamedTuple):
    """An authority that everybody trusts, a certificate of the relay and one of the model server."""

    authority: Authority
    relay: Issued
    server: Issued


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    authority = Authority(tmp_path_factory.mktemp("pki"))
    return Pki(authority, authority.issue("relay"), authority.issue("server"))


class Rig:
    """Relays with TLS on some sides, and the clients and servers that fit."""

    def __init__(self, loop: str, pki: Pki) -> None:
        self._loop = loop
        self._pki = pki
        self._relays: list[RelayThread] = []
        self.ca = pki.authority.ca

    def relay(
        self,
        upstream: Address,
        sides: tuple[bool, bool],
        *,
        deadlines: Deadlines | None = None,
        alpn: tuple[str, ...] = (),
        upstream_alpn: tuple[str, ...] = (),
        to: RelayUpstreamTls | None = None,
        client_ca: str = "",
        max_connections: int = 1000,
    ) -> RelayThread:
        tls, upstream_tls = sides
        to = to or RelayUpstreamTls(ca=self._pki.authority.ca, alpn=upstream_alpn)
        relay = RelayThread(
            self._loop,
            upstream,
            deadlines or Deadlines(),
            max_connections,
            tls=listen_context(RelayTls(*self._pki.relay, client_ca, alpn)) if tls else None,
            upstream_tls=UpstreamContexts(to, upstream, alpn) if upstream_tls else None,
        )
        self._relays.append(relay)
        return relay

    def client(
        self, relay: RelayThread, sides: tuple[bool, bool], *alpn: str, own: Issued | None = None
    ) -> socket.socket | TlsSocket:
        sock = relay.connect()
        if not sides[0]:
            return sock
        try:
            return TlsSocket(sock, client_context(self._pki.authority.ca, *alpn, own=own), "127.0.0.1")
        except BaseException:
            sock.close()
            raise

    def handler(
        self, sides: tuple[bool, bool], handle: Callable[..., None], *alpn: str, client_ca: str = ""
    ) -> Callable[[socket.socket], None]:
        """A server's handler, behind TLS where the sides say so."""
        if not sides[1]:
            return handle
        context = server_context(self._pki.server, *alpn, client_ca=client_ca)

        def secured(sock: socket.socket) -> None:
            with contextlib.suppress(ssl.SSLError):
                handle(TlsSocket(sock, context))

        return secured

    def stop(self) -> None:
        for relay in self._relays:
            relay.stop()
            assert relay.errors == []


@pytest.fixture
def loop() -> str:
    """asyncio's, for development, is tried where a test says so."""
    return "uvloop"


@pytest.fixture
def rig(loop: str, pki: Pki) -> Iterator[Rig]:
    made = Rig(loop, pki)
    yield made
    made.stop()


@pytest.fixture(params=list(SIDES.values()), ids=list(SIDES))
def sides(request: pytest.FixtureRequest) -> tuple[bool, bool]:
    found: tuple[bool, bool] = request.param
    return found


def echo_once(sock: socket.socket) -> None:
    """What came first, and the end."""
    sock.sendall(sock.recv(1000))
    sock.shutdown(socket.SHUT_WR)


def ask(sock: socket.socket | TlsSocket, request: bytes = b"request") -> bytes:
    """A request and what comes first. The kernel tells a reset once, to the call that follows it: either of the two."""
    sock.sendall(request)
    return sock.recv(1)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_both_directions_at_once_arrive_identical(rig: Rig, sides: tuple[bool, bool]) -> None:
    upload, download = (random.Random(seed).randbytes(3_000_000) for seed in (1, 2))
    got: list[bytes] = []

    def handle(sock: socket.socket) -> None:
        sender = threading.Thread(target=sock.sendall, args=(download,))
        if isinstance(sock, TlsSocket):
            # One OpenSSL object is not for two threads.
            sock.sendall(download)
            got.append(receive_all(sock))
        else:
            sender.start()
            got.append(receive_all(sock))
            sender.join()
        sock.shutdown(socket.SHUT_WR)

    with server(rig.handler(sides, handle)) as upstream:
        relay = rig.relay(upstream, sides)
        ours, theirs = socket.socketpair()
        relay.attach(theirs)
        reader = tap_reader(ours)
        with rig.client(relay, sides) as client:
            client.sendall(upload)
            client.shutdown(socket.SHUT_WR)
            answer = receive_all(client)
        relay.ended("finished")
    assert (got, answer) == ([upload], download)
    assert (relay.count("client_bytes"), relay.count("server_bytes")) == (len(upload), len(download))
    assert reader() == (upload, download)


def tap_reader(sock: socket.socket) -> Callable[[], tuple[bytes, bytes]]:
    """Read a tap in a thread; the result gives both directions once a flow has closed."""
    found: dict[int, list[bytes]] = {tap.CLIENT: [], tap.SERVER: []}
    done = threading.Event()

    def read() -> None:
        with sock:
            stream = sock.makefile("rb")
            while not done.is_set():
                kind, size, _, _ = tap.HEADER.unpack(stream.read(tap.HEADER.size))
                payload = stream.read(size)
                if kind in found:
                    found[kind].append(payload)
                elif kind == tap.CLOSED:
                    done.set()
            stream.close()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()

    def result() -> tuple[bytes, bytes]:
        assert done.wait(PATIENCE)
        thread.join()
        return b"".join(found[tap.CLIENT]), b"".join(found[tap.SERVER])

    return result


@pytest.mark.parametrize("slow", ["server", "client"])
def test_a_slow_reader_makes_the_other_side_wait(rig: Rig, sides: tuple[bool, bool], slow: str) -> None:
    block = random.Random(0).randbytes(1 << 20)
    blocks = 48
    sent = [0]
    go = threading.Event()
    digests: list[str] = []

    def produce(sock: socket.socket) -> None:
        for _ in range(blocks):
            sock.sendall(block)
            sent[0] += len(block)
        sock.shutdown(socket.SHUT_WR)

    def consume(sock: socket.socket) -> None:
        go.wait(PATIENCE)
        digest, left = hashlib.sha256(), blocks * len(block)
        while left:
            data = sock.recv(1 << 20)
            digest.update(data)
            left -= len(data)
        digests.append(digest.hexdigest())
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b""

    def first_hear(sock: socket.socket) -> None:
        produce(sock)
        receive_all(sock)

    with server(rig.handler(sides, consume if slow == "server" else first_hear)) as upstream:
        relay = rig.relay(upstream, sides)
        with rig.client(relay, sides) as client:
            other = threading.Thread(target=produce if slow == "server" else consume, args=(client,))
            other.start()
            seen = -1
            while seen != (seen := sent[0]) or not seen:  # until the sender is stuck
                threading.Event().wait(0.3)
            held = sent[0]
            go.set()
            other.join()
            if slow == "server":
                receive_all(client)
            relay.ended("finished")
    assert held < blocks * len(block) // 2
    assert digests == [hashlib.sha256(block * blocks).hexdigest()]


def test_a_close_delimited_answer_ends_with_close_notify(rig: Rig, sides: tuple[bool, bool]) -> None:
    answer = b"HTTP/1.0 200 OK\r\n\r\n" + b"a" * 100_000

    def handle(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(answer)
        sock.shutdown(socket.SHUT_WR)
        receive_until_end(sock)

    with server(rig.handler(sides, handle)) as upstream:
        relay = rig.relay(upstream, sides)
        for _ in range(10):
            with rig.client(relay, sides) as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                # Of TLS: FIN without close_notify would raise.
                assert receive_all(client) == answer
                client.shutdown(socket.SHUT_WR)
        relay.ended("finished", 10)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("how", ["reset", "fin"])
def test_a_cut_answer_never_looks_complete(rig: Rig, sides: tuple[bool, bool], how: str) -> None:
    """The server dies in mid-answer: a reset, or (TLS) FIN without close_notify."""
    if how == "fin" and not sides[1]:
        return  # in plaintext FIN is all that there is: it is complete

    def handle(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(b"HTTP/1.0 200 OK\r\n\r\nhalf of it")
        raw = sock.raw if isinstance(sock, TlsSocket) else sock
        if how == "reset":
            reset(raw)
        else:
            raw.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                while raw.recv(1000):
                    pass

    with server(rig.handler(sides, handle)) as upstream:
        relay = rig.relay(upstream, sides)
        for _ in range(5):
            with rig.client(relay, sides) as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
                    receive_all(client)
        until(lambda: relay.relay.connections == 0)


def test_a_client_that_sends_no_more_gets_its_answer(rig: Rig, sides: tuple[bool, bool]) -> None:
    """Half-close. A model server that speaks TLS and takes close_notify for the end of everything, as many do, is not
    told of a plaintext client's before it has answered."""
    body = random.Random(5).randbytes(200_000)

    def handle(sock: socket.socket) -> None:
        digest, size = hashlib.sha256(), 0
        while size < len(body):
            data = sock.recv(1 << 20)
            digest.update(data)
            size += len(data)
        raw = sock.raw if isinstance(sock, TlsSocket) else sock
        if isinstance(sock, TlsSocket) and not sides[0]:
            raw.settimeout(0.5)
            with pytest.raises(TimeoutError):  # neither close_notify nor FIN
                raw.recv(1)
            raw.settimeout(PATIENCE)
        sock.sendall(digest.digest())
        assert receive_all(sock) == b""
        sock.shutdown(socket.SHUT_WR)

    with server(rig.handler(sides, handle)) as upstream:
        relay = rig.relay(upstream, sides)
        with rig.client(relay, sides) as client:
            client.sendall(body)
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == hashlib.sha256(body).digest()
        relay.ended("finished")


@pytest.mark.parametrize("how", ["close_notify", "fin"])
def test_the_end_of_a_tls_client_passes_at_once(rig: Rig, how: str) -> None:
    """The server decides what it means, as it would without a relay; it has said nothing yet."""
    sides = SIDES["both"]
    ends: list[bytes] = []

    def handle(sock: TlsSocket) -> None:
        assert sock.recv(1000) == b"request"
        ends.append(sock.recv(1000))
        sock.sendall(b"answer")
        sock.shutdown(socket.SHUT_WR)

    with server(rig.handler(sides, handle)) as upstream:
        relay = rig.relay(upstream, sides)
        with rig.client(relay, sides) as client:
            assert isinstance(client, TlsSocket)
            client.sendall(b"request")
            (client if how == "close_notify" else client.raw).shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"answer"  # type: ignore[arg-type]
        relay.ended("finished")
    assert ends == [b""]


def test_who_leaves_an_http2_server_may_have_spoken_last(rig: Rig) -> None:
    """A GOAWAY, an acknowledgement: the server says no more, and its connection must not stay open."""
    sides = SIDES["upstream"]
    ends: list[bytes] = []

    def handle(sock: TlsSocket) -> None:
        assert sock.recv(1000) == b"request"
        sock.sendall(b"answer")
        assert sock.recv(1000) == b"goaway"
        ends.append(sock.recv(1000))
        sock.shutdown(socket.SHUT_WR)

    with server(rig.handler(sides, handle, "h2")) as upstream:
        relay = rig.relay(upstream, sides, upstream_alpn=("h2",))
        with rig.client(relay, sides) as client:
            client.sendall(b"request")
            assert client.recv(1000) == b"answer"
            client.sendall(b"goaway")
        relay.ended("finished")
    assert ends == [b""]


def test_what_follows_a_close_notify_is_dropped(rig: Rig) -> None:
    """Nothing may, and what nobody reads would be kept for ever."""
    sides = SIDES["clients"]
    go = threading.Event()

    def handle(sock: socket.socket) -> None:
        receive_all(sock)
        go.wait(PATIENCE)

    async def held(flow: Flow) -> int:
        assert flow.client.tls is not None
        return flow.client.tls._incoming.pending

    with server(handle) as upstream:
        relay = rig.relay(upstream, sides)
        with rig.client(relay, sides) as client:
            assert isinstance(client, TlsSocket)
            client.notify()
            client.raw.sendall(bytes(20 << 20))  # more than kernels hold: the relay read most of it
            (flow,) = relay.relay._live
            assert relay.call(held(flow)) < 64 << 10
            go.set()
            client.raw.shutdown(socket.SHUT_WR)
            receive_until_end(client.raw)


def test_a_flow_that_is_over_keeps_nothing(rig: Rig, sides: tuple[bool, bool]) -> None:
    """What OpenSSL has is given back at once: the collector of cycles knows nothing of its size, and comes late."""
    with server(rig.handler(sides, echo_once)) as upstream:
        relay = rig.relay(upstream, sides)
        gc.collect()
        gc.disable()
        try:
            with rig.client(relay, sides) as client:
                client.sendall(b"hello")
                until(lambda: relay.count("server_bytes") == 5)
                (flow,) = relay.relay._live
                ends = [weakref.ref(side.tls._object) for side in (flow.client, flow.server) if side.tls is not None]
                assert len(ends) == sum(sides)
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == b"hello"
            relay.ended("finished")
            del flow
            until(lambda: all(end() is None for end in ends))
        finally:
            gc.enable()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_client_that_vanishes_without_close_notify_ends_the_flow(rig: Rig, sides: tuple[bool, bool]) -> None:
    def handle(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(b"answer")
        receive_until_end(sock)

    with server(rig.handler(sides, handle)) as upstream:
        relay = rig.relay(upstream, sides)
        client = rig.client(relay, sides)
        client.sendall(b"request")
        assert client.recv(1000) == b"answer"
        client.close()
        until(lambda: relay.count("flows_opened") == 1 and relay.relay.connections == 0)


def test_an_early_answer_reaches_the_client(rig: Rig, sides: tuple[bool, bool]) -> None:
    """413 in mid-upload, then a close with the upload unread: what is left in the socket is decrypted and delivered."""
    answer = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n"

    def handle(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(answer)
        sock.close()

    got = []
    with server(rig.handler(sides, handle)) as upstream:
        relay = rig.relay(upstream, sides)
        for _ in range(20):
            with rig.client(relay, sides) as client:
                found = b""
                with contextlib.suppress(ConnectionError):
                    for _ in range(200):
                        client.sendall(b"u" * 50_000)
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    while data := client.recv(1000):
                        found += data
                got.append(found)
        until(lambda: relay.relay.connections == 0)
    assert got == [answer] * 20


@pytest.mark.parametrize(
    ("offered", "accepted", "fallback", "negotiated", "seen"),
    [
        (("h2", "http/1.1"), ("h2", "http/1.1"), (), "h2", "h2"),
        (("http/1.1",), ("h2", "http/1.1"), (), "http/1.1", "http/1.1"),
        (("h2", "http/1.1"), ("http/1.1",), (), "http/1.1", "http/1.1"),
        (("spdy/3",), ("h2",), (), None, None),
        ((), ("h2",), (), None, None),
        ((), ("h2",), ("h2",), None, "h2"),
    ],
)
def test_the_server_is_offered_what_the_client_negotiated(
    rig: Rig,
    offered: tuple[str, ...],
    accepted: tuple[str, ...],
    fallback: tuple[str, ...],
    negotiated: str | None,
    seen: str | None,
) -> None:
    """``accepted`` by the listener; the server would take either, http/1.1 first: what it sees is the one offer."""
    found: list[str | None] = []

    def handle(sock: TlsSocket) -> None:
        found.append(sock.object.selected_alpn_protocol())
        sock.sendall(receive_all(sock))
        sock.shutdown(socket.SHUT_WR)

    both = SIDES["both"]
    with server(rig.handler(both, handle, "http/1.1", "h2")) as upstream:
        relay = rig.relay(upstream, both, alpn=accepted, upstream_alpn=fallback)
        with rig.client(relay, both, *offered) as client:
            assert isinstance(client, TlsSocket)
            assert client.object.selected_alpn_protocol() == negotiated
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b""
    assert found == [seen]


def test_a_plaintext_client_has_the_protocol_of_the_settings_offered(rig: Rig) -> None:
    found: list[str | None] = []

    def handle(sock: TlsSocket) -> None:
        found.append(sock.object.selected_alpn_protocol())
        sock.shutdown(socket.SHUT_WR)

    sides = SIDES["upstream"]
    with server(rig.handler(sides, handle, "http/1.1", "h2")) as upstream:
        relay = rig.relay(upstream, sides, upstream_alpn=("h2",))
        with rig.client(relay, sides) as client:
            assert receive_all(client) == b""
    assert found == ["h2"]


# --- handshakes that fail ---


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\x05\xff\xff\xff\xff\xff"])
def test_garbage_instead_of_tls_is_a_reset_and_the_server_hears_nothing(rig: Rig, sent: bytes) -> None:
    connected: list[bool] = []
    sides = SIDES["clients"]
    with server(lambda _: connected.append(True)) as upstream:
        relay = rig.relay(upstream, sides)
        for _ in range(5):
            with relay.connect() as client:
                client.sendall(sent)
                got, eof = receive_until_end(client)
                assert not eof
                # The record type of an alert; OpenSSL sends none to who speaks HTTP.
                assert got[:1] == (b"" if sent.startswith(b"GET") else b"\x15")
        relay.ended("tls_failed", 5)
    assert connected == []


def test_a_probe_of_the_port_is_no_failure(rig: Rig) -> None:
    """A load balancer that connects and closes."""
    sides = SIDES["clients"]
    with server(lambda _: None) as upstream:
        relay = rig.relay(upstream, sides)
        relay.connect().close()
        relay.ended("finished")


def test_a_client_that_leaves_in_mid_handshake_is_a_failure(rig: Rig) -> None:
    sides = SIDES["clients"]
    with server(lambda _: None) as upstream:
        relay = rig.relay(upstream, sides)
        with relay.connect() as client:
            client.sendall(b"\x16\x03\x01")
        relay.ended("tls_failed")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_handshake_that_does_not_end_is_reset(rig: Rig) -> None:
    sides = SIDES["clients"]
    with server(lambda _: None) as upstream:
        relay = rig.relay(upstream, sides, deadlines=Deadlines(tls_handshake=0.2))
        # At any step: the client may be slower than the deadline.
        with pytest.raises(ConnectionError), relay.connect() as client:
            ask(client, b"\x16\x03\x01")
        relay.ended("tls_timeout")


def test_a_server_that_never_answers_the_handshake_is_a_connect_timeout(rig: Rig) -> None:
    sides = SIDES["upstream"]
    with server(lambda sock: (receive_until_end(sock), None)[1]) as upstream:
        relay = rig.relay(upstream, sides, deadlines=Deadlines(connect=0.3))
        with pytest.raises(ConnectionError), rig.client(relay, sides) as client:
            ask(client)
        relay.ended("connect_timeout")


def test_a_client_that_leaves_while_the_server_shakes_hands(rig: Rig) -> None:
    """Nothing is read from it meanwhile, so the deadline finds it."""
    sides = SIDES["upstream"]
    seen = threading.Event()

    def handle(sock: socket.socket) -> None:
        try:
            sock.recv(1)
        finally:
            seen.set()
        receive_until_end(sock)

    with server(handle) as upstream:
        relay = rig.relay(upstream, sides, deadlines=Deadlines(connect=0.5))
        client = relay.connect()
        client.sendall(b"request")
        assert seen.wait(PATIENCE)
        reset(client)
        relay.ended("connect_timeout")


@pytest.mark.parametrize("what", ["plaintext", "closes", "authority", "name"])
def test_a_server_that_is_not_what_it_should_be_is_a_reset(rig: Rig, pki: Pki, tmp_path: Path, what: str) -> None:
    """No byte of the client reaches it."""
    sides = SIDES["upstream"]
    got: list[bytes] = []

    def handle(sock: socket.socket) -> None:
        if what == "plaintext":
            sock.recv(1000)
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            receive_until_end(sock)
        elif what == "closes":
            sock.recv(1000)
        else:
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                got.append(receive_all(TlsSocket(sock, server_context(pki.server))))  # type: ignore[arg-type]

    to = {
        "authority": RelayUpstreamTls(ca=Authority(tmp_path, "other").ca),
        "name": RelayUpstreamTls(ca=pki.authority.ca, server_name="elsewhere.example"),
    }.get(what)
    with server(handle) as upstream:
        relay = rig.relay(upstream, sides, to=to)
        # The reset may come before the client knows that it is connected.
        with pytest.raises(ConnectionError), rig.client(relay, sides) as client:
            ask(client)
        relay.ended("tls_failed")
    assert b"".join(got) == b""


@pytest.mark.parametrize("known", [True, False])
def test_a_certificate_of_the_client(rig: Rig, pki: Pki, known: bool) -> None:
    """Asked for by the relay, and by the model server."""
    both = SIDES["both"]
    ca = pki.authority.ca
    own = pki.authority.issue("someone") if known else None
    to = RelayUpstreamTls(ca=ca, certificate=pki.relay.certificate, key=pki.relay.key)

    with server(rig.handler(both, echo_once, client_ca=ca)) as upstream:
        relay = rig.relay(upstream, both, client_ca=ca, to=to)
        if known:
            with rig.client(relay, both, own=own) as client:
                client.sendall(b"hello")
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == b"hello"
        else:
            # In TLS 1.3 the client learns of it with its first read.
            with pytest.raises((ssl.SSLError, ConnectionError)), rig.client(relay, both) as client:
                client.recv(1)
            relay.ended("tls_failed")


def test_files_that_are_gone_later_do_no_harm(rig: Rig, tmp_path: Path) -> None:
    """All is read at the start, for every protocol that a client may choose."""
    both = SIDES["both"]
    ca = str(tmp_path / "ca.pem")
    shutil.copy(rig.ca, ca)
    with server(rig.handler(both, echo_once, "h2")) as upstream:
        relay = rig.relay(upstream, both, alpn=("h2", "http/1.1"), to=RelayUpstreamTls(ca=ca))
        Path(ca).unlink()
        with rig.client(relay, both, "h2") as client:
            client.sendall(b"hello")
            assert receive_all(client) == b"hello"  # type: ignore[arg-type]


def test_any_certificate_where_none_is_verified(rig: Rig) -> None:
    sides = SIDES["upstream"]
    with server(rig.handler(sides, echo_once)) as upstream:
        relay = rig.relay(upstream, sides, to=RelayUpstreamTls(verify=False, server_name="elsewhere.example"))
        with rig.client(relay, sides) as client:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"hello"


def test_a_record_that_cannot_be_read_ends_both_sides(rig: Rig, sides: tuple[bool, bool]) -> None:
    """Somebody in between changes a byte."""
    ends: list[bool] = []
    heard = threading.Event()

    def handle(sock: socket.socket) -> None:
        sock.recv(1000)
        heard.set()
        if isinstance(sock, TlsSocket) and not sides[0]:
            sock.sendall(b"answer")
            sock.raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        ends.append(receive_until_end(sock.raw if isinstance(sock, TlsSocket) else sock)[1])

    with server(rig.handler(sides, handle)) as upstream:
        relay = rig.relay(upstream, sides)
        with rig.client(relay, sides) as client:
            client.sendall(b"request")
            if isinstance(client, TlsSocket):
                # Not before the server's own handshake is over: it would be cut.
                assert heard.wait(PATIENCE)
                # In one segment with one that can be read, which is relayed.
                client.sendall(b"more", b"\x17\x03\x03\x00\x20" + bytes(32))
            with pytest.raises((ConnectionResetError, ssl.SSLError)):
                receive_all(client)
        relay.ended("tls_failed")
        assert relay.count("client_bytes") == (11 if sides[0] else 7)
    assert ends == [False]


def test_new_certificates_are_for_new_connections(rig: Rig, pki: Pki) -> None:
    sides = SIDES["clients"]
    context = client_context(pki.authority.ca)

    def handle(sock: socket.socket) -> None:
        while data := sock.recv(1000):
            sock.sendall(data)

    def serial(sock: TlsSocket) -> str:
        found = sock.object.getpeercert()
        assert found is not None
        return str(found["serialNumber"])

    with server(handle) as upstream:
        relay = rig.relay(upstream, sides)
        with TlsSocket(relay.connect(), context, "127.0.0.1") as old:
            renewed = listen_context(RelayTls(*pki.authority.issue("renewed")))
            relay.relay.secure(0, renewed, None)
            with TlsSocket(relay.connect(), context, "127.0.0.1") as new:
                assert serial(new) != serial(old)
            old.sendall(b"still there")
            assert old.recv(1000) == b"still there"
