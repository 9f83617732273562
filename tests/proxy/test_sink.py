"""What answers mirrored traffic: both protocols, its bounds, and its place in the sidecar."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes

from capture.store.base import Store, open_store
from proxy.sink import Sink, SinkConfig
from tests.support import calls
from tests.support.certificates import Authority
from tests.support.net_http import echo_server, http_socket
from tests.support.net_sidecar import Sidecar, wait_gone
from tests.support.net_tls import TlsSocket, client_context
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server


@contextlib.asynccontextmanager
async def serving(connections: int = 8, body: int = 1000, timeout: float = 0.0) -> AsyncIterator[tuple[Sink, int]]:
    """The stand-in alone, and its port."""
    loop = asyncio.get_running_loop()
    sink = Sink(loop, SinkConfig(connections, body, timeout))
    server = await loop.create_server(sink.connection, "127.0.0.1", 0)
    try:
        yield sink, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await sink.close(0.1)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(port: int) -> Streams:
    return await asyncio.open_connection("127.0.0.1", port)


async def ask(streams: Streams, body: bytes = b"abc", extra: bytes = b"") -> bytes:
    """The first line of the answer; its head is read whole."""
    reader, writer = streams
    head = b"POST /api/predict/s HTTP/1.1\r\nHost: h-shadow\r\n" + extra + b"Content-Length: %d\r\n\r\n" % len(body)
    writer.write(head + body)
    async with asyncio.timeout(PATIENCE):
        answer = await reader.readuntil(b"\r\n\r\n")
    return answer.partition(b"\r\n")[0]


async def ended(streams: Streams) -> bool:
    """Once it was reset or closed."""
    reader, writer = streams
    try:
        async with asyncio.timeout(PATIENCE):
            return await reader.read() == b""
    except ConnectionResetError:
        return True
    finally:
        writer.close()


async def test_requests_of_a_kept_connection_are_answered_one_after_the_other() -> None:
    async with serving() as (_, port):
        streams = await connect(port)
        assert [await ask(streams, b"x" * size) for size in (0, 1, 1000)] == [b"HTTP/1.1 200 OK"] * 3
        # Not unpacked: what is not gzip is no error.
        assert await ask(streams, b"no gzip", b"Content-Encoding: gzip\r\n") == b"HTTP/1.1 200 OK"
        assert await ask(streams, b"", b"X-Long: " + b"x" * 20_000 + b"\r\n") == b"HTTP/1.1 200 OK"
        streams[1].close()


async def test_a_body_over_the_limit_is_answered_with_413_whether_it_says_its_length_or_not() -> None:
    async with serving() as (_, port):
        streams = await connect(port)
        assert await ask(streams, b"x" * 1001) == b"HTTP/1.1 413 Request Entity Too Large"
        assert await ended(streams)
        reader, writer = await connect(port)
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()


async def test_what_is_no_http_is_closed() -> None:
    async with serving() as (_, port):
        for first in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nnonsense"):
            reader, writer = await connect(port)
            writer.write(first)
            async with asyncio.timeout(PATIENCE):
                await reader.read()
            writer.close()
        streams = await connect(port)
        assert await ask(streams) == b"HTTP/1.1 200 OK"
        streams[1].close()


async def test_one_connection_too_many_costs_the_one_that_was_answered_least_recently() -> None:
    async with serving(connections=3) as (sink, port):
        open_ones = [await connect(port) for _ in range(3)]
        for streams in (*open_ones, open_ones[0]):
            assert await ask(streams) == b"HTTP/1.1 200 OK"
        fourth = await connect(port)
        assert await ask(fourth) == b"HTTP/1.1 200 OK"
        assert await ended(open_ones[1])
        assert await ask(open_ones[0]) == b"HTTP/1.1 200 OK"
        assert await ask(open_ones[2]) == b"HTTP/1.1 200 OK"
        assert len(sink.live) == 3
        for _, writer in (*open_ones, fourth):
            writer.close()


async def test_a_request_that_does_not_end_in_time_ends_its_connection_and_an_idle_one_stays() -> None:
    async with serving(timeout=0.05) as (_, port):
        idle, slow_head, slow_body = [await connect(port) for _ in range(3)]
        assert await ask(idle) == b"HTTP/1.1 200 OK"
        slow_head[1].write(b"POST / HT")
        slow_body[1].write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc")
        assert await ended(slow_head)
        assert await ended(slow_body)
        assert await ask(idle) == b"HTTP/1.1 200 OK"
        idle[1].close()


def h2_client() -> H2Connection:
    """One that may send what a mirror sends: a host that is not the authority."""
    client = H2Connection(H2Configuration(validate_outbound_headers=False, header_encoding=None))
    client.initiate_connection()
    return client


async def h2_talk(port: int, client: H2Connection, until_ended: int) -> list[Event]:
    """Send what the client has to say; every event until so many streams have ended."""
    reader, writer = await connect(port)
    writer.write(client.data_to_send())
    found: list[Event] = []
    async with asyncio.timeout(PATIENCE):
        while sum(isinstance(event, (StreamEnded, StreamReset)) for event in found) < until_ended:
            data = await reader.read(65536)
            assert data, found
            found += client.receive_data(data)
            writer.write(client.data_to_send())
    writer.close()
    return found


def request(client: H2Connection, content_type: str, body: bytes, *, end: bool = True) -> int:
    stream = client.get_next_available_stream_id()
    head = [(":method", "POST"), (":scheme", "http"), (":authority", "h-shadow"), (":path", "/"), ("host", "h")]
    client.send_headers(stream, [*head, ("content-type", content_type)])
    for at in range(0, len(body), 16384):
        client.send_data(stream, body[at : at + 16384])
    if end:
        client.end_stream(stream)
    return stream


async def test_http2_with_prior_knowledge_and_grpc() -> None:
    async with serving(body=60_000) as (_, port):
        client = h2_client()
        grpc = request(client, "application/grpc", b"x" * 30_000)
        plain = request(client, "application/octet-stream", b"")
        large = request(client, "application/grpc+proto", b"x" * 35_000, end=False)
        answers = await h2_talk(port, client, 2)
        assert not [event for event in answers if isinstance(event, DataReceived)]
        heads = {one.stream_id: dict(one.headers) for one in answers if isinstance(one, ResponseReceived)}
        assert heads == {
            grpc: {b":status": b"200", b"content-type": b"application/grpc", b"grpc-status": b"0"},
            plain: {b":status": b"200"},
        }
        assert large not in heads, "it has not ended"


async def test_an_http2_body_over_the_limit_costs_its_stream_alone() -> None:
    async with serving(body=1000) as (_, port):
        client = h2_client()
        large = request(client, "application/grpc", b"x" * 5000, end=False)
        small = request(client, "application/grpc", b"x")
        answers = await h2_talk(port, client, 2)
        heads = {one.stream_id: dict(one.headers)[b":status"] for one in answers if isinstance(one, ResponseReceived)}
        assert heads == {large: b"413", small: b"200"}


async def test_more_than_a_window_is_taken_on_one_connection() -> None:
    async with serving(body=100 << 20) as (_, port):
        reader, writer = await connect(port)
        client = h2_client()
        stream = request(client, "application/grpc", b"", end=False)
        left, answered = 70 << 20, False
        async with asyncio.timeout(PATIENCE):
            while not answered:
                while left and (room := client.local_flow_control_window(stream)) > 0:
                    size = min(left, room, client.max_outbound_frame_size)
                    left -= size
                    client.send_data(stream, bytes(size), end_stream=not left)
                writer.write(client.data_to_send())
                answered = any(isinstance(one, StreamEnded) for one in client.receive_data(await reader.read(65536)))
        assert client.remote_settings[SettingCodes.INITIAL_WINDOW_SIZE] > 65535
        writer.close()


# -- its place in the sidecar


def config(tmp_path: Path, upstream: str, **more: object) -> str:
    """A relaying listener and a sink."""
    path = tmp_path / "config.yaml"
    settings = {
        "listeners": [
            {"listen": "127.0.0.1:0", "upstream": upstream},
            {"listen": "127.0.0.1:0", "mode": "sink", "version": "7"},
        ],
        # Every request counts, and on a busy machine a worker that starts is behind.
        "capture": {"store": str(tmp_path / "warmtap.sqlite"), "shed_lag": 0},
        "admin": {"listen": ""},
        **more,
    }
    path.write_text(json.dumps(settings))
    return str(path)


def post(port: int, body: bytes) -> int:
    """The status of one call on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("POST", "/api/predict/s", body)
        with connection.getresponse() as response:
            response.read()
            return response.status


def sink_pid(sidecar: Sidecar, start: int = 1) -> int:
    return int(sidecar.wait_for(r'msg="sink started" pid=(\d+)', start)[1])


@contextlib.contextmanager
def stored(tmp_path: Path) -> Iterator[Store]:
    store = open_store(str(tmp_path / "warmtap.sqlite"))
    try:
        yield store
    finally:
        store.close()


def test_a_copy_is_captured_as_unproven_and_relayed_traffic_is_judged_as_ever(tmp_path: Path) -> None:
    with echo_server() as upstream, Sidecar("--config", config(tmp_path, upstream), cwd=tmp_path) as sidecar:
        relay, sink = sidecar.ready()
        assert post(relay, calls.eas(outputs=["a"])) == 200
        assert [post(sink, calls.eas(outputs=["b"])) for _ in range(3)] == [200] * 3
        assert post(sink, b"\xff\xff\xff") == 200
        counters = sidecar.counters()
        until(lambda: counters.snapshot()["requests_observed"] == 5, "all read")
    with stored(tmp_path) as store:
        rows = {row.signature.outputs: row for row in store.signatures()}
        relayed, copied = rows[("a",)], rows[("b",)]
        assert (relayed.proven, relayed.unproven, relayed.key.owner.version) == (1, 0, "unknown")
        assert (copied.proven, copied.unproven, copied.key.owner.version) == (0, 3, "7")
        assert copied.sample_outcome == "unproven"
        # Nobody knows what the model server said to what cannot be read: it counts as unseen, not as refused.
        assert [row[2] for row in store.refusals()] == ["undecodable"]
        assert copied.key not in {key for key, _ in store.held_out()}, "only what succeeded can judge"


def test_a_sink_that_is_killed_costs_copies_alone_and_is_started_anew(tmp_path: Path) -> None:
    with echo_server() as upstream, Sidecar("--config", config(tmp_path, upstream), cwd=tmp_path) as sidecar:
        relay, sink = sidecar.ready()
        kept = http.client.HTTPConnection("127.0.0.1", relay, timeout=PATIENCE)
        kept.request("POST", "/", b"1")
        kept.getresponse().read()
        open_copy = socket.create_connection(("127.0.0.1", sink), timeout=PATIENCE)
        open_copy.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n")
        pid = sink_pid(sidecar)
        until(lambda: sidecar.counters().total()["flows_open"] == 2, "both are open")
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)
        with contextlib.suppress(ConnectionResetError):
            assert open_copy.recv(1) == b""
        open_copy.close()
        kept.request("POST", "/", b"2")
        assert kept.getresponse().read()
        kept.close()
        assert sink_pid(sidecar, 2) != pid
        assert post(sink, b"3") == 200


def test_a_sink_that_is_stopped_is_found_out_and_nobody_else_waits(tmp_path: Path) -> None:
    with (
        echo_server() as upstream,
        Sidecar("--config", config(tmp_path, upstream, relay={"heartbeat_timeout": 2}), cwd=tmp_path) as sidecar,
    ):
        relay, sink = sidecar.ready()
        os.kill(sink_pid(sidecar), signal.SIGSTOP)
        copies = [socket.create_connection(("127.0.0.1", sink), timeout=PATIENCE) for _ in range(20)]
        for copy in copies:
            copy.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        assert [post(relay, b"1") for _ in range(20)] == [200] * 20
        sidecar.wait_for("sink is stuck: no heartbeat; it is killed")
        sink_pid(sidecar, 2)
        assert post(sink, b"2") == 200
        for copy in copies:
            copy.close()


def test_sighup_gives_a_sink_its_new_bounds(tmp_path: Path) -> None:
    path = config(tmp_path, "127.0.0.1:9", sink={"max_connections": 1})
    with Sidecar("--config", path, cwd=tmp_path) as sidecar:
        _, sink = sidecar.ready()
        sink_pid(sidecar)
        first = http.client.HTTPConnection("127.0.0.1", sink, timeout=PATIENCE)
        first.request("POST", "/", b"1")
        first.getresponse().read()
        assert post(sink, b"2") == 200
        with contextlib.suppress(ConnectionResetError):
            assert http_socket(first).recv(1) == b""
        config(tmp_path, "127.0.0.1:9", sink={"max_connections": 2})
        sidecar.process.send_signal(signal.SIGHUP)
        sink_pid(sidecar, 2)
        first.close()
        first.request("POST", "/", b"1")
        first.getresponse().read()
        assert post(sink, b"2") == 200
        first.request("POST", "/", b"3")
        assert first.getresponse().status == 200
        first.close()


def test_answers_wait_for_no_worker(tmp_path: Path) -> None:
    with Sidecar("--sink", "127.0.0.1:0", cwd=tmp_path) as sidecar:
        (sink,) = sidecar.ready()
        sidecar.wait_for("msg=reading")
        worker = sidecar.pid("worker")
        os.kill(worker, signal.SIGSTOP)
        try:
            assert [post(sink, calls.eas()) for _ in range(50)] == [200] * 50
        finally:
            os.kill(worker, signal.SIGCONT)
        counters = sidecar.counters()
        until(
            lambda: sum(counters.snapshot()[name] for name in ("requests_observed", "requests_shed")) == 50, "all read"
        )


def test_a_successor_takes_the_mirror_over(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    settings = {
        "listeners": [{"listen": "127.0.0.1:0", "mode": "sink"}],
        "capture": {"store": str(tmp_path / "warmtap.sqlite"), "shed_lag": 0},
        "admin": {"listen": ""},
        "takeover_socket": str(tmp_path / "takeover.sock"),
    }
    path.write_text(json.dumps(settings))
    with Sidecar("--config", str(path), cwd=tmp_path) as first:
        (sink,) = first.ready()
        assert post(sink, calls.eas()) == 200
        with Sidecar("--config", str(path), "--take-over", cwd=tmp_path) as second:
            assert second.ready() == [sink]
            second.wait_for('msg="taken over"')
            assert first.process.wait(PATIENCE) == 0
            assert post(sink, calls.eas()) == 200
    with stored(tmp_path) as store:
        (row,) = store.signatures()
        assert (row.proven, row.unproven) == (0, 2)


def test_a_mirror_that_speaks_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.issue("sink")
    path = tmp_path / "config.json"
    listener = {"listen": "127.0.0.1:0", "mode": "sink", "tls": own._asdict()}
    settings = {"store": str(tmp_path / "warmtap.sqlite"), "shed_lag": 0}
    path.write_text(json.dumps({"listeners": [listener], "capture": settings, "admin": {"listen": ""}}))
    with Sidecar("--config", str(path), cwd=tmp_path) as sidecar:
        (port,) = sidecar.ready()
        context = client_context(authority.ca)
        with contextlib.closing(
            http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=context)
        ) as connection:
            connection.request("POST", "/api/predict/s", calls.eas())
            assert connection.getresponse().status == 200
        connected = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        with TlsSocket(connected, client_context(authority.ca, "h2"), "127.0.0.1") as sock:
            client, answers = h2_client(), []
            request(client, "application/grpc", b"x")
            while not any(isinstance(event, StreamEnded) for event in answers):
                if said := client.data_to_send():
                    sock.sendall(said)
                answers += client.receive_data(sock.recv(65536))
        counters = sidecar.counters()
        until(lambda: counters.snapshot()["requests_observed"] == 2, "read")
    with stored(tmp_path) as store:
        assert [(row.proven, row.unproven) for row in store.signatures()] == [(0, 1)]
