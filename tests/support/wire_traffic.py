"""Legal traffic for hypothesis: exchanges, their bytes on one flow, and what an observer must say about them."""

from __future__ import annotations

from dataclasses import dataclass

import h2.config
import h2.connection
import h2.events
import hpack
from hypothesis import strategies as st

from capture.wire import events as ev
from capture.wire.events import Event, Side
from tests.support import wire_h2
from tests.support.wire_feed import Step

# Bodies that look like heads: an observer that resumes inside one would invent requests.
BODIES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b"",
            b"POST /evil HTTP/1.1\r\nHost: e\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"\x00" * 64,
            b"\x01" + b"\x00" * 7,
        ]
    ),
)
PATHS = st.sampled_from([b"/a", b"/b", b"/echo.v1.Echo/Call", b"/v1/models/m:predict"])


@dataclass(frozen=True)
class Exchange:
    """One request and its response."""

    path: bytes
    body: bytes
    status: int
    answer: bytes
    chunked: bool = False
    answer_chunked: bool = False
    fields: tuple[tuple[bytes, bytes], ...] = ()
    method: bytes = b"POST"


FIELDS = st.lists(
    st.tuples(st.sampled_from([b"x-a", b"x-b", b"x-request-id"]), st.sampled_from([b"1", b"2", b"abc", b"d" * 30])),
    max_size=3,
).map(tuple)
EXCHANGES = st.builds(
    Exchange, PATHS, BODIES, st.sampled_from([200, 404, 500]), BODIES, st.booleans(), st.booleans(), FIELDS,
    st.sampled_from([b"POST", b"POST", b"PUT", b"HEAD"]),
)  # fmt: skip


def _http1_body(body: bytes, chunked: bool) -> tuple[bytes, bytes]:
    if not chunked:
        return b"Content-Length: %d\r\n\r\n" % len(body), body
    half = len(body) // 2
    parts = [part for part in (body[:half], body[half:]) if part]
    return b"Transfer-Encoding: chunked\r\n\r\n", b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"


def http1_bytes(exchange: Exchange) -> tuple[bytes, bytes]:
    """(request, response) on an HTTP/1.1 connection."""
    fields = b"".join(b"%b: %b\r\n" % pair for pair in exchange.fields)
    framing, body = _http1_body(exchange.body, exchange.chunked)
    request = b"%b %b HTTP/1.1\r\nHost: h\r\n%b%b%b" % (exchange.method, exchange.path, fields, framing, body)
    framing, body = _http1_body(exchange.answer, exchange.answer_chunked)
    response = b"HTTP/1.1 %d X\r\n%b%b" % (exchange.status, framing, b"" if exchange.method == b"HEAD" else body)
    return request, response


def http2_steps(exchanges: list[Exchange]) -> list[Step]:
    """The flow as a real h2 client and server make it, one chunk per call; streams are 1, 3, 5, ..."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    client.initiate_connection()
    server.initiate_connection()
    steps: list[Step] = []

    def pump() -> None:
        for side, source, sink in ((Side.CLIENT, client, server), (Side.SERVER, server, client)):
            raw = source.data_to_send()
            if raw:
                steps.append(("data", side, raw))
                for event in sink.receive_data(raw):
                    if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                        sink.increment_flow_control_window(event.flow_controlled_length)

    pump()
    pump()
    for number, exchange in enumerate(exchanges):
        stream = 2 * number + 1
        head = [(b":method", exchange.method), (b":scheme", b"http"), (b":path", exchange.path), (b":authority", b"h")]
        client.send_headers(stream, head + list(exchange.fields))
        client.send_data(stream, exchange.body, end_stream=True, pad_length=5 if exchange.chunked else None)
        pump()
        server.send_headers(stream, [(b":status", b"%d" % exchange.status)])
        if exchange.method != b"HEAD":
            server.send_data(stream, exchange.answer)
        server.send_headers(stream, [(b"grpc-status", b"0"), *exchange.fields], end_stream=True)
        pump()
    return steps


def shifting_steps(exchanges: list[Exchange]) -> list[Step]:
    """HTTP/2 whose encoder inserts on every call into a small table, so that indices shift: the worst case for gaps."""
    encoder, answers = hpack.Encoder(), hpack.Encoder()
    encoder.header_table_size = 200
    steps: list[Step] = [("data", Side.CLIENT, wire_h2.PREFACE + wire_h2.settings())]
    steps.append(("data", Side.SERVER, wire_h2.settings()))
    for number, exchange in enumerate(exchanges):
        stream = 2 * number + 1
        head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", exchange.path), *exchange.fields]
        raw = wire_h2.headers(stream, encoder.encode(head)) + wire_h2.data(stream, exchange.body, True)
        steps.append(("data", Side.CLIENT, raw))
        head = [(b":status", b"%d" % exchange.status), *exchange.fields]
        raw = wire_h2.headers(stream, answers.encode(head)) + wire_h2.data(stream, exchange.answer, True)
        steps.append(("data", Side.SERVER, raw))
    return steps


@dataclass
class Seen:
    """What the events say of one stream."""

    method: bytes = b""
    path: bytes = b""
    fields: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    status: int = 0
    answer: bytes = b""
    request_done: bool = False
    response_done: bool = False
    verified: bool = True
    broken: bool = False

    @property
    def complete(self) -> bool:
        return self.request_done and self.response_done and not self.broken


def collect(events: list[Event]) -> dict[int, Seen]:
    """Streams by number; asserts the order of events within each."""
    seen: dict[int, Seen] = {}
    for event in events:
        match event:
            case ev.RequestHead():
                assert event.stream not in seen
                skip = (b"host", b"content-length", b"transfer-encoding")
                fields = tuple(pair for pair in event.headers if pair[0] not in skip)
                seen[event.stream] = Seen(event.method, event.target, fields, verified=event.verified)
            case ev.RequestData():
                assert not seen[event.stream].request_done
                assert not seen[event.stream].broken
                seen[event.stream].body += event.data
            case ev.RequestEnd():
                assert not seen[event.stream].broken
                seen[event.stream].request_done = True
                seen[event.stream].verified &= event.verified
            case ev.ResponseHead():
                assert not seen[event.stream].status
                assert not seen[event.stream].broken
                seen[event.stream].status = event.status
                seen[event.stream].verified &= event.verified
            case ev.ResponseData():
                assert seen[event.stream].status
                assert not seen[event.stream].response_done
                assert not seen[event.stream].broken
                seen[event.stream].answer += event.data
            case ev.ResponseEnd():
                assert seen[event.stream].status
                seen[event.stream].response_done = True
                seen[event.stream].verified &= event.verified
            case ev.Aborted():
                seen[event.stream].broken = True
            case ev.Lost():
                seen.setdefault(event.stream, Seen()).broken = True
    return seen


def matches(seen: Seen, exchange: Exchange) -> bool:
    """Whether a stream shows this exchange and nothing else."""
    answer = b"" if exchange.method == b"HEAD" else exchange.answer
    return (seen.path, seen.fields, seen.body, seen.status, seen.answer) == (
        exchange.path, exchange.fields, exchange.body, exchange.status, answer
    )  # fmt: skip
