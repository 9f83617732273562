"""Any bytes, any split, gaps anywhere: an observer returns, never raises, and holds at most its stated memory; and what
it reports as complete and verified is true."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.wire import events as ev
from capture.wire.detect import FlowObserver
from capture.wire.events import Side
from tests.support.wire_feed import HELD_BOUND, Step, bytewise, coalesce, run
from tests.support.wire_h2 import PREFACE, continuation, data, goaway, headers, rst, settings
from tests.support.wire_traffic import EXCHANGES, Exchange, collect, http1_bytes, http2_steps, matches, shifting_steps

SIDES = st.sampled_from(list(Side))
PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            PREFACE,
            PREFACE[:5],
            settings([(1, 0), (5, 20_000)]),
            headers(1, b"\x83\x86\x84"),
            headers(3, b"\x83\x86\x84\x40\x01k\x01v", True),
            headers(1, b"\x88"),
            headers(3, b"\x88\xbe", True),
            headers(5, b"\x83", end_headers=False),
            continuation(5, b"\x86\x84"),
            data(1, b"abc"),
            data(1, b"abc", True, 9),
            rst(3, 8),
            goaway(1, 0, b"bye"),
            b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\n",
            b"GET /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"CONNECT a HTTP/1.1\r\n\r\n",
            b"3\r\nabc\r\n",
            b"0\r\n\r\n",
            b"\r\n",
            b"abc",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 101 X\r\n\r\n",
        ]
    ),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("data"), SIDES, PIECES),
        st.tuples(st.just("data"), SIDES, PIECES),
        st.tuples(st.just("data"), SIDES, PIECES),
        st.tuples(st.just("gap"), SIDES, st.integers(0, 60)),
        st.tuples(st.just("eof"), SIDES),
        st.tuples(st.just("close")),
    ),
    max_size=30,
)


@given(STEPS, st.booleans())
def test_anything(steps: list[Step], joined: bool) -> None:
    observer = FlowObserver(joined=joined)
    events: list[ev.Event] = []
    for step in steps:
        events += run(observer, [step])
        assert 0 <= observer.held_bytes() <= HELD_BOUND
    collect(events)
    assert isinstance(observer.unsynced, bool)


@given(STEPS)
def test_splits_do_not_show(steps: list[Step]) -> None:
    steps = [step for step in steps if step[0] != "gap"]
    assert coalesce(run(FlowObserver(), steps)) == coalesce(run(FlowObserver(), bytewise(steps)))


def _cut(draw: st.DrawFn, steps: list[Step]) -> list[Step]:
    """Re-chunks a flow and leaves out one or two stretches, as a tap does that runs full."""
    chunks: list[Step] = []
    for step in steps:
        raw, cuts = step[2], draw(st.lists(st.integers(1, max(1, len(step[2]) - 1)), max_size=3))
        places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
        chunks += [("data", step[1], raw[a:b]) for a, b in pairwise(places)]
    for _ in range(draw(st.integers(1, 2))):
        start = draw(st.integers(1, max(1, len(chunks) - 1)))
        stop = min(len(chunks), start + draw(st.integers(1, 8)))
        lost = dict.fromkeys(Side, 0)
        for step in chunks[start:stop]:
            lost[step[1]] += step[2] if step[0] == "gap" else len(step[2])
        chunks[start:stop] = [("gap", side, count) for side, count in lost.items() if count]
    return chunks


@st.composite
def http1_with_gaps(draw: st.DrawFn) -> tuple[list[Exchange], list[Step]]:
    exchanges = draw(st.lists(EXCHANGES, min_size=1, max_size=8))
    steps: list[Step] = []
    for exchange in exchanges:
        request, response = http1_bytes(exchange)
        if draw(st.booleans()) and b"\r\n\r\n" in request[:-4]:
            head, blank, body = request.partition(b"\r\n\r\n")
            steps += [("data", Side.CLIENT, head + blank), ("data", Side.SERVER, b"HTTP/1.1 100 Continue\r\n\r\n")]
            request = body
        steps += [("data", Side.CLIENT, request), ("data", Side.SERVER, response)]
    steps = [step for step in steps if step[2]]
    return exchanges, _cut(draw, steps)


@given(http1_with_gaps())
def test_http1_gaps_never_invent(case: tuple[list[Exchange], list[Step]]) -> None:
    exchanges, steps = case
    _judge(exchanges, steps, in_order=True)


@st.composite
def http2_with_gaps(draw: st.DrawFn) -> tuple[list[Exchange], list[Step]]:
    exchanges = draw(st.lists(EXCHANGES, min_size=1, max_size=10))
    make = draw(st.sampled_from([http2_steps, shifting_steps]))
    if make is shifting_steps:
        exchanges = [Exchange(e.path, e.body, e.status, e.answer, fields=e.fields) for e in exchanges]
    return exchanges, _cut(draw, make(exchanges))


@given(http2_with_gaps())
def test_http2_gaps_never_invent(case: tuple[list[Exchange], list[Step]]) -> None:
    exchanges, steps = case
    seen = collect(run(FlowObserver(), [*steps, ("close",)]))
    for stream, each in seen.items():
        if each.complete and each.verified:
            assert matches(each, exchanges[stream // 2])
        if each.complete:  # bodies do not depend on the header table
            exchange = exchanges[stream // 2]
            assert (each.body, each.answer) == (exchange.body, b"" if exchange.method == b"HEAD" else exchange.answer)


def _judge(exchanges: list[Exchange], steps: list[Step], in_order: bool) -> None:
    """Every exchange reported as complete and verified is one that happened, in the order in which they did."""
    seen = collect(run(FlowObserver(), [*steps, ("close",)]))
    at = 0
    for each in seen.values():
        if each.complete and each.verified:
            while at < len(exchanges) and not matches(each, exchanges[at]):
                at += 1
            assert at < len(exchanges), each
            at += 1


@given(st.lists(EXCHANGES, min_size=1, max_size=6), st.booleans())
def test_without_gaps_all_is_seen(exchanges: list[Exchange], bytes_apart: bool) -> None:
    flows = [
        http2_steps(exchanges),
        [("data", s, raw) for e in exchanges for s, raw in zip(Side, http1_bytes(e), strict=True)],
    ]
    for steps in flows:
        seen = collect(run(FlowObserver(), bytewise(steps) if bytes_apart else steps))
        assert len(seen) == len(exchanges)
        assert all(each.complete and each.verified for each in seen.values())
        assert all(matches(each, exchange) for each, exchange in zip(seen.values(), exchanges, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_realigns_in_long_traffic(seed: int) -> None:
    """Warm traffic (the encoder inserts nothing any more) with gaps: found again every time, counted to the request."""
    dice = random.Random(seed)
    exchanges = [Exchange(b"/echo.v1.Echo/Call", dice.randbytes(300), 200, dice.randbytes(300)) for _ in range(300)]
    steps = http2_steps(exchanges)
    for _ in range(6):
        start = dice.randrange(20, len(steps) - 40)
        lost = dict.fromkeys(Side, 0)
        stop = start + dice.randrange(1, 30)
        for step in steps[start:stop]:
            lost[step[1]] += step[2] if step[0] == "gap" else len(step[2])
        steps[start:stop] = [("gap", side, count) for side, count in lost.items() if count]
    observer = FlowObserver()
    events = run(observer, steps)
    assert not observer.unsynced
    seen = collect(events)
    missed = sum(event.requests for event in events if isinstance(event, ev.Missed))
    assert len(seen) + missed == len(exchanges)
    assert all(event.exact for event in events if isinstance(event, ev.Missed))
    good = {stream: each for stream, each in seen.items() if each.complete}
    assert len(good) > 150
    assert all(matches(each, exchanges[stream // 2]) for stream, each in good.items())


def test_megabytes_of_one_frame_in_small_chunks_hold_nothing() -> None:
    observer = FlowObserver()
    observer.feed(Side.SERVER, settings([(5, 1 << 22)]))
    observer.feed(Side.CLIENT, PREFACE + settings() + headers(1, b"\x83\x86\x84"))
    size = 1 << 22
    raw = size.to_bytes(3, "big") + b"\x00\x01\x00\x00\x00\x01" + bytes(size)
    total = 0
    for at in range(0, len(raw), 1000):
        for event in observer.feed(Side.CLIENT, raw[at : at + 1000]):
            total += len(event.data) if isinstance(event, ev.RequestData) else 0
        assert observer.held_bytes() < 5000
    assert total == size


@pytest.mark.parametrize(
    "attack",
    [
        PREFACE + b"".join(headers(n, b"\x83\x86\x84") for n in range(1, 20_001, 2)),
        PREFACE + headers(1, b"\x83", end_headers=False) + continuation(1, b"", False) * 10_000,
        PREFACE + headers(1, b"\x83", end_headers=False) + continuation(1, b"\x86" * 16_000, False) * 30,
        PREFACE + settings() * 10_000,
        b"GET / HTTP/1.1\r\nX: " + b"y" * 200_000,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1000 + b"\r\n",
        b"GET / HTTP/1.1\r\n\r\n" * 3000,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 100_000,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 100_000,
    ],
    ids=["streams", "continuations", "block", "settings", "head", "fields", "pipeline", "chunk-line", "trailers"],
)
@pytest.mark.parametrize("size", [1, 777, 1 << 20])
def test_floods_are_events(attack: bytes, size: int) -> None:
    if size == 1:
        attack = attack[:70_000]
    observer = FlowObserver()
    events: list[ev.Event] = []
    for at in range(0, len(attack), size):
        events += observer.feed(Side.CLIENT, attack[at : at + size])
        assert observer.held_bytes() < HELD_BOUND
    harmless = attack.startswith(PREFACE + settings()) or len(attack) < 70_001
    assert harmless or any(isinstance(event, ev.Undecodable | ev.Lost) for event in events)


@pytest.mark.parametrize("gap_at", ["start", "joined"])
def test_a_flow_joined_midway(gap_at: str) -> None:
    exchanges = [Exchange(b"/a", b"abc", 200, b"ok")] * 4
    steps: list[Step] = [("data", s, raw) for e in exchanges for s, raw in zip(Side, http1_bytes(e), strict=True)]
    observer = FlowObserver(joined=gap_at == "joined")
    assert observer.unsynced == (gap_at == "joined")
    if gap_at == "start":
        steps = [("gap", Side.CLIENT, 10), *steps]
    events = run(observer, steps)
    assert observer.protocol == "http/1"
    assert not observer.unsynced
    assert isinstance(events[0], ev.Unsynced)
    assert [each.path for each in collect(events).values() if each.complete] == [b"/a"] * 3


def test_an_http2_flow_joined_midway() -> None:
    exchanges = [Exchange(b"/a", b"abc", 200, b"ok")] * 20
    steps = http2_steps(exchanges)[10:]
    observer = FlowObserver(joined=True)
    events = run(observer, steps)
    assert observer.protocol == "http/2"
    # The client's blocks refer to entries that nobody saw: nothing is believed, everything is counted.
    assert not any(isinstance(event, ev.RequestHead) for event in events)
    assert sum(isinstance(event, ev.Lost) for event in events) >= 10
