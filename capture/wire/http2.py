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
    RequestEnd,
    RequestHead,
    ResponseEnd,
    ResponseHead,
    ResponseInfo,
    Resynced,
    Side,
    Undecodable,
    Unsynced,
)
from capture.wire.hpack_table import Block, HpackError, HpackTable
from capture.wire.http2_direction import STATE_DATA, STATE_HEADER, STATE_PAD_LENGTH, STATE_SKIP, Direction
from capture.wire.http2_frames import DATA, END_STREAM, LARGEST_FRAME_BYTES, Hunt
from capture.wire.http2_layer import FrameLayer
from capture.wire.saved import SavedHttp2

# Open streams followed at a time. Servers allow 100-1,000 (grpc-java: no limit); each costs about 100 bytes here.
MAX_OPEN_STREAMS = 4096
_STREAM_BYTES = 120
# Alignments tried per direction before a flow is given up: each costs a search through what follows.
MAX_REALIGNMENTS = 16

_CLIENT_ENDED, _ANSWERED, _SERVER_ENDED = 1, 2, 4


class Http2Observer(FrameLayer):
    """Implements ``Observer`` for HTTP/2. Streams keep their HTTP/2 numbers."""

    def __init__(self, joined: bool = False) -> None:
        """``joined``: the flow's beginning was not seen; both directions start unsynced, and only blocks that need no
        earlier HPACK entry are read: the others are ``Lost(reason="header history lost")``."""
        super().__init__(joined)
        self._highest = 0  # highest stream whose request head was due
        self._joined = joined
        self._count_missed = False  # client bytes were missed: the next new stream tells how many requests
        self._unread = 0  # client bytes missed or not understood since then

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

    def save(self, whole: bool) -> SavedHttp2:
        """What another process needs to read on; open exchanges are not part of it."""
        return SavedHttp2(
            self._dead,
            self._highest,
            self._mentioned,
            self._joined,
            self._count_missed,
            self._unread,
            self._client.save(whole),
            self._server.save(whole),
        )

    def load(self, saved: SavedHttp2) -> None:
        """Take up what was saved; each save of the flow, in order."""
        self._dead, self._highest, self._mentioned = saved.dead, saved.highest, saved.mentioned
        self._joined, self._count_missed, self._unread = saved.joined, saved.count_missed, saved.unread
        self._client.load(saved.client)
        self._server.load(saved.server)

    def resume(self) -> None:
        """Read on from what was loaded."""
        if self._client.resume():
            self._count_missed = True
        self._server.resume()

    def _data_allowed(self, way: Direction, stream: int, events: list[Event]) -> bool:
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

    def _head(self, way: Direction, stream: int, flags: int, block: bytes, events: list[Event]) -> None:
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

    def _request(self, way: Direction, stream: int, head: Block, end: bool, events: list[Event]) -> None:
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

    def _response(self, way: Direction, stream: int, state: int, head: Block, end: bool, events: list[Event]) -> None:
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

    def _trailers(self, way: Direction, stream: int, head: Block, events: list[Event]) -> None:
        if head.fault or head.pseudo:
            self._lose(stream, head.fault or "malformed trailers", events)
        else:
            self._end(way, stream, head.headers, head.verified, events)

    def _end(self, way: Direction, stream: int, trailers: Headers, verified: bool, events: list[Event]) -> None:
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

    def _reset(self, way: Direction, code: int, events: list[Event]) -> None:
        if self._streams.pop(way.stream, None) is not None:
            events.append(Aborted(way.stream, way.side, code, "reset"))

    def _goaway(self, last: int, code: int, events: list[Event]) -> None:
        for stream in [number for number in self._streams if number > last]:
            del self._streams[stream]
            events.append(Aborted(stream, Side.SERVER, code, "goaway"))

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
            if way.state in (STATE_DATA, STATE_PAD_LENGTH, STATE_SKIP) and count <= inside:
                # The frame's length is known: alignment and header table survive, one stream does not.
                if way.kind == DATA:
                    self._lose(way.stream, "gap", events)
                way.left, way.padding, way.state = inside - count, 0, STATE_SKIP
                if not way.left:
                    way.state = STATE_HEADER
                return events
        if not side:
            self._unread += count
            self._count_missed = True
        self._lose_unended(side, events)
        self._hunt(way, way.hunt is None, events)
        return events

    def _hunt(self, way: Direction, announce: bool, events: list[Event]) -> None:
        """Starts to look for a frame border."""
        way.gapped = True
        way.buf.clear()
        way.block.clear()
        way.block_stream = way.left = way.padding = 0
        way.state = STATE_HEADER
        way.table.distrust()
        way.max_frame = LARGEST_FRAME_BYTES  # a SETTINGS frame may have been missed
        way.hunt = Hunt(way.side, way.max_frame)
        if announce:
            events.append(Unsynced(way.side))

    def _look(self, way: Direction, data: bytes, events: list[Event]) -> None:
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

    def _broken(self, way: Direction, reason: str, events: list[Event]) -> None:
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
