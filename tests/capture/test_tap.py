"""The tap: any split gives the same frames; every byte is read or counted as lost; a dead worker costs nothing."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter as Tally
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import tap
from capture.counters import Counters
from capture.tap_writer import TapWriter
from tests.support.waiting import PATIENCE


@pytest.fixture
def counters() -> Counters:
    return Counters.create()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def read_all(reader: tap.TapReader) -> list[tap.Frame]:
    """Every frame until EOF."""
    frames: list[tap.Frame] = []
    while (batch := reader.read()) is not None:
        frames += batch
    return frames


def read_now(sock: socket.socket, reader: tap.TapReader) -> list[tap.Frame]:
    """Every frame that is in the socket."""
    sock.setblocking(False)
    frames: list[tap.Frame] = []
    while True:
        try:
            batch = reader.read()
        except BlockingIOError:
            return frames
        if batch is None:
            return frames
        frames += batch


def check_offsets(frames: list[tap.Frame]) -> None:
    """The law of the format: offset = start + data + gaps, for every flow and direction."""
    position: dict[tuple[int, int], int] = {}
    for kind, flow, offset, payload in frames:
        if kind == tap.OPEN:
            start = msgspec.json.decode(payload, type=tap.FlowOpen)
            position[flow, tap.CLIENT] = start.client_start
            position[flow, tap.SERVER] = start.server_start
        elif kind == tap.GAP:
            for side, lost in zip((tap.CLIENT, tap.SERVER), tap.GAP_PAYLOAD.unpack(payload), strict=True):
                position[flow, side] += lost
        elif kind in (tap.CLIENT, tap.SERVER):
            assert position[flow, kind] == offset
            position[flow, kind] += len(payload)
        elif kind in (tap.EOF_CLIENT, tap.EOF_SERVER):
            assert position[flow, kind - 2] == offset


def balance(counters: Counters) -> tuple[int, int]:
    """Relayed - read - lost, both directions: zero when every byte is accounted for."""
    now = counters.snapshot()
    return (
        now["client_bytes"] - now["tap_client_bytes"] - now["tap_lost_client_bytes"],
        now["server_bytes"] - now["tap_server_bytes"] - now["tap_lost_server_bytes"],
    )


def frame(kind: int, payload: bytes = b"", flow: int = 0, offset: int = 0) -> bytes:
    return tap.HEADER.pack(kind, len(payload), flow, offset) + payload


GREETING = frame(tap.HELLO, tap.HELLO_PAYLOAD.pack(tap.MAGIC, tap.VERSION))


@given(
    st.lists(st.tuples(st.sampled_from((tap.CLIENT, tap.SERVER)), st.binary(max_size=300)), max_size=20),
    st.lists(st.integers(1, 400), min_size=1, max_size=60),
)
def test_any_split_of_the_stream_gives_the_same_frames(chunks: list[tuple[int, bytes]], cuts: list[int]) -> None:
    expected = [(kind, 7, 3, payload) for kind, payload in chunks]
    stream = GREETING + b"".join(frame(kind, payload, 7, 3) for kind, payload in chunks)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = tap.TapReader(theirs)
        frames: list[tap.Frame] = []
        position = 0
        while position < len(stream):
            for cut in cuts:
                ours.sendall(stream[position : position + cut])
                position += cut
                frames += reader.read() or [] if position - cut < len(stream) else []
        ours.close()
        assert frames[1:] == expected
        assert reader.read() is None


def test_the_largest_frames_pass_whole() -> None:
    payloads = [bytes([n]) * (tap.MAX_PAYLOAD - n) for n in range(5)]
    ours, theirs = socket.socketpair()
    with theirs:
        reader = tap.TapReader(theirs)
        frames: list[tap.Frame] = []
        with ours:
            ours.setblocking(False)
            stream = memoryview(GREETING + b"".join(frame(tap.CLIENT, payload) for payload in payloads))
            while stream:
                stream = stream[ours.send(stream[:150_000]) :]
                frames += reader.read() or []
        frames += read_all(reader)
        assert [payload for _, _, _, payload in frames[1:]] == payloads


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (frame(tap.CLIENT, b"x"), "before the greeting"),
        (GREETING + GREETING, "after the greeting"),
        (frame(tap.HELLO, tap.HELLO_PAYLOAD.pack(b"GET / HT", 1)), "different versions"),
        (frame(tap.HELLO, tap.HELLO_PAYLOAD.pack(tap.MAGIC, 99)), "different versions"),
        (GREETING + frame(0), "kind 0"),
        (GREETING + frame(99), "kind 99"),
        (GREETING + tap.HEADER.pack(tap.CLIENT, tap.MAX_PAYLOAD + 1, 0, 0), "1048577 bytes"),
        (GREETING + frame(tap.GAP, b"short"), "5 bytes"),
    ],
)
def test_a_broken_stream_is_refused(stream: bytes, message: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(stream)
        with pytest.raises(tap.TapError, match=message):
            tap.TapReader(theirs).read()


def test_a_flow_in_frames(loop: asyncio.AbstractEventLoop, counters: Counters) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        writer = TapWriter(loop, counters.slots, first_flow=(3 << 40) | 1)
        writer.attach(ours)
        flow = writer.open(1, "127.0.0.1:5", tls=True, alpn="h2")
        writer.client(flow, b"hello")
        writer.client(flow, b" there")
        writer.server(flow, b"hi")
        writer.eof_server(flow)
        writer.eof_client(flow)
        writer.closed(flow, "finished")
        loop.run_until_complete(writer.drain(1))
        writer.close()
        frames = read_all(tap.TapReader(theirs, counters.slots))
    assert [kind for kind, *_ in frames[:3]] == [tap.HELLO, tap.TIME, tap.TIME]
    assert msgspec.json.decode(frames[3][3], type=tap.FlowOpen) == tap.FlowOpen(1, "127.0.0.1:5", True, "h2")
    number = (3 << 40) | 1
    assert frames[4:] == [
        (tap.CLIENT, number, 0, b"hello"),
        (tap.CLIENT, number, 5, b" there"),
        (tap.SERVER, number, 0, b"hi"),
        (tap.EOF_SERVER, number, 2, b""),
        (tap.EOF_CLIENT, number, 11, b""),
        (tap.CLOSED, number, 0, b"finished"),
    ]
    assert balance(counters) == (0, 0)
    assert counters.snapshot()["tap_client_bytes"] == 11


def test_a_flush_comes_by_itself(loop: asyncio.AbstractEventLoop, counters: Counters) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        writer = TapWriter(loop, counters.slots)
        writer.attach(ours)
        reader = tap.TapReader(theirs, counters.slots)
        read_now(theirs, reader)

        async def one() -> list[tap.Frame]:
            readable = loop.create_future()
            loop.add_reader(theirs, readable.set_result, None)
            writer.client(writer.open(0, "p"), b"few bytes")
            await asyncio.wait_for(readable, 5)
            loop.remove_reader(theirs)
            return read_now(theirs, reader)

        frames = loop.run_until_complete(one())
        assert [kind for kind, *_ in frames] == [tap.TIME, tap.OPEN, tap.CLIENT]
        writer.close()


def test_a_stopped_worker_bounds_the_queue_and_gets_the_exact_gap(
    loop: asyncio.AbstractEventLoop, counters: Counters
) -> None:
    """A stopped worker: no retry, a bounded queue, and byte-exact gaps when it goes on."""
    ours, theirs = socket.socketpair()
    with theirs:
        writer = TapWriter(loop, counters.slots, max_bytes=1 << 20)
        writer.attach(ours)
        flows = [writer.open(0, f"p{n}") for n in range(4)]
        for n in range(4000):
            writer.client(flows[n % 4], b"c" * 1000)
            writer.server(flows[n % 4], b"s" * 100)
        assert writer.queued_bytes <= 1 << 20
        late = writer.open(0, "late")  # over half: not tapped for now
        writer.client(late, b"x" * 77)
        writer.closed(late, "finished")
        assert counters.snapshot()["tap_lost_client_bytes"] > 0

        async def go_on() -> list[tap.Frame]:
            reader = tap.TapReader(theirs, counters.slots)
            frames = []
            while writer.queued_bytes:
                frames += read_now(theirs, reader)
                await asyncio.sleep(0)
            for flow in flows:
                writer.client(flow, b"again")
                writer.closed(flow, "finished")
            await writer.drain(1)
            writer.close()
            return frames + read_now(theirs, reader)

        frames = loop.run_until_complete(go_on())
    check_offsets(frames)
    kinds = Tally(kind for kind, *_ in frames)
    assert kinds[tap.OPEN] == kinds[tap.CLOSED] == kinds[tap.GAP] == 4
    assert [tap.LOST_PAYLOAD.unpack(payload) for kind, _, _, payload in frames if kind == tap.LOST] == [(1, 77, 0)]
    assert sum(payload == b"again" for *_, payload in frames) == 4
    assert counters.snapshot()["tap_lost_flows"] == 5
    assert balance(counters) == (0, 0)


class CountingSocket(socket.socket):
    """Counts what is sent through it."""

    sends = 0

    def sendmsg(self, *arguments: Any) -> int:
        self.sends += 1
        return super().sendmsg(*arguments)


def test_a_stopped_worker_costs_no_system_call(loop: asyncio.AbstractEventLoop, counters: Counters) -> None:
    """A writer that tries again with each chunk took the relay from 44 to 222 us a request: it waits to be told that
    the socket can be written, however much comes meanwhile and however often the loop turns."""
    ours, theirs = socket.socketpair()
    with theirs:
        sock = CountingSocket(fileno=ours.detach())
        writer = TapWriter(loop, counters.slots, max_bytes=4 << 20)
        writer.attach(sock)
        flow = writer.open(0, "p")

        async def send(chunks: int) -> None:
            for _ in range(chunks):
                writer.client(flow, b"c" * 10_000)
                await asyncio.sleep(0)

        while writer.queued_bytes < 1 << 20:  # more waits than goes out at once: the socket is full
            loop.run_until_complete(send(10))
        before = sock.sends
        assert before
        loop.run_until_complete(send(1000))
        assert sock.sends == before
        assert flow.lost_client
        read_now(theirs, tap.TapReader(theirs, counters.slots))

        async def goes_on() -> None:
            while sock.sends == before:
                await asyncio.sleep(0)

        loop.run_until_complete(asyncio.wait_for(goes_on(), PATIENCE))
        writer.detach()


def test_short_flows_lose_first(loop: asyncio.AbstractEventLoop, counters: Counters) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer = TapWriter(loop, counters.slots, max_bytes=1 << 20)
        writer.attach(ours)
        long, short = writer.open(0, "long"), writer.open(0, "short")
        writer.client(short, b"s")
        while writer.queued_bytes < (1 << 20) * 7 // 8:
            writer.client(long, b"c" * 10_000)
        writer.client(short, b"s" * 100)
        assert (long.lost_client, short.lost_client) == (0, 100)
        writer.detach()


def test_the_bound_counts_frames_too(loop: asyncio.AbstractEventLoop, counters: Counters) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        writer = TapWriter(loop, counters.slots, max_frames=1000)
        writer.attach(ours)
        flow = writer.open(0, "p")
        for _ in range(200_000):
            writer.client(flow, b"c")
        assert writer.queued_bytes < tap.MAX_PAYLOAD  # 200,000 of them would be 5 MB
        assert flow.lost_client > 100_000
        writer.detach()


def test_more_buffers_than_sendmsg_takes(loop: asyncio.AbstractEventLoop, counters: Counters) -> None:
    """1,025 buffers in one sendmsg raise EMSGSIZE."""
    ours, theirs = socket.socketpair()
    with theirs:
        writer = TapWriter(loop, counters.slots)
        writer.attach(ours)
        flow = writer.open(0, "p")
        for _ in range(3000):
            writer.client(flow, b"c")

        async def finish() -> list[tap.Frame]:
            reader = tap.TapReader(theirs, counters.slots)
            await writer.drain(1)
            writer.close()
            return read_now(theirs, reader)

        frames = loop.run_until_complete(finish())
    assert sum(kind == tap.CLIENT for kind, *_ in frames) == 3000
    assert counters.snapshot()["tap_lost_client_bytes"] == 0


@pytest.mark.parametrize("read_before", [0, 1, 3])
def test_a_dead_worker_loses_exactly_what_it_never_dealt_with(
    loop: asyncio.AbstractEventLoop, counters: Counters, read_before: int
) -> None:
    """A dead worker (EPIPE): detached once, nothing retried; the next one meets the flow in the middle."""
    ours, theirs = socket.socketpair()
    writer = TapWriter(loop, counters.slots, max_bytes=1 << 20)
    writer.attach(ours)
    flow, over = writer.open(0, "p"), writer.open(0, "q")
    reader = tap.TapReader(theirs, counters.slots)
    for n in range(30):
        writer.client(flow, bytes([n]) * 40_000)
        writer.server(over, b"s" * 40_000)
        if n < read_before:
            reader.read()
    writer.eof_client(flow)
    writer.closed(over, "finished")
    theirs.close()

    async def notice() -> None:
        while writer.attached:
            writer.client(flow, b"n" * 70_000)
            await asyncio.sleep(0)

    loop.run_until_complete(notice())
    assert counters.snapshot()["tap_detached"] == 1
    assert balance(counters) == (0, 0)
    assert counters.snapshot()["tap_lost_flows"] == 2
    writer.server(flow, b"unseen")
    seen = counters.snapshot()["tap_client_bytes"]

    ours, theirs = socket.socketpair()
    with theirs:
        writer.attach(ours)
        writer.server(flow, b"seen")
        loop.run_until_complete(writer.drain(1))
        writer.close()
        frames = read_all(tap.TapReader(theirs, counters.slots))
    check_offsets(frames)
    assert [kind for kind, *_ in frames] == [
        *(tap.HELLO, tap.TIME, tap.LOST),
        *(tap.TIME, tap.OPEN, tap.GAP, tap.EOF_CLIENT, tap.SERVER),
    ]
    assert msgspec.json.decode(frames[4][3], type=tap.FlowOpen).client_start == seen
    assert balance(counters) == (0, 0)


def test_what_a_killed_relay_had_queued_is_lost(loop: asyncio.AbstractEventLoop, counters: Counters) -> None:
    ours, theirs = socket.socketpair()
    with theirs, ours:
        writer = TapWriter(loop, counters.slots)
        writer.attach(ours.dup())
        writer.client(writer.open(0, "p"), b"never sent")
        # The relay is killed: its counters stay, its queue is gone.
    ours, theirs = socket.socketpair()
    with theirs:
        successor = TapWriter(loop, counters.slots, first_flow=(1 << 40) | 1)
        successor.attach(ours)
        assert balance(counters) == (0, 0)
        assert counters.snapshot()["tap_lost_client_bytes"] == 10
        successor.close()
    writer.detach()


def test_a_detached_writer_keeps_nothing(loop: asyncio.AbstractEventLoop, counters: Counters) -> None:
    writer = TapWriter(loop, counters.slots)
    flow = writer.open(0, "p")
    for _ in range(1000):
        writer.client(flow, b"c" * 1000)
        writer.server(flow, b"s" * 1000)
    writer.closed(flow, "finished")
    assert writer.queued_bytes == 0
    now = counters.snapshot()
    assert (now["tap_lost_client_bytes"], now["tap_lost_server_bytes"]) == (1_000_000, 1_000_000)
    assert (now["tap_lost_flows"], now["tap_detached"]) == (1, 0)


def test_a_chunk_over_the_limit_is_cut(loop: asyncio.AbstractEventLoop, counters: Counters) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        writer = TapWriter(loop, counters.slots)
        writer.attach(ours)
        flow = writer.open(0, "p")
        writer.client(flow, b"c" * (2 * tap.MAX_PAYLOAD + 5))

        async def finish() -> list[tap.Frame]:
            reader = tap.TapReader(theirs, counters.slots)
            frames = []
            while writer.queued_bytes:
                frames += read_now(theirs, reader)
                await asyncio.sleep(0)
            writer.close()
            return frames + read_now(theirs, reader)

        frames = loop.run_until_complete(finish())
    check_offsets(frames)
    assert sum(len(payload) for kind, _, _, payload in frames if kind == tap.CLIENT) == 2 * tap.MAX_PAYLOAD + 5
