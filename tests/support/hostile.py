"""What a hostile client sends: each attack as flows of tap frames, with what the worker must make of it.

The bytes are real; only the relay between is left out, so that an attack costs the machine no more than the worker."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import cramjam
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from capture.schema import messages
from capture.schema.wire import length_delimited
from tests.support.calls import REGRESS, eas, predict, predict_response
from tests.support.tap_frames import PREDICT, Flow, GrpcFlow
from tests.support.wire_h2 import PREFACE, continuation, data, frame, headers, rst, settings

MIB = 1 << 20
#: Bytes of one tap frame: as much as the relay reads at once.
CHUNK = 64 << 10
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


Flows = Callable[[], Iterator[Flow | None]]


@dataclass(frozen=True)
class Attack:
    """``flows`` yields None where other clients go on for a second. ``counted`` is what each counter must show,
    ``at_least`` what it must reach; ``peak`` the memory in bytes that it may take beyond an idle worker."""

    flows: Flows
    peak: int
    counted: dict[str, int] = field(default_factory=dict)
    at_least: dict[str, int] = field(default_factory=dict)
    #: Flows that must be open at the end.
    open_flows: int = 0


ATTACKS: dict[str, Attack] = {}


def attack(
    *, peak: int, counted: dict[str, int] | None = None, at_least: dict[str, int] | None = None, open_flows: int = 0
) -> Callable[[Flows], Flows]:
    """A row of the table, by the function's name."""

    def enter(flows: Flows) -> Flows:
        ATTACKS[flows.__name__.replace("_", "-")] = Attack(flows, peak, counted or {}, at_least or {}, open_flows)
        return flows

    return enter


def pieces(flow: Flow, content: bytes, size: int = CHUNK) -> Iterator[Flow]:
    """The client sends ``content`` in chunks."""
    for at in range(0, len(content), size):
        yield flow.client(content[at : at + size])


# --- HPACK by hand ---


def integer(value: int, prefix: int, first: int = 0) -> bytes:
    """RFC 7541 §5.1."""
    most = (1 << prefix) - 1
    if value < most:
        return bytes([first | value])
    out, value = bytearray([first | most]), value - most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def string(text: bytes) -> bytes:
    return integer(len(text), 7) + text


def head(path: str = PREDICT, extra: bytes = b"") -> bytes:
    """A request's header block that leaves the table alone."""
    content_type = b"\x0f\x10" + string(b"application/grpc")
    return b"\x83\x86\x04" + string(path.encode()) + b"\x01" + string(b"m") + content_type + extra


def literal(value: bytes, indexed: bool = False) -> bytes:
    """``x: value``."""
    return (b"\x40" if indexed else b"\x00") + string(b"x") + string(value)


def blocks(each: Iterator[bytes]) -> Iterator[Flow]:
    """One flow: a request that is reset at once for each header block."""
    flow = Flow(1)
    flow.client(PREFACE + settings())
    sent = bytearray()
    for number, block in enumerate(each):
        stream = 2 * number + 1
        first, rest = block[:16384], block[16384:]
        sent += headers(stream, first, end_headers=not rest)
        while rest:
            part, rest = rest[:16384], rest[16384:]
            sent += continuation(stream, part, end_headers=not rest)
        sent += rst(stream, 8)
        if len(sent) > CHUNK:
            yield from pieces(flow, bytes(sent))
            sent.clear()
    yield from pieces(flow, bytes(sent))
    yield flow.closed()


# --- heads ---


@attack(peak=8 * MIB, counted={"flows_undecodable": 1, "requests_observed": 0})
def endless_head() -> Iterator[Flow]:
    """64 MiB of HTTP/1 fields without an end."""
    flow = Flow(1, listener=1).client(b"POST /api/predict/r HTTP/1.1\r\n")
    line = b"X-Field: " + b"v" * 1013 + b"\r\n"
    for _ in range(64 * MIB // CHUNK):
        yield flow.client(line * 64)


@attack(peak=8 * MIB, counted={"flows_undecodable": 1})
def endless_head_by_the_byte() -> Iterator[Flow]:
    """The same, one byte a packet."""
    yield from pieces(Flow(1, listener=1), b"POST /api/predict/r HTTP/1.1\r\nX: " + b"v" * 70_000, 1)


@attack(peak=8 * MIB, counted={"flows_undecodable": 1})
def continuation_flood() -> Iterator[Flow]:
    """HTTP/2: 64 MiB of CONTINUATION frames that never end their block."""
    flow = Flow(1).client(PREFACE + settings() + headers(1, head(), end_headers=False))
    part = continuation(1, literal(b"v" * 16_000), end_headers=False)
    for _ in range(64 * MIB // (4 * len(part))):
        yield flow.client(4 * part)


@attack(peak=8 * MIB, counted={"flows_undecodable": 1})
def empty_continuations() -> Iterator[Flow]:
    """HTTP/2: 100,000 CONTINUATION frames of no bytes."""
    flow = Flow(1).client(PREFACE + settings() + headers(1, head(), end_headers=False))
    yield from pieces(flow, continuation(1, b"", end_headers=False) * 100_000)


@attack(peak=16 * MIB, counted={"requests_lost": 200, "flows_undecodable": 0})
def header_bomb() -> Iterator[Flow]:
    """HPACK: an entry of 60 KiB, named 16,000 times in each of 200 blocks: 1 GiB of header list each."""

    def each() -> Iterator[bytes]:
        yield integer(1 << 16, 5, 0x20) + head(extra=literal(b"v" * (60 << 10), indexed=True))
        for _ in range(200):
            yield head(extra=b"\xbe" * 16_000)

    yield from blocks(each())


@attack(peak=16 * MIB, counted={"requests_incomplete": 20_000, "flows_undecodable": 0})
def table_games() -> Iterator[Flow]:
    """HPACK: 20,000 blocks, each of which resizes the table to nothing and back and inserts 50 entries."""
    yield from blocks(
        integer(0, 5, 0x20) + integer(1 << 16, 5, 0x20) + head(extra=literal(b"%d" % number, indexed=True) * 50)
        for number in range(20_000)
    )


@attack(peak=8 * MIB, counted={"flows_undecodable": 1, "requests_incomplete": 1})
def table_over_the_limit() -> Iterator[Flow]:
    """HPACK: a table larger than 64 KiB."""

    def each() -> Iterator[bytes]:
        yield head()
        yield integer((1 << 16) + 1, 5, 0x20) + head()
        yield head()

    yield from blocks(each())


@attack(peak=16 * MIB, counted={"requests_incomplete": 100, "flows_undecodable": 0})
def huffman() -> Iterator[Flow]:
    """HPACK: 100 blocks with 16 KiB of Huffman code each, no two alike."""
    encoder = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)

    def each() -> Iterator[bytes]:
        for number in range(100):
            code = encoder.encode(b"%d" % number + b"aeiost012" * 2800)
            yield head(extra=b"\x00" + string(b"x") + integer(len(code), 7, 0x80) + code)

    yield from blocks(each())


@attack(peak=8 * MIB, counted={"requests_refused": 100})
def long_paths() -> Iterator[Flow]:
    """HTTP/1: 100 services whose names are 60 KB long. (1 MB is an endless head.)"""
    flow = Flow(1, listener=1)
    for number in range(100):
        yield flow.post(f"/api/predict/{number}{'s' * 60_000}", eas(), status=404)


# --- streams, frames, connections ---


@attack(peak=256 * MIB, at_least={"requests_lost": 20 * (5000 - 4096)})
def open_streams() -> Iterator[Flow]:
    """HTTP/2: 100,000 requests over 20 connections of which none ends."""
    for number in range(1, 21):
        flow = Flow(number).client(PREFACE + settings())
        sent = b"".join(headers(2 * stream + 1, head()) + data(2 * stream + 1, b"abc") for stream in range(5000))
        yield from pieces(flow, sent)


@attack(peak=16 * MIB, counted={"flows_undecodable": 1, "requests_observed": 1000})
def pipelining() -> Iterator[Flow]:
    """HTTP/1: 5,000 requests that wait for no answer."""
    one = b"POST /api/predict/r HTTP/1.1\r\nHost: m\r\nContent-Length: 0\r\n\r\n"
    yield from pieces(Flow(1, listener=1), one * 5000)


@attack(peak=8 * MIB, counted={"flows_undecodable": 0, "requests_observed": 0})
def small_frames() -> Iterator[Flow]:
    """HTTP/2: 100,000 each of SETTINGS, PING, WINDOW_UPDATE, PRIORITY and RST_STREAM of no stream that there is."""
    each = settings([(3, 100)]) + frame(6, 0, 0, bytes(8)) + frame(8, 0, 0, bytes(3) + b"\1")
    each += frame(2, 0, 1, bytes(5)) + rst(1, 8)
    yield from pieces(Flow(1).client(PREFACE + settings()), each * 100_000)


@attack(peak=8 * MIB, counted={"requests_incomplete": 50_000})
def rapid_reset() -> Iterator[Flow]:
    """HTTP/2: 50,000 requests, each reset at once."""
    yield from blocks(head() for _ in range(50_000))


@attack(peak=16 * MIB, counted={"requests_refused": 1})
def tiny_chunks() -> Iterator[Flow]:
    """HTTP/1: a body of 300,000 chunks of one byte."""
    flow = Flow(1, listener=1).client(b"POST /api/predict/r HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    yield from pieces(flow, b"1\r\n\xff\r\n" * 300_000 + b"0\r\n\r\n")
    yield flow.server(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")


@attack(peak=192 * MIB, open_flows=20_000)
def connections() -> Iterator[Flow]:
    """20,000 connections that each send half a head and wait."""
    for number in range(1, 20_001):
        yield Flow(number, listener=1).client(b"POST /api/predict/r HTTP/1.1\r\nHost: m\r\n" + b"X: y\r\n" * 20)


@attack(peak=420 * MIB, at_least={"requests_oversized": 100})
def open_bodies() -> Iterator[Flow]:
    """3,200 bodies of 100 KB that never end: 320 MB."""
    part = b"POST /api/predict/r HTTP/1.1\r\nHost: m\r\nContent-Length: 200000\r\n\r\n" + bytes(100_000)
    for number in range(1, 3201):
        yield Flow(number, listener=1).client(part)


# --- signatures and names ---


@attack(peak=64 * MIB, counted={"signatures_turned_away": 18_000, "requests_proven": 20_000})
def new_signatures() -> Iterator[Flow]:
    """20,000 signatures, each sent once."""
    yield from signatures(20_000)


def signatures(count: int) -> Iterator[Flow]:
    flow = Flow(1, listener=1)
    for number in range(count):
        yield flow.post("/api/predict/r", eas(outputs=[f"o{number}"]))


@attack(
    peak=64 * MIB,
    counted={"requests_unproven": 2500, "requests_proven": 2500, "signatures_turned_away": 5000 - 1023 - 64},
)
def new_models() -> Iterator[Flow | None]:
    """2,500 models that do not exist, hung up on; then 2,500 that a server answers under any name."""
    body = eas()
    for number in range(2500):
        flow = Flow(number + 1, listener=1)
        sent = f"POST /api/predict/a{number} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        yield flow.client(sent).closed()
    yield None
    flow = Flow(5000, listener=1)
    for number in range(2500):
        yield flow.post(f"/api/predict/b{number}", body)


# --- bodies ---


def packed(size: int) -> bytes:
    """gzip of so many zeros."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(MIB)) for _ in range(size // MIB)) + packer.flush()


@attack(peak=200 * MIB, counted={"requests_undecodable": 3})
def grpc_gzip_bomb() -> Iterator[Flow]:
    """gRPC: three compressed messages of 260 KB that unpack to 256 MiB each."""
    flow, bomb = GrpcFlow(1), packed(256 * MIB)
    for _ in range(3):
        raw = b"\1" + len(bomb).to_bytes(4, "big") + bomb
        flow.answer(flow.request(b"", compressed=True, raw=raw), predict_response())
        yield flow


@attack(peak=200 * MIB, counted={"requests_undecodable": 3})
def http_gzip_bomb() -> Iterator[Flow]:
    """EAS: the same as HTTP bodies, unpacked where no Content-Encoding says what they are."""
    flow, bomb = Flow(1, listener=1), packed(256 * MIB)
    for encoding in ("", "Content-Encoding: gzip\r\n", "Content-Encoding: deflate\r\n"):
        yield flow.post("/api/predict/r", bomb, headers=encoding)


@attack(peak=200 * MIB, counted={"requests_undecodable": 4})
def http_packed_bombs() -> Iterator[Flow]:
    """EAS: 256 MiB of zeros in the other codings that its clients send without saying so; zstd twice, the second time a
    message of 63 MiB."""
    flow, zeros = Flow(1, listener=1), bytes(256 * MIB)
    codings = (cramjam.zstd.compress, cramjam.lz4.compress, cramjam.snappy.compress_raw)
    bombs = [bytes(compress(zeros)) for compress in codings]
    bombs.append(bytes(cramjam.zstd.compress(length_delimited(4, bytes(63 * MIB)))))
    for bomb in bombs:
        flow.client(b"POST /api/predict/r HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n\r\n" % len(bomb))
        yield from pieces(flow, bomb)
        yield flow.server(OK)


def posts(body: bytes) -> Iterator[Flow]:
    flow = Flow(1, listener=1)
    flow.client(b"POST /api/predict/r HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n\r\n" % len(body))
    yield from pieces(flow, body)
    yield flow.server(OK)


def calls(body: bytes) -> Iterator[Flow]:
    flow = GrpcFlow(1)
    flow.answer(flow.request(body), predict_response())
    yield flow


@attack(peak=96 * MIB, counted={"requests_undecodable": 1})
def million_inputs() -> Iterator[Flow]:
    """A PredictRequest of a million inputs."""
    entries = b"".join(length_delimited(2, length_delimited(1, b"%d" % number)) for number in range(1_000_000))
    yield from calls(predict() + entries)


@attack(peak=160 * MIB, counted={"requests_undecodable": 3})
def million_examples() -> Iterator[Flow]:
    """A ClassificationRequest of 16 million empty examples, a MultiInferenceRequest of a million tasks, and one whose
    Input has a million parts."""
    spec = length_delimited(1, messages.ModelSpec(name="m").SerializeToString())
    flow = GrpcFlow(1)
    listed = length_delimited(2, length_delimited(1, b"\x0a\x00" * (16 * MIB)))
    tasks = length_delimited(1, spec + length_delimited(2, REGRESS.encode())) * 1_000_000
    parts = length_delimited(2, b"\x0a\x02\x0a\x00" * 1_000_000)
    for method, body in (("Classify", spec + listed), ("MultiInference", tasks), ("Regress", spec + parts)):
        path = f"/tensorflow.serving.PredictionService/{method}"
        flow.answer(flow.request(body, path=path), predict_response())
    yield flow


@attack(peak=96 * MIB, counted={"requests_undecodable": 1})
def duplicate_keys() -> Iterator[Flow]:
    """A PredictRequest that names one input a million times."""
    yield from calls(predict() + length_delimited(2, length_delimited(1, b"x")) * 1_000_000)


@attack(peak=160 * MIB, counted={"requests_undecodable": 1})
def million_outputs() -> Iterator[Flow]:
    """An EAS request that asks for 16 million outputs without a name."""
    yield from posts(eas() + b"\x1a\x00" * (16 * MIB))


@attack(peak=64 * MIB, counted={"requests_undecodable": 2})
def nesting() -> Iterator[Flow]:
    """A million groups, one in the other, as gRPC and as EAS."""
    yield from calls(predict() + b"\xf3\x01" * 1_000_000 + b"\xf4\x01" * 1_000_000)
    flow = Flow(2, listener=1)
    yield flow.post("/api/predict/r", eas() + b"\xf3\x01" * 300_000)


@attack(peak=256 * MIB, counted={"requests_undecodable": 1})
def million_dimensions() -> Iterator[Flow]:
    """A tensor of 16 million dimensions."""
    shape = b"\x12\x00" * (16 * MIB)
    tensor = length_delimited(2, shape)
    yield from calls(predict() + length_delimited(2, length_delimited(1, b"y") + length_delimited(2, tensor)))


@attack(peak=700 * MIB, counted={"requests_undecodable": 1})
def million_strings() -> Iterator[Flow]:
    """An EAS tensor of 16 million empty strings."""
    strings = b"\x32\x00" * (16 * MIB)
    entry = length_delimited(1, b"x") + length_delimited(2, b"\x08\x07" + strings)
    yield from posts(length_delimited(2, entry))


@attack(peak=256 * MIB, counted={"requests_proven": 3})
def json_objects() -> Iterator[Flow]:
    """A text service: objects of ten million keys, nested two million deep, and of 90,000 keys, each of them the name
    of an input."""
    for number, body in enumerate(
        (b'{"a":1' + b',"b":1' * 10_000_000 + b"}", b'{"a":' * 2_000_000, many_keys(90_000)), 1
    ):
        flow = Flow(number, listener=2)
        flow.client(b"POST /api/predict/text HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n\r\n" % len(body))
        yield from pieces(flow, body)
        yield flow.server(OK)


def many_keys(count: int) -> bytes:
    return b"{" + b",".join(b'"%d":1' % number for number in range(count)) + b"}"


@attack(peak=32 * MIB, counted={"requests_undecodable": 4})
def json_nesting() -> Iterator[Flow]:
    """TF Serving's REST API: 4 MB of brackets, of digits, of keys, and of quotes that do not end."""
    flow = Flow(1, listener=1)
    deep, wide = b'{"instances":' + b"[" * 4_000_000, b"{" + b'"a":[NaN],' * 400_000
    for body in (deep, b"9" * 4_000_000, wide, b'{"instances":["' + b'\\"' * 2_000_000):
        flow.client(b"POST /v1/models/m:predict HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n\r\n" % len(body))
        yield from pieces(flow, body)
        yield flow.server(OK)
