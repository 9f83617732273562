"""TLS peers that split, join, stop and flood, on real sockets: at each stage of a handshake, and after it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from proxy import tls
from proxy.deadlines import Deadlines
from tests.proxy.test_tls import SIDES, Pki, Rig
from tests.support.certificates import Authority
from tests.support.net_relay import RelayThread, receive_all, receive_until_end, reset, server
from tests.support.net_tls import TlsSocket, client_context, server_context
from tests.support.net_tls_records import APPLICATION, misbehaving
from tests.support.waiting import until

pytestmark = pytest.mark.server

VERSIONS: Final = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
#: More than a record, which none can be.
GARBAGE: Final = bytes(range(256)) * 80


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    authority = Authority(tmp_path_factory.mktemp("pki"))
    return Pki(authority, authority.issue("relay"), authority.issue("server"))


@pytest.fixture
def rig(pki: Pki) -> Iterator[Rig]:
    made = Rig("uvloop", pki)
    yield made
    made.stop()


def settled(relay: RelayThread) -> dict[str, int]:
    """Wait until no flow is left; how they ended."""
    until(lambda: relay.count("flows_opened") and relay.relay.connections == 0, "the end of every flow")
    counted = relay.counters.snapshot()
    closed = {name.removeprefix("flows_closed_"): n for name, n in counted.items() if name.startswith("flows_closed_")}
    return {name: n for name, n in closed.items() if n}


def echo(sock: socket.socket) -> None:
    while data := sock.recv(1000):
        sock.sendall(data)


# --- records, split and joined ----------------------------------------------------------------------------------------


class Bytewise:
    """A socket that sends each byte by itself."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def sendall(self, data: bytes) -> None:
        for byte in data:
            self.sock.send(bytes([byte]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


class Corked(Bytewise):
    """A socket that sends all at once, when there is nothing left to do but to read or to end."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.held = b""

    def sendall(self, data: bytes) -> None:
        self.held += data

    def _let_go(self) -> None:
        held, self.held = self.held, b""
        if held:
            self.sock.sendall(held)

    def recv(self, size: int) -> bytes:
        self._let_go()
        return self.sock.recv(size)

    def shutdown(self, how: int) -> None:
        self._let_go()
        self.sock.shutdown(how)


@pytest.mark.parametrize("wire", [Bytewise, Corked])
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_records_arrive_however_they_are_cut(
    rig: Rig, pki: Pki, sides: tuple[bool, bool], wire: type[Bytewise]
) -> None:
    """Handshake, records and close_notify: a byte at a time, or the last of the one with all of the others."""
    pieces = [bytes([n]) * size for n, size in enumerate((1, 700, 1, 20_000 if wire is Corked else 2_000, 3))]
    body = b"".join(pieces)

    def handle(sock: socket.socket) -> None:
        got = b""
        while len(got) < len(body):
            got += sock.recv(1 << 16)
        assert got == body
        for piece in pieces:
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        receive_until_end(sock.raw if isinstance(sock, TlsSocket) else sock)

    secured = rig.handler(sides, handle)
    with server(lambda sock: secured(wire(sock)) if sides[1] else handle(sock)) as upstream:  # type: ignore[arg-type]
        relay = rig.relay(upstream, sides)
        with relay.connect() as raw:
            client: socket.socket | TlsSocket = raw
            if sides[0]:
                client = TlsSocket(wire(raw), client_context(pki.authority.ca), "127.0.0.1")  # type: ignore[arg-type]
            for piece in pieces:
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == body  # type: ignore[arg-type]
        assert settled(relay) == {"finished": 1}
    assert (relay.count("client_bytes"), relay.count("server_bytes")) == (len(body), len(body))


# --- ends at each stage -----------------------------------------------------------------------------------------------


class Handshake:
    """One, step by step. A server's part without a server name."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_name: str | None = None) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )

    def step(self) -> bytes:
        """What is to be sent next."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._object.do_handshake()
        return self._outgoing.read()

    def hear(self) -> bytes:
        """Read until there is an answer to it."""
        while not (answer := self.step()):
            self._incoming.write(self._sock.recv(1 << 16))
        return answer

    def complete(self) -> None:
        """Read to the end of the handshake; what a server says then is sent."""
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                self._incoming.write(self._sock.recv(1 << 16))
            else:
                self._sock.sendall(self._outgoing.read())
                return

    def record(self, data: bytes) -> bytes:
        self._object.write(data)
        return self._outgoing.read()


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def end(sock: socket.socket, how: str) -> None:
    """And, where that is still possible, read what comes."""
    if how == "reset":
        reset(sock)
        return
    with contextlib.suppress(ConnectionError):
        if how == "garbage":
            sock.sendall(GARBAGE)
        else:
            sock.shutdown(socket.SHUT_WR)
        receive_until_end(sock)


#: What a client did before it ends; with the last two its handshake is complete.
CLIENT_STAGES: Final = ("nothing", "half a hello", "hello", "heard", "half a finish", "finished", "half a record")


def as_far_as(stage: str, sock: socket.socket, context: ssl.SSLContext) -> None:
    """Be a client up to one of the stages."""
    shake = Handshake(sock, context, "127.0.0.1")
    hello = shake.step()
    if stage == "nothing":
        return
    sock.sendall(half(hello) if stage == "half a hello" else hello)
    if stage in ("half a hello", "hello"):
        return
    finish = shake.hear()
    if stage == "heard":
        return
    sock.sendall(half(finish) if stage == "half a finish" else finish)
    if stage == "half a finish":
        return
    shake.complete()
    if context.maximum_version != ssl.TLSVersion.TLSv1_2:
        sock.recv(1)  # of a ticket: the other one has heard it all
    if stage == "half a record":
        sock.sendall(half(shake.record(bytes(1000))))


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: str(version.name))
@pytest.mark.parametrize("how", ["reset", "fin", "garbage"])
@pytest.mark.parametrize("both", [False, True], ids=["clients", "both"])
def test_a_client_that_ends_at_any_stage_leaves_nothing(
    rig: Rig, pki: Pki, both: bool, how: str, version: ssl.TLSVersion
) -> None:
    """The model server hears of those whose handshake was complete, and of their end."""
    sides = SIDES["both" if both else "clients"]
    opened: list[bool] = []
    ended: list[bool] = []

    def handle(sock: socket.socket) -> None:
        opened.append(True)
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            rig.handler(sides, lambda secured: receive_all(secured) and None)(sock)
        ended.append(True)

    context = client_context(pki.authority.ca)
    context.maximum_version = version
    with server(handle) as upstream:
        for number, stage in enumerate(CLIENT_STAGES):
            relay = rig.relay(upstream, sides)
            with relay.connect() as client:
                as_far_as(stage, client, context)
                if stage in ("finished", "half a record"):
                    until(lambda number=number: len(opened) == number - 4, stage)  # type: ignore[misc]
                end(client, how)
            reason = {"reset": "client_reset", "garbage": "tls_failed"}.get(how) or (
                "finished" if stage in ("nothing", "finished", "half a record") else "tls_failed"
            )
            assert settled(relay) == {reason: 1}
        until(lambda: len(ended) == 2, "the end of the model server's connections")
    assert len(opened) == 2


#: What a model server did before it ends; with the last its handshake is complete.
SERVER_STAGES: Final = ("nothing", "hello", "half a flight", "flight", "finished")
#: What an end may count as, where it depends on how soon it is seen: as a connect that failed, or (TLS 1.3, where the
#: relay needs nothing more of it) as an end after the handshake.
RACES: Final = {"nothing": {"connect_failed", "tls_failed"}, "flight": {"tls_failed", "server_reset"}}


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: str(version.name))
@pytest.mark.parametrize("how", ["reset", "fin", "garbage"])
@pytest.mark.parametrize("both", [False, True], ids=["upstream", "both"])
def test_a_model_server_that_ends_at_any_stage_leaves_nothing(
    rig: Rig, pki: Pki, both: bool, how: str, version: ssl.TLSVersion
) -> None:
    """The client never takes it for an answer."""
    sides = SIDES["both" if both else "upstream"]
    context = server_context(pki.server)
    context.maximum_version = version
    stage = ""

    def handle(sock: socket.socket) -> None:
        shake = Handshake(sock, context)
        if stage != "nothing":
            if stage == "hello":
                sock.recv(1 << 16)
            else:
                flight = shake.hear()
                sock.sendall(half(flight) if stage == "half a flight" else flight)
            if stage == "finished":
                shake.complete()
        end(sock, how)

    def spoken(relay: RelayThread) -> bytes:
        with rig.client(relay, sides) as client:
            client.sendall(b"request")
            return receive_all(client)  # type: ignore[arg-type]

    with server(handle) as upstream:
        for stage in SERVER_STAGES:
            relay = rig.relay(upstream, sides)
            with pytest.raises((ConnectionError, ssl.SSLError)):
                spoken(relay)
            wanted = "tls_failed" if stage != "finished" or how == "garbage" else "server_reset"
            either = {wanted} if how == "garbage" else RACES.get(stage, {wanted})
            assert set(settled(relay)) <= either, stage


def test_a_server_that_fails_in_the_moment_of_the_connect(rig: Rig, pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that it says is there before the relay has gone on from connecting: giving that up closes the connection
    without a word (uvloop)."""
    said = threading.Event()
    made = tls.TlsEnd.connection_made

    def connection_made(self: tls.TlsEnd, transport: asyncio.BaseTransport) -> None:
        made(self, transport)
        said.wait()

    monkeypatch.setattr(tls.TlsEnd, "connection_made", connection_made)
    sides = SIDES["upstream"]

    def handle(sock: socket.socket) -> None:
        sock.sendall(Handshake(sock, server_context(pki.server)).hear() + GARBAGE)
        said.set()
        receive_until_end(sock)

    with server(handle) as upstream:
        relay = rig.relay(upstream, sides)
        with relay.connect() as client:
            client.sendall(b"request")
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert settled(relay) == {"tls_failed": 1}


# --- limits -----------------------------------------------------------------------------------------------------------


def test_over_the_limit_a_client_is_accepted_and_reset(rig: Rig) -> None:
    """Before its handshake: that would cost more than the connection."""
    sides = SIDES["clients"]

    def turned_away(relay: RelayThread) -> None:
        with pytest.raises(ConnectionError):
            rig.client(relay, sides)

    with server(echo) as upstream:
        relay = rig.relay(upstream, sides, max_connections=2)
        with rig.client(relay, sides) as first, rig.client(relay, sides) as second:
            for times in (1, 2, 3):
                turned_away(relay)
                relay.ended("limit", times)
            for kept in (first, second):
                kept.sendall(b"hello")
                assert kept.recv(1000) == b"hello"
        until(lambda: relay.relay.connections == 0)
        with rig.client(relay, sides) as another:
            another.sendall(b"hello")
            assert another.recv(1000) == b"hello"
    assert relay.count("flows_opened") == 6


# --- floods -----------------------------------------------------------------------------------------------------------


def flood(sock: socket.socket, record: Callable[[], bytes], size: int) -> None:
    """So many bytes, of nothing but such records."""
    sent = 0
    while sent < size:
        data = b"".join(record() for _ in range(50))
        sock.sendall(data)
        sent += len(data)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: str(version.name))
def test_a_flood_of_new_negotiations_and_keys_ends_the_connection(
    rig: Rig, pki: Pki, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """TLS 1.2: OpenSSL refuses to renegotiate, and says so. TLS 1.3: it changes keys, as often as a client likes; some
    hundred times do no harm, and then there must be something to protect with them."""
    context = client_context(pki.authority.ca)
    context.maximum_version = version
    sides = SIDES["clients"]
    with server(echo) as upstream:
        relay = rig.relay(upstream, sides)
        client, sealer = misbehaving(relay.connect(), context, tmp_path / "keys")
        with client:
            for seen in (5, 10):
                flood(client.raw, sealer.nonsense, tls._BARREN_BYTES // 2)
                client.raw.sendall(sealer.seal(APPLICATION, b"hello"))
                until(lambda seen=seen: relay.count("server_bytes") == seen)  # type: ignore[misc]
            if version == ssl.TLSVersion.TLSv1_2:
                with pytest.raises(ssl.SSLError, match="NO_RENEGOTIATION"):
                    client.recv(5)
            else:
                assert client.recv(5) == b"hello"
            with pytest.raises(ConnectionError):
                flood(client.raw, sealer.nonsense, 100 * tls._BARREN_BYTES)
        assert settled(relay) == {"tls_failed": 1}


def test_who_makes_tls_answer_and_reads_nothing_is_not_kept_answers_for(
    rig: Rig, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each refusal takes room; a request now and then makes it look like traffic."""
    monkeypatch.setattr(tls, "_UNREAD_BYTES", 64 << 10)
    context = client_context(pki.authority.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    sides = SIDES["clients"]
    with server(lambda sock: receive_all(sock) and None) as upstream:
        relay = rig.relay(upstream, sides)
        client, sealer = misbehaving(relay.connect(), context, tmp_path / "keys")
        (flow,) = relay.relay._live
        assert flow.client.transport is not None
        flow.client.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        def press() -> None:
            for _ in range(1000):
                flood(client.raw, sealer.nonsense, 8 << 10)
                client.raw.sendall(sealer.seal(APPLICATION, b"x"))

        with client, pytest.raises(ConnectionError):
            press()
        assert settled(relay) == {"tls_failed": 1}
    assert 0 < relay.count("client_bytes") < 1000


def test_who_has_left_before_the_alert_is_not_waited_for(rig: Rig, pki: Pki) -> None:
    """The alert is answered with a reset, of which a connection that is not read any more hears nothing."""
    context = client_context(pki.authority.ca)
    with server(receive_all) as upstream:
        relay = rig.relay(upstream, SIDES["clients"], deadlines=Deadlines(closing=0))
        for _ in range(20):
            with relay.connect() as client:
                client.sendall(Handshake(client, context, "127.0.0.1").step() + GARBAGE)
        assert settled(relay).keys() <= {"tls_failed", "client_reset"}
