"""HTTP/2's framing layer (RFC 9113 §4, §6): from bytes to data, header blocks, resets. What they mean for a stream is
decided by the observer that builds on it.

DATA passes through; of other frames one payload is held at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from struct import Struct

from capture.wire.events import Event, Headers, RequestData, ResponseData, Side
from capture.wire.http2_direction import (
    STATE_COLLECT,
    STATE_DATA,
    STATE_HEADER,
    STATE_PAD_LENGTH,
    STATE_SKIP,
    Direction,
)
from capture.wire.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER_BYTES,
    HEADERS,
    LARGEST_FRAME_BYTES,
    PADDED,
    PING,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# A compressed header block with its CONTINUATION frames, in bytes, and the number of these frames: servers of this
# field stop at 8-64 KiB; a flood of empty CONTINUATION frames costs a reader memory and time (CVE-2024-27316).
MAX_BLOCK_BYTES = 256 * 1024
MAX_CONTINUATIONS = 128
# A SETTINGS frame, in bytes: six per setting, and no peer sends more than ten.
MAX_SETTINGS_BYTES = 6 * 256
# Fixed payload lengths of frames that are only skipped (§6.3, §6.7, §6.9), in bytes.
_SKIPPED_LENGTH = {PRIORITY: 5, PING: 8, WINDOW_UPDATE: 4}

# Length (24 bits, in two parts), type, flags, stream: §4.1.
_unpack_header = Struct(">HBBBI").unpack_from


# An answer in HTTP/1 ("HTTP/..."), read as the length and type of a frame; the reason of ``Undecodable`` then.
_HTTP1 = (int.from_bytes(b"HTT", "big"), ord("P"))
HTTP1_ANSWER = "http/1 answer to http/2"


class FrameLayer(ABC):
    """Reads both directions. A subclass fills in what frames mean."""

    def __init__(self, joined: bool) -> None:
        self._client = Direction(Side.CLIENT, joined)
        self._server = Direction(Side.SERVER, joined)
        self._streams: dict[int, int] = {}  # open streams and what is known of them
        self._mentioned = 0  # highest client-initiated stream named by any frame
        self._dead = False

    def _read(self, way: Direction, data: bytes, events: list[Event]) -> None:
        pos, end = 0, len(data)
        buf = way.buf
        while pos < end:
            state = way.state
            if state == STATE_HEADER:
                if buf or end - pos < HEADER_BYTES:
                    if not buf:
                        way.start = way.offset + pos
                    need = HEADER_BYTES - len(buf)
                    buf += data[pos : pos + need]
                    pos += need
                    if len(buf) < HEADER_BYTES:
                        break
                    high, low, kind, flags, stream = _unpack_header(buf)
                    buf.clear()
                else:
                    way.start = way.offset + pos
                    high, low, kind, flags, stream = _unpack_header(data, pos)
                    pos += HEADER_BYTES
                self._frame(way, high << 8 | low, kind, flags, stream & 0x7FFFFFFF, events)
            elif state == STATE_DATA:
                left = way.left
                take = left if left <= end - pos else end - pos
                if way.stream in self._streams:
                    part = data[pos : pos + take]
                    events.append(ResponseData(way.stream, part) if way.side else RequestData(way.stream, part))
                pos += take
                way.left = left - take
                if not way.left:
                    self._data_end(way, events)
            elif state == STATE_COLLECT:
                left = way.left
                if not buf and end - pos >= left:
                    payload = data[pos : pos + left]
                    pos += left
                else:
                    take = min(left - len(buf), end - pos)
                    buf += data[pos : pos + take]
                    pos += take
                    if len(buf) < left:
                        break
                    payload = bytes(buf)
                    buf.clear()
                way.state = STATE_HEADER
                self._payload(way, payload, events)
            elif state == STATE_SKIP:
                take = min(way.left, end - pos)
                pos += take
                way.left -= take
                if not way.left:
                    self._skip_end(way, events)
            elif state == STATE_PAD_LENGTH:
                padding = data[pos]
                pos += 1
                way.left -= 1
                if padding > way.left:
                    self._broken(way, "padding too long", events)
                else:
                    way.padding = padding
                    way.left -= padding
                    way.state = STATE_DATA
                    if not way.left:
                        self._data_end(way, events)
            else:
                need = len(PREFACE) - len(buf)
                buf += data[pos : pos + need]
                pos += need
                if not PREFACE.startswith(buf):
                    self._broken(way, "bad preface", events)
                elif len(buf) == len(PREFACE):
                    buf.clear()
                    way.state = STATE_HEADER
            if way.hunt is not None or self._dead:
                way.offset += min(pos, end)
                if way.hunt is not None:
                    self._look(way, data[pos:], events)
                return
        way.offset += end

    def _frame(self, way: Direction, length: int, kind: int, flags: int, stream: int, events: list[Event]) -> None:
        """A frame header is complete: checks it and decides what happens to the payload."""
        way.kind, way.flags, way.stream, way.left, way.padding = kind, flags, stream, length, 0
        if length > way.max_frame:
            http1 = bool(way.side) and (length, kind) == _HTTP1
            self._broken(way, HTTP1_ANSWER if http1 else "frame too large", events)
            return
        if (way.block_stream or kind == CONTINUATION) and (
            not way.block_stream or kind != CONTINUATION or (way.block_stream > 0 and way.block_stream != stream)
        ):
            if way.block_stream or not way.gapped:
                self._broken(way, "header block interrupted", events)
                return
            # After a gap: the continuation of a block whose beginning was missed.
            way.block_stream = -1
        if stream > self._mentioned and stream & 1:
            self._mentioned = stream
        if kind == DATA:
            if not stream:
                self._broken(way, "frame on stream 0", events)
                return
            allowed = self._data_allowed(way, stream, events)
            if flags & PADDED:
                if length:
                    way.state = STATE_PAD_LENGTH
                else:
                    self._broken(way, "padding too long", events)
            elif length:
                way.state = STATE_DATA if allowed else STATE_SKIP
            else:
                self._data_end(way, events)
            return
        if kind in (HEADERS, CONTINUATION, PUSH_PROMISE, RST_STREAM):
            if not stream:
                self._broken(way, "frame on stream 0", events)
            elif kind == RST_STREAM and length != 4:
                self._broken(way, "bad frame length", events)
            elif kind != RST_STREAM and length + len(way.block) > MAX_BLOCK_BYTES:
                self._broken(way, "header block too large", events)
            elif length:
                way.state = STATE_COLLECT
            else:
                self._payload(way, b"", events)
            return
        if kind in (SETTINGS, GOAWAY):
            if stream:
                self._broken(way, "frame on a stream", events)
            elif kind == SETTINGS and (length % 6 or (flags & ACK and length)):
                self._broken(way, "bad frame length", events)
            elif kind == SETTINGS and length > MAX_SETTINGS_BYTES:
                self._broken(way, "settings too large", events)
            elif kind == GOAWAY and length < 8:
                self._broken(way, "bad frame length", events)
            elif kind == GOAWAY:
                way.padding = length - 8  # debug data, skipped
                way.left = 8
                way.state = STATE_COLLECT
            elif length:
                way.state = STATE_COLLECT
            return
        if length != _SKIPPED_LENGTH.get(kind, length):
            self._broken(way, "bad frame length", events)
        elif length:
            way.state = STATE_SKIP

    def _data_end(self, way: Direction, events: list[Event]) -> None:
        """The data of a DATA frame is complete."""
        if way.padding:
            way.left, way.padding = way.padding, 0
            way.state = STATE_SKIP
            return
        way.state = STATE_HEADER
        if way.flags & END_STREAM and way.stream in self._streams:
            self._end(way, way.stream, (), True, events)

    def _skip_end(self, way: Direction, events: list[Event]) -> None:
        way.state = STATE_HEADER
        if way.kind == DATA:
            self._data_end(way, events)

    def _payload(self, way: Direction, payload: bytes, events: list[Event]) -> None:
        """The payload of a collected frame is complete."""
        kind = way.kind
        if kind in (HEADERS, PUSH_PROMISE):
            self._open_block(way, payload, events)
        elif kind == CONTINUATION:
            way.continuations += 1
            if way.continuations > MAX_CONTINUATIONS:
                self._broken(way, "too many continuations", events)
            elif way.block_stream < 0:
                if way.flags & END_HEADERS:
                    way.block_stream = 0
                    way.table.distrust()
            else:
                way.block += payload
                if way.flags & END_HEADERS:
                    block = bytes(way.block)
                    way.block.clear()
                    way.block_stream = 0
                    self._head(way, way.stream, way.block_flags, block, events)
        elif kind == RST_STREAM:
            self._reset(way, int.from_bytes(payload, "big"), events)
        elif kind == SETTINGS:
            self._settings(way, payload)
        else:
            last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
            code = int.from_bytes(payload[4:8], "big")
            if way.side:  # a client's GOAWAY speaks of pushed streams
                self._goaway(last, code, events)
            if way.padding:
                way.left, way.padding = way.padding, 0
                way.state = STATE_SKIP

    def _open_block(self, way: Direction, payload: bytes, events: list[Event]) -> None:
        """HEADERS or PUSH_PROMISE: strips padding, priority and the promised stream."""
        flags = way.flags
        start, stop = 0, len(payload)
        if flags & PADDED:
            start = 1
            stop -= payload[0] if payload else 1
        if way.kind == PUSH_PROMISE:
            start += 4
        elif flags & PRIORITY_FLAG:
            start += 5
        if start > stop:
            self._broken(way, "padding too long", events)
            return
        block = payload[start:stop] if start or stop != len(payload) else payload
        # A push promise changes the table and opens nothing that is of interest: stream 0 stands for it.
        way.block_flags = flags if way.kind == HEADERS else -1
        if flags & END_HEADERS:
            self._head(way, way.stream, way.block_flags, block, events)
        else:
            way.block += block
            way.block_stream = way.stream
            way.continuations = 0

    def _settings(self, way: Direction, payload: bytes) -> None:
        """What the sender accepts bounds the other direction. Until acknowledged either value holds: the larger."""
        other = self._client if way.side else self._server
        for at in range(0, len(payload), 6):
            if payload[at : at + 2] == b"\x00\x05":
                value = int.from_bytes(payload[at + 2 : at + 6], "big")
                other.max_frame = min(max(other.max_frame, value), LARGEST_FRAME_BYTES)

    @abstractmethod
    def _data_allowed(self, way: Direction, stream: int, events: list[Event]) -> bool:
        """Whether DATA on this stream is to be passed on; a stream that must not send any is given up."""

    @abstractmethod
    def _head(self, way: Direction, stream: int, flags: int, block: bytes, events: list[Event]) -> None:
        """A header block is complete. ``flags`` -1: a push promise."""

    @abstractmethod
    def _end(self, way: Direction, stream: int, trailers: Headers, verified: bool, events: list[Event]) -> None:
        """This direction of an open stream is complete."""

    @abstractmethod
    def _reset(self, way: Direction, code: int, events: list[Event]) -> None:
        """RST_STREAM on the current frame's stream."""

    @abstractmethod
    def _goaway(self, last: int, code: int, events: list[Event]) -> None:
        """The server will not answer streams above ``last``."""

    @abstractmethod
    def _broken(self, way: Direction, reason: str, events: list[Event]) -> None:
        """The bytes break the protocol. Afterwards the flow is dead, or the direction hunts."""

    @abstractmethod
    def _look(self, way: Direction, data: bytes, events: list[Event]) -> None:
        """Bytes of a direction that hunts for a frame border."""
