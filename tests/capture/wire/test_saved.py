"""An observer that is saved at any point and loaded elsewhere reads on as if nothing had been, and keeps no secret."""

from __future__ import annotations

import random

import hpack
import msgspec
import pytest

from capture.wire import events as ev
from capture.wire.detect import FlowObserver
from capture.wire.saved import SavedFlow, kept
from tests.support import wire_h2 as h2

SECRET = "s3cret-t0ken-"
PATHS = [f"/tensorflow.serving.PredictionService/{name}" for name in ("Predict", "Classify", "Regress")]


class Sender:
    """A client and a server with encoders that insert, evict and resize at random, of which the client's path, each
    body and each status are known."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._encoders = hpack.Encoder(), hpack.Encoder()
        self._stream = -1
        self.chunks: list[tuple[ev.Side, bytes]] = [(ev.Side.CLIENT, h2.PREFACE + h2.settings())]
        self.chunks.append((ev.Side.SERVER, h2.settings()))
        #: stream -> (path, body, grpc-status)
        self.truth: dict[int, tuple[bytes, bytes, bytes]] = {}

    def _block(self, side: ev.Side, fields: list[tuple[str, str]]) -> bytes:
        draw, encoder = self._draw, self._encoders[side]
        if draw.random() < 0.05:
            encoder.header_table_size = draw.choice([0, 64, 200, 1000, 4096])
        pairs = [
            hpack.NeverIndexedHeaderTuple(*field) if draw.random() < 0.1 else hpack.HeaderTuple(*field)
            for field in fields
        ]
        return bytes(encoder.encode(pairs, huffman=draw.random() < 0.5))

    def _send(self, side: ev.Side, data: bytes) -> None:
        while data:
            size = self._draw.choice([1, 3, 9, 30, 200, len(data)])
            self.chunks.append((side, data[:size]))
            data = data[size:]

    def _head(self, side: ev.Side, block: bytes, end: bool = False) -> bytes:
        if self._draw.random() < 0.7 or len(block) < 2:
            return h2.headers(self._stream, block, end)
        cut = self._draw.randrange(1, len(block))
        first = h2.headers(self._stream, block[:cut], end, end_headers=False)
        return first + h2.continuation(self._stream, block[cut:])

    def call(self, number: int) -> None:
        draw = self._draw
        self._stream += 2
        path, body, status = draw.choice(PATHS), b"body %d" % number, draw.choice("05")
        fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", f"m{draw.randrange(3)}")]
        fields += [("te", "trailers"), ("authorization", SECRET + "x" * draw.randrange(3))]
        if draw.random() < 0.5:
            fields.append(("x-request-id", f"{SECRET}{number}"))
        self._send(ev.Side.CLIENT, self._head(ev.Side.CLIENT, self._block(ev.Side.CLIENT, fields)))
        self._send(ev.Side.CLIENT, h2.data(self._stream, body, True, draw.choice([0, 0, 7])))
        answer = [(":status", "200"), ("content-type", "application/grpc"), ("set-cookie", f"{SECRET}{number % 5}")]
        self._send(ev.Side.SERVER, self._head(ev.Side.SERVER, self._block(ev.Side.SERVER, answer)))
        trailers = [("grpc-status", status), ("x-trace", f"{SECRET}{draw.randrange(9)}")]
        self._send(ev.Side.SERVER, self._head(ev.Side.SERVER, self._block(ev.Side.SERVER, trailers), True))
        self.truth[self._stream] = (path.encode(), body, status.encode())


class Reader:
    """Feeds an observer that is handed over at random, through bytes. What it understood of each stream."""

    def __init__(self, draw: random.Random, handovers: float, in_blocks: bool) -> None:
        """``handovers``: how often. ``in_blocks``: inside header blocks too, which are not kept."""
        self._draw = draw
        self._handovers = handovers
        self._in_blocks = in_blocks
        self.observer = FlowObserver()
        self._records: list[SavedFlow] = [_whole(self.observer)]
        self.raw: list[bytes] = []
        self.handed = 0
        #: Handed over inside a header block, which is not kept.
        self.cut = False
        self.paths: dict[int, tuple[bytes, bool]] = {}
        self.bodies: dict[int, bytes] = {}
        self.status: dict[int, tuple[bytes, bool]] = {}
        self._given_up: set[int] = set()

    def feed(self, side: ev.Side, data: bytes) -> None:
        for event in self.observer.feed(side, data):
            assert not isinstance(event, ev.Undecodable), event
            if isinstance(event, ev.RequestHead):
                self.paths[event.stream] = (event.target, event.verified)
                self.bodies[event.stream] = b""
            elif isinstance(event, ev.RequestData) and event.stream not in self._given_up:
                self.bodies[event.stream] += event.data
            elif isinstance(event, ev.ResponseEnd) and event.stream not in self._given_up:
                self.status[event.stream] = (dict(event.trailers).get(b"grpc-status", b""), event.verified)
        if self._draw.random() < 0.5 and (saved := self.observer.save()) is not None:
            self._records.append(saved)
        if self._draw.random() < self._handovers:
            self._hand_over()

    def _hand_over(self) -> None:
        if (last := self.observer.save()) is not None:
            self._records.append(last)
        http2 = self._records[-1].http2
        cut = http2 is not None and (http2.client.cut or http2.server.cut)
        if cut and not self._in_blocks:
            return
        self.cut = self.cut or cut
        self.raw += [msgspec.msgpack.encode(record) for record in self._records]
        follower = FlowObserver()
        for record in self._records:
            follower.load(msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=SavedFlow))
        follower.resume()
        # What is open is not kept.
        self._given_up |= self.paths.keys() - self.status.keys()
        self.observer = follower
        self._records = [_whole(follower)]
        self.handed += 1


def _whole(observer: FlowObserver) -> SavedFlow:
    saved = observer.save(whole=True)
    assert saved is not None
    return saved


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("seed", range(100))
def test_reading_on_is_exact(seed: int, in_blocks: bool) -> None:
    draw = random.Random(seed)
    sender = Sender(draw)
    for number in range(60):
        sender.call(number)
    reader = Reader(draw, 0.05, in_blocks)
    for side, data in sender.chunks:
        reader.feed(side, data)
    assert reader.handed
    for stream, (path, body, status) in sender.truth.items():
        if stream in reader.paths and reader.paths[stream][1]:
            assert reader.paths[stream][0] == path
        if reader.status.get(stream, (b"", False))[1] and stream in reader.paths:
            assert reader.status[stream][0] == status
            assert reader.bodies[stream] == body
    assert reader.cut == in_blocks
    if not in_blocks:
        # Nothing but what was open is missing, and nothing is in doubt.
        assert all(verified for _, verified in (*reader.paths.values(), *reader.status.values()))
        assert len(sender.truth) - len(reader.status) <= reader.handed
    assert SECRET.encode() not in b"".join(reader.raw)


def test_secrets_are_replaced_by_their_length() -> None:
    assert kept(b"authorization", b"Bearer abc") == b"*" * 10
    assert kept(b":path", b"/v1/models/m:predict?token=abc") == b"/v1/models/m:predict?*********"
    assert kept(b"user-agent", b"grpc-python/1.80") == b"grpc-python/1.80"
