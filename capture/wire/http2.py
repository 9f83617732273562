"""HTTP/2 (RFC 9113): both directions of one flow.

Every header block is decoded, whatever became of its stream, since HPACK's table depends on all of them. DATA passes
through; of other frames one payload is held at a time. Closed and reset streams are forgotten at once. Within one
direction a broken frame makes the flow opaque; after a gap it means that the alignment was wrong, and it is looked for
again (``http2_frames.Hunt``).
"""

from __future__ import annotations

from capture.wire.events import (
    Aborted,
    Event,
    Headers,
    Lost,
    Missed,
    RequestData,
    RequestEnd,
    RequestHead,
    ResponseData,
    ResponseEnd,
    ResponseHead,
    ResponseInfo,
    Resynced,
    Side,
    Undecodable,
    Unsynced,
)
from capture.wire.hpack_table import Block, HpackError, HpackTable
from capture.wire.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME_BYTES,
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
    Hunt,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# A compressed header block with its CONTINUATION frames, in bytes, and the number of these frames: servers of this
# field stop at 8-64 KiB; a flood of empty CONTINUATION frames costs a reader memory and time (CVE-2024-27316).
MAX_BLOCK_BYTES = 256 * 1024
MAX_CONTINUATIONS = 128
# A SETTINGS frame, in bytes: six per setting, and no peer sends more than ten.
MAX_SETTINGS_BYTES = 6 * 256
# Open streams followed at a time. Servers allow 100-1,000 (grpc-java: no limit); each costs about 100 bytes here.
MAX_OPEN_STREAMS = 4096
_STREAM_BYTES = 120
# Alignments tried per direction before a flow is given up: each costs a search through what follows.
MAX_REALIGNMENTS = 16

_CLIENT_ENDED, _ANSWERED, _SERVER_ENDED = 1, 2, 4
# Fixed payload lengths of frames that are only skipped (§6.3, §6.7, §6.9), in bytes.
_SKIPPED_LENGTH = {PRIORITY: 5, PING: 8, WINDOW_UPDATE: 4}

_PREFACE, _HEADER, _PAD_LENGTH, _DATA, _SKIP, _COLLECT = range(6)


class _Direction:
    """Where one direction stands."""

    __slots__ = (
        "block",
        "block_flags",
        "block_stream",
        "buf",
        "closed",
        "continuations",
        "flags",
        "gapped",
        "hunt",
        "kind",
        "left",
        "max_frame",
        "offset",
        "padding",
        "realignments",
        "side",
        "start",
        "state",
        "stream",
        "table",
    )

    def __init__(self, side: Side, joined: bool) -> None:
        self.side = side
        self.state = _HEADER if side or joined else _PREFACE
        self.buf = bytearray()  # an incomplete frame header, preface or collected payload
        self.kind = self.flags = self.stream = 0
        self.left = 0  # payload bytes to come, without padding
        self.padding = 0
        self.block = bytearray()  # a header block that awaits its CONTINUATION
        self.block_stream = 0  # 0: none is open; -1: the open one's beginning was missed
        self.block_flags = 0
        self.continuations = 0
        self.table = HpackTable(joined)
        self.max_frame = LARGEST_FRAME_BYTES if joined else DEFAULT_FRAME_BYTES
        self.offset = 0  # bytes of this direction before the current chunk
        self.start = 0  # offset of the current frame
        self.gapped = joined
        self.hunt: Hunt | None = Hunt(side, LARGEST_FRAME_BYTES) if joined else None
        self.realignments = 0
        self.closed = False


class Http2Observer:
    """Implements ``Observer`` for HTTP/2. Streams keep their HTTP/2 numbers."""

    def __init__(self, joined: bool = False) -> None:
        """``joined``: the flow's beginning was not seen; both directions start unsynced, and only blocks that need no
        earlier HPACK entry are read: the others are ``Lost(reason="header history lost")``."""
        self._client = _Direction(Side.CLIENT, joined)
        self._server = _Direction(Side.SERVER, joined)
        self._streams: dict[int, int] = {}
        self._highest = 0  # highest stream whose request head was due
        self._mentioned = 0  # highest client-initiated stream named by any frame
        self._joined = joined
        self._count_missed = False  # client bytes were missed: the next new stream tells how many requests
        self._unread = 0  # client bytes missed or not understood since then
        self._dead = False

    @property
    def unsynced(self) -> bool:
        return not self._dead and (self._client.hunt is not None or self._server.hunt is not None)

    def held_bytes(self) -> int:
        held = len(self._streams) * _STREAM_BYTES
        for way in (self._client, self._server):
            held += len(way.buf) + len(way.block) + way.table.held_bytes()
            if way.hunt is not None:
                held += way.hunt.held_bytes()
        return held

    def feed(self, side: Side, data: bytes) -> list[Event]:
        events: list[Event] = []
        way = self._server if side else self._client
        if not self._dead and not way.closed and data:
            if way.hunt is not None:
                self._look(way, data, events)
            else:
                self._read(way, data, events)
        return events

    def _read(self, way: _Direction, data: bytes, events: list[Event]) -> None:
        pos, end = 0, len(data)
        buf = way.buf
        while pos < end:
            state = way.state
            if state == _HEADER:
                if buf or end - pos < HEADER_BYTES:
                    if not buf:
                        way.start = way.offset + pos
                    need = HEADER_BYTES - len(buf)
                    buf += data[pos : pos + need]
                    pos += need
                    if len(buf) < HEADER_BYTES:
                        break
                    header = bytes(buf)
                    buf.clear()
                else:
                    way.start = way.offset + pos
                    header = data[pos : pos + HEADER_BYTES]
                    pos += HEADER_BYTES
                self._frame(way, header, events)
            elif state == _DATA:
                left = way.left
                take = left if left <= end - pos else end - pos
                if way.stream in self._streams:
                    part = data[pos : pos + take]
                    events.append(ResponseData(way.stream, part) if way.side else RequestData(way.stream, part))
                pos += take
                way.left = left - take
                if not way.left:
                    self._data_end(way, events)
            elif state == _COLLECT:
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
                way.state = _HEADER
                self._payload(way, payload, events)
            elif state == _SKIP:
                take = min(way.left, end - pos)
                pos += take
                way.left -= take
                if not way.left:
                    self._skip_end(way, events)
            elif state == _PAD_LENGTH:
                padding = data[pos]
                pos += 1
                way.left -= 1
                if padding > way.left:
                    self._broken(way, "padding too long", events)
                else:
                    way.padding = padding
                    way.left -= padding
                    way.state = _DATA
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
                    way.state = _HEADER
            if way.hunt is not None or self._dead:
                way.offset += min(pos, end)
                if way.hunt is not None:
                    self._look(way, data[pos:], events)
                return
        way.offset += end

    def _frame(self, way: _Direction, header: bytes, events: list[Event]) -> None:
        """A frame header is complete: checks it and decides what happens to the payload."""
        length = int.from_bytes(header[:3], "big")
        kind, flags = header[3], header[4]
        stream = int.from_bytes(header[5:], "big") & 0x7FFFFFFF
        way.kind, way.flags, way.stream, way.left, way.padding = kind, flags, stream, length, 0
        if length > way.max_frame:
            self._broken(way, "frame too large", events)
            return
        if (way.block_stream != 0) != (kind == CONTINUATION) or (way.block_stream > 0 and way.block_stream != stream):
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
                    way.state = _PAD_LENGTH
                else:
                    self._broken(way, "padding too long", events)
            elif length:
                way.state = _DATA if allowed else _SKIP
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
                way.state = _COLLECT
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
                way.state = _COLLECT
            elif length:
                way.state = _COLLECT
            return
        if length != _SKIPPED_LENGTH.get(kind, length):
            self._broken(way, "bad frame length", events)
        elif length:
            way.state = _SKIP

    def _data_allowed(self, way: _Direction, stream: int, events: list[Event]) -> bool:
        """Whether DATA on this stream is to be passed on; a stream that must not send any is given up."""
        state = self._streams.get(stream)
        if state is None:
            return False
        if way.side:
            if state & _ANSWERED and not state & _SERVER_ENDED:
                return True
        elif not state & _CLIENT_ENDED:
            return True
        self._lose(stream, "data out of place", events)
        return False

    def _data_end(self, way: _Direction, events: list[Event]) -> None:
        """The data of a DATA frame is complete."""
        if way.padding:
            way.left, way.padding = way.padding, 0
            way.state = _SKIP
            return
        way.state = _HEADER
        if way.flags & END_STREAM and way.stream in self._streams:
            self._end(way, way.stream, (), True, events)

    def _skip_end(self, way: _Direction, events: list[Event]) -> None:
        way.state = _HEADER
        if way.kind == DATA:
            self._data_end(way, events)

    def _payload(self, way: _Direction, payload: bytes, events: list[Event]) -> None:
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
            if self._streams.pop(way.stream, None) is not None:
                events.append(Aborted(way.stream, way.side, int.from_bytes(payload, "big"), "reset"))
        elif kind == SETTINGS:
            self._settings(way, payload)
        else:
            last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
            code = int.from_bytes(payload[4:8], "big")
            if way.side:  # a client's GOAWAY speaks of pushed streams
                for stream in [number for number in self._streams if number > last]:
                    del self._streams[stream]
                    events.append(Aborted(stream, way.side, code, "goaway"))
            if way.padding:
                way.left, way.padding = way.padding, 0
                way.state = _SKIP

    def _open_block(self, way: _Direction, payload: bytes, events: list[Event]) -> None:
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

    def _settings(self, way: _Direction, payload: bytes) -> None:
        """What the sender accepts bounds the other direction. Until acknowledged either value holds: the larger."""
        other = self._client if way.side else self._server
        for at in range(0, len(payload), 6):
            if payload[at : at + 2] == b"\x00\x05":
                value = int.from_bytes(payload[at + 2 : at + 6], "big")
                other.max_frame = min(max(other.max_frame, value), LARGEST_FRAME_BYTES)

    def _head(self, way: _Direction, stream: int, flags: int, block: bytes, events: list[Event]) -> None:
        """A header block is complete. ``flags`` -1: a push promise."""
        try:
            head = way.table.decode(block)
        except HpackError as error:
            self._broken(way, str(error), events)
            return
        if flags < 0:
            return
        end = flags & END_STREAM != 0
        state = self._streams.get(stream)
        if way.side:
            if state is not None:
                self._response(way, stream, state, head, end, events)
        elif state is not None:
            if state & _CLIENT_ENDED or not end:
                self._lose(stream, "headers out of place", events)
            else:
                self._trailers(way, stream, head, events)
        elif stream > self._highest and stream & 1:
            self._request(way, stream, head, end, events)

    def _request(self, way: _Direction, stream: int, head: Block, end: bool, events: list[Event]) -> None:
        missed = (stream - self._highest) // 2 - 1
        self._highest = stream
        if self._count_missed:
            # Clients number their streams without leaving any out, so the gap in the numbers is the loss.
            self._count_missed = False
            self._unread = 0
            if missed > 0 and not self._joined:
                events.append(Missed(missed, True))
            self._joined = False
        reason = head.fault
        if not reason:
            if not head.is_request:
                # After a gap: the trailers of a request whose head was missed.
                reason = "gap" if way.gapped and not head.pseudo else "malformed head"
            elif not head.verified and not head.plausible:
                reason = "implausible head"
            elif len(self._streams) >= MAX_OPEN_STREAMS:
                reason = "too many open streams"
        if reason:
            events.append(Lost(stream, reason))
            return
        target = head.path if head.method != b"CONNECT" or head.path else head.authority
        events.append(RequestHead(stream, head.method, target, head.authority, head.headers, head.verified))
        self._streams[stream] = 0
        if end:
            self._end(way, stream, (), True, events)

    def _response(self, way: _Direction, stream: int, state: int, head: Block, end: bool, events: list[Event]) -> None:
        if state & _SERVER_ENDED:
            self._lose(stream, "headers out of place", events)
        elif state & _ANSWERED:
            if end:
                self._trailers(way, stream, head, events)
            else:
                self._lose(stream, "headers out of place", events)
        elif head.fault or not head.status or head.method:
            self._lose(stream, head.fault or "malformed head", events)
        elif head.status < 200:
            if end:
                self._lose(stream, "malformed head", events)
            else:
                events.append(ResponseInfo(stream, head.status))
        else:
            self._streams[stream] = state | _ANSWERED
            events.append(ResponseHead(stream, head.status, head.headers, head.verified))
            if end:
                self._end(way, stream, (), True, events)

    def _trailers(self, way: _Direction, stream: int, head: Block, events: list[Event]) -> None:
        if head.fault or head.pseudo:
            self._lose(stream, head.fault or "malformed trailers", events)
        else:
            self._end(way, stream, head.headers, head.verified, events)

    def _end(self, way: _Direction, stream: int, trailers: Headers, verified: bool, events: list[Event]) -> None:
        """This direction of the stream is complete."""
        state = self._streams[stream]
        if way.side:
            events.append(ResponseEnd(stream, trailers, verified))
            state |= _SERVER_ENDED
        else:
            events.append(RequestEnd(stream, trailers, verified))
            state |= _CLIENT_ENDED
        if state & _CLIENT_ENDED and state & _SERVER_ENDED:
            del self._streams[stream]
        else:
            self._streams[stream] = state

    def _lose(self, stream: int, reason: str, events: list[Event]) -> None:
        if self._streams.pop(stream, None) is not None:
            events.append(Lost(stream, reason))

    def _lose_unended(self, side: Side, events: list[Event]) -> None:
        """Bytes that ``side`` sent were missed: its messages that were not complete cannot be read."""
        ended = _SERVER_ENDED if side else _CLIENT_ENDED
        for stream in [number for number, state in self._streams.items() if not state & ended]:
            self._lose(stream, "gap", events)

    def gap(self, side: Side, count: int) -> list[Event]:
        events: list[Event] = []
        way = self._server if side else self._client
        if self._dead or way.closed or count <= 0:
            return events
        way.offset += count
        if way.hunt is None:
            inside = way.left + way.padding
            if way.state in (_DATA, _PAD_LENGTH, _SKIP) and count <= inside:
                # The frame's length is known: alignment and header table survive, one stream does not.
                if way.kind == DATA:
                    self._lose(way.stream, "gap", events)
                way.left, way.padding, way.state = inside - count, 0, _SKIP
                if not way.left:
                    way.state = _HEADER
                return events
        if not side:
            self._unread += count
            self._count_missed = True
        self._lose_unended(side, events)
        self._hunt(way, way.hunt is None, events)
        return events

    def _hunt(self, way: _Direction, announce: bool, events: list[Event]) -> None:
        """Starts to look for a frame border."""
        way.gapped = True
        way.buf.clear()
        way.block.clear()
        way.block_stream = way.left = way.padding = 0
        way.state = _HEADER
        way.table.distrust()
        way.max_frame = LARGEST_FRAME_BYTES  # a SETTINGS frame may have been missed
        way.hunt = Hunt(way.side, way.max_frame)
        if announce:
            events.append(Unsynced(way.side))

    def _look(self, way: _Direction, data: bytes, events: list[Event]) -> None:
        hunt = way.hunt
        if hunt is None:
            return
        way.offset += len(data)
        if not way.side:
            self._unread += len(data)
        # A request takes at least ten bytes and moves the numbers on by two: no stream can be beyond this.
        hunt.max_stream = 0x7FFFFFFF if self._joined else self._highest + 2 + self._unread // 5
        found = hunt.feed(data)
        if found is None:
            return
        skipped, rest = found
        way.hunt = None
        if skipped:
            self._lose_unended(way.side, events)
        events.append(Resynced(way.side, skipped))
        way.offset -= len(rest)
        self._read(way, rest, events)

    def _broken(self, way: _Direction, reason: str, events: list[Event]) -> None:
        """The bytes break the protocol, or the alignment found after a gap was none."""
        if way.gapped and way.realignments < MAX_REALIGNMENTS:
            way.realignments += 1
            if not way.side:
                self._count_missed = True
            self._lose_unended(way.side, events)
            self._hunt(way, True, events)
            return
        events.append(Undecodable(way.side, reason, way.start))
        self._abort(way.side, "undecodable", 7, events)
        self._stop()

    def _abort(self, by: Side, reason: str, unless: int, events: list[Event]) -> None:
        """Aborts open streams, but for those in whose state all of ``unless`` is set."""
        for stream, state in list(self._streams.items()):
            if state & unless != unless:
                del self._streams[stream]
                events.append(Aborted(stream, by, 0, reason))

    def eof(self, side: Side) -> list[Event]:
        events: list[Event] = []
        way = self._server if side else self._client
        if self._dead or way.closed:
            return events
        way.closed = True
        if way.hunt is not None:
            self._lose_unended(side, events)
        self._abort(side, "eof", _SERVER_ENDED if side else _CLIENT_ENDED, events)
        if self._client.closed and self._server.closed:
            events.extend(self.close())
        return events

    def close(self) -> list[Event]:
        events: list[Event] = []
        if self._dead:
            return events
        for way in (self._client, self._server):
            if way.hunt is not None:
                self._lose_unended(way.side, events)
        unseen = (self._mentioned - self._highest) // 2
        if self._count_missed and not self._joined and (unseen > 0 or self._client.hunt is not None):
            events.append(Missed(max(1, unseen), False))
        by = Side.SERVER if self._server.closed and not self._client.closed else Side.CLIENT
        self._abort(by, "closed", 7, events)
        self._stop()
        return events

    def _stop(self) -> None:
        self._dead = True
        self._streams.clear()
        for way in (self._client, self._server):
            way.hunt = None
            way.buf.clear()
            way.block.clear()
            way.table = HpackTable()
