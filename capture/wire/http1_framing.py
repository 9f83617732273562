"""HTTP/1.1's framing (RFC 9112 §6, §7): from bytes to heads, body data and trailers of one direction.

The state machine is the same for requests and responses; what a head means, and so which state follows it, is decided
by the observer that builds on it. Whatever two readers could frame differently is refused.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

from capture.wire.events import (
    Event,
    Headers,
    RequestData,
    ResponseData,
    Side,
)
from capture.wire.http1_head import (
    MAX_HEAD_BYTES,
    find_bare_lf,
    parse_fields,
    split_lines,
)

# A chunk-size line with its extensions, in bytes. Nobody sends extensions; nginx and Node stop at 4-16 KiB.
MAX_CHUNK_LINE_BYTES = 4096
# A trailer section, in bytes.
MAX_TRAILER_BYTES = 16 * 1024

# The states of one direction. Each but HEAD belongs to one message.
STATE_HEAD, STATE_LENGTH, STATE_CLOSE, STATE_SIZE, STATE_CHUNK, STATE_CHUNK_END, STATE_TRAILERS = range(7)

# RFC 9112 §7.1: hexadecimal size, then extensions, each behind a semicolon.
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")


class Exchange:
    """One request and its response."""

    __slots__ = ("lost", "method", "request_done", "response_done", "stream")

    def __init__(self, stream: int, method: bytes) -> None:
        self.stream = stream
        self.method = method
        self.lost = False
        self.request_done = False
        self.response_done = False


class Direction:
    """Where one direction stands."""

    __slots__ = ("buf", "closed", "exchange", "left", "offset", "side", "start", "state")

    def __init__(self, side: Side) -> None:
        self.side = side
        self.state = STATE_HEAD
        self.buf = bytearray()  # an incomplete head, chunk line or trailer section
        self.left = 0  # body or chunk bytes to come
        self.offset = 0  # bytes of this direction before the current chunk of bytes
        self.start = 0  # offset of the head or chunk line being read: where an error is reported
        self.exchange: Exchange | None = None
        self.closed = False

    @property
    def between_messages(self) -> bool:
        """Whether a head may begin with the next byte."""
        return self.state == STATE_HEAD and self.exchange is None and not self.buf and not self.closed


class FramingLayer(ABC):
    """Reads one direction. A subclass fills in what heads and ends mean."""

    def __init__(self) -> None:
        self._dead = False

    def _read(self, way: Direction, data: bytes, events: list[Event]) -> None:
        pos, end = 0, len(data)
        while pos < end and not self._dead:
            state = way.state
            if state == STATE_HEAD:
                pos = self._head(way, data, pos, events)
            elif state in (STATE_LENGTH, STATE_CHUNK, STATE_CLOSE):
                take = end - pos if state == STATE_CLOSE else min(way.left, end - pos)
                exchange = way.exchange
                if exchange is not None and not exchange.lost:
                    part = data if take == end else data[pos : pos + take]
                    events.append(
                        ResponseData(exchange.stream, part) if way.side else RequestData(exchange.stream, part)
                    )
                pos += take
                if state != STATE_CLOSE:
                    way.left -= take
                    if not way.left:
                        if state == STATE_LENGTH:
                            self._end(way, events)
                        else:
                            way.state = STATE_CHUNK_END
            elif state == STATE_SIZE:
                pos = self._chunk_line(way, data, pos, events)
            elif state == STATE_CHUNK_END:
                # Strict: lenient readers of these two bytes were a request-smuggling hole (h11 before 0.16).
                if data[pos] != b"\r\n"[way.left]:
                    self._refuse(way, way.start, "missing CRLF after chunk", events)
                    return
                pos += 1
                way.left += 1
                if way.left == 2:
                    way.left = 0
                    way.state = STATE_SIZE
            else:
                pos = self._trailers(way, data, pos, events)
        way.offset += end

    def _head(self, way: Direction, data: bytes, pos: int, events: list[Event]) -> int:
        """Reads towards the empty line; returns the position behind what was consumed."""
        buf = way.buf
        if not buf:
            way.start = way.offset + pos
            stop = data.find(b"\r\n\r\n", pos, pos + MAX_HEAD_BYTES)
            if stop >= 0:
                stop += 4
                # A whole head in one piece, the usual case: no copy but the key of the memo.
                self._begin(way, data[pos:stop], events)
                return stop
        seen = len(buf)
        buf += data[pos : pos + MAX_HEAD_BYTES - seen]
        # RFC 9112 §2.2: an empty line before a request is skipped. One, since more is no client that is known.
        if not way.side and buf.startswith(b"\r\n\r\n"):
            self._refuse(way, way.start, "bad request line", events)
            return len(data)
        stop = buf.find(b"\r\n\r\n", max(0, seen - 3))
        if find_bare_lf(buf, seen, stop if stop >= 0 else None) >= 0:
            self._refuse(way, way.start, "bare LF", events)
            return len(data)
        if stop < 0:
            if len(buf) >= MAX_HEAD_BYTES:
                self._refuse(way, way.start, "head too large", events)
            return len(data)
        stop += 4
        raw = bytes(buf[:stop])
        buf.clear()
        self._begin(way, raw, events)
        return pos + stop - seen

    def _chunk_line(self, way: Direction, data: bytes, pos: int, events: list[Event]) -> int:
        buf = way.buf
        if not buf:
            way.start = way.offset + pos
        stop = data.find(b"\n", pos, pos + MAX_CHUNK_LINE_BYTES - len(buf))
        if stop < 0:
            buf += data[pos : pos + MAX_CHUNK_LINE_BYTES - len(buf)]
            if len(buf) >= MAX_CHUNK_LINE_BYTES:
                self._refuse(way, way.start, "chunk line too long", events)
            return len(data)
        stop += 1
        line = bytes(buf) + data[pos:stop] if buf else data[pos:stop]
        buf.clear()
        match = _CHUNK_LINE.fullmatch(line)
        if not match:
            reason = "bad chunk size" if line.endswith(b"\r\n") else "bare LF"
            self._refuse(way, way.start, reason, events)
            return len(data)
        way.left = int(match[1], 16)
        if way.left:
            way.state = STATE_CHUNK
        else:
            way.state = STATE_TRAILERS
            way.start = way.offset + stop
            buf += b"\r\n"  # so that an empty section and a full one end alike: in an empty line
        return stop

    def _trailers(self, way: Direction, data: bytes, pos: int, events: list[Event]) -> int:
        buf = way.buf
        seen = len(buf)
        buf += data[pos : pos + MAX_TRAILER_BYTES - seen]
        stop = buf.find(b"\r\n\r\n", max(0, seen - 3))
        if find_bare_lf(buf, seen, stop if stop >= 0 else None) >= 0:
            self._refuse(way, way.start, "bare LF", events)
            return len(data)
        if stop < 0:
            if len(buf) >= MAX_TRAILER_BYTES:
                self._refuse(way, way.start, "trailers too large", events)
            return len(data)
        stop += 4
        lines = split_lines(bytes(buf[2:stop]))
        buf.clear()
        fields = lines if isinstance(lines, str) else parse_fields(lines)
        if isinstance(fields, str):
            self._refuse(way, way.start, fields, events)
            return len(data)
        self._end(way, events, fields)
        return pos + stop - seen

    @abstractmethod
    def _begin(self, way: Direction, raw: bytes, events: list[Event]) -> None:
        """A head is complete; sets the state that reads its body."""

    @abstractmethod
    def _end(self, way: Direction, events: list[Event], trailers: Headers = ()) -> None:
        """The message is complete; the next head follows."""

    @abstractmethod
    def _refuse(self, way: Direction, offset: int, reason: str, events: list[Event]) -> None:
        """The bytes at ``offset`` break the protocol. Afterwards the flow is dead."""
