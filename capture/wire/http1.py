"""HTTP/1.1 and 1.0: both directions of one flow, framed as RFC 9112 §6.3 says, each response with its request's method.

One state machine serves both directions; they meet in the queue of exchanges that await a response. Whatever two
readers could frame differently makes the flow opaque (``Undecodable``). After a gap, see ``http1_resume``.
"""

from __future__ import annotations

from collections import deque
from itertools import product

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
    Upgraded,
)
from capture.wire.http1_framing import (
    STATE_CLOSE,
    STATE_HEAD,
    STATE_LENGTH,
    STATE_SIZE,
    Direction,
    Exchange,
    FramingLayer,
)
from capture.wire.http1_head import (
    CHUNKED,
    UNTIL_CLOSE,
    HeadMemo,
    RequestLine,
    StatusLine,
)
from capture.wire.http1_resume import Resume
from capture.wire.saved import SavedHttp1

# Requests whose response has not ended. Real pipelining is a few deep; each costs some 200 bytes here.
MAX_PIPELINED = 1000
_EXCHANGE_BYTES = 250
#: All that there can be: after each piece of the tap every flow that it touched is saved.
_SAVED = {flags: SavedHttp1(*flags) for flags in product((False, True), repeat=3)}


class Http1Observer(FramingLayer):
    """Implements ``Observer`` for HTTP/1.1 and 1.0. Streams are numbered 1, 2, 3, ... in the order of requests."""

    def __init__(self, memo: HeadMemo | None = None, joined: bool = False) -> None:
        """``memo`` may be shared by flows. ``joined``: the flow's beginning was not seen; it starts unsynced."""
        super().__init__()
        self._memo = memo if memo is not None else HeadMemo()
        self._own_memo = memo is None
        self._client = Direction(Side.CLIENT)
        self._server = Direction(Side.SERVER)
        self._awaiting: deque[Exchange] = deque()  # their response has not ended
        self._streams = 0
        self._pipelined = False  # a request began while a response was due: pairing cannot be found again after a gap
        self._client_bytes = 0  # of requests read, for the estimate of requests missed
        self._resume: Resume | None = Resume(Side.CLIENT) if joined else None

    @property
    def unsynced(self) -> bool:
        return self._resume is not None and not self._dead

    def held_bytes(self) -> int:
        held = len(self._client.buf) + len(self._server.buf) + len(self._awaiting) * _EXCHANGE_BYTES
        if self._resume is not None:
            held += self._resume.held_bytes()
        return held + (self._memo.held_bytes() if self._own_memo else 0)

    def save(self) -> SavedHttp1:
        """What another process needs to read on."""
        between = (
            self._resume is None
            and not self._awaiting
            and self._client.between_messages
            and self._server.between_messages
        )
        return _SAVED[self._dead, between, self._pipelined]

    @classmethod
    def resumed(cls, memo: HeadMemo | None, saved: SavedHttp1) -> Http1Observer:
        """An observer that reads on: at once if no message was open, else at the next place that can be trusted."""
        observer = cls(memo)
        observer._dead, observer._pipelined = saved.dead, saved.pipelined
        if not saved.between and not saved.dead:
            observer._resume = Resume(Side.CLIENT, hopeless=saved.pipelined)
        return observer

    def feed(self, side: Side, data: bytes) -> list[Event]:
        events: list[Event] = []
        way = self._server if side else self._client
        if self._dead or way.closed or not data:
            return events
        if self._resume is not None:
            way.offset += len(data)
            self._seek(way, data, events)
            return events
        self._read(way, data, events)
        return events

    def _begin(self, way: Direction, raw: bytes, events: list[Event]) -> None:
        if way.side:
            status = self._memo.response(raw)
            if isinstance(status, str):
                self._refuse(way, way.start, status, events)
            else:
                self._begin_response(way, status, events)
            return
        request = self._memo.request(raw[2:] if raw[:2] == b"\r\n" else raw)
        if isinstance(request, str):
            self._refuse(way, way.start, request, events)
        else:
            self._client_bytes += len(raw) + request.length
            self._begin_request(way, request, events)

    def _begin_request(self, way: Direction, head: RequestLine, events: list[Event]) -> None:
        if self._awaiting:
            self._pipelined = True
            if self._awaiting[-1].method == b"CONNECT":
                # Whether these bytes are HTTP depends on a response that is not there yet.
                self._refuse(way, way.start, "bytes after CONNECT", events)
                return
            if len(self._awaiting) >= MAX_PIPELINED:
                self._refuse(way, way.start, "too many pipelined requests", events)
                return
        self._streams += 1
        stream = self._streams
        exchange = way.exchange = Exchange(stream, head.method)
        self._awaiting.append(exchange)
        events.append(RequestHead(stream, head.method, head.target, head.authority, head.headers))
        if head.method == b"CONNECT":  # has no body: what follows is the tunnel (RFC 9110 §9.3.6)
            self._end(way, events)
        elif head.framing == CHUNKED:
            way.state = STATE_SIZE
        elif head.length:
            way.state = STATE_LENGTH
            way.left = head.length
        else:
            self._end(way, events)

    def _begin_response(self, way: Direction, head: StatusLine, events: list[Event]) -> None:
        if not self._awaiting:
            self._refuse(way, way.start, "response without request", events)
            return
        exchange = self._awaiting[0]
        status = head.status
        if status < 200 and status != 101:
            if not exchange.lost:
                events.append(ResponseInfo(exchange.stream, status))
            return
        if not exchange.lost:
            events.append(ResponseHead(exchange.stream, status, head.headers))
        if status == 101 or (exchange.method == b"CONNECT" and status < 300):
            self._upgrade(exchange, head, events)
            return
        way.exchange = exchange
        if exchange.method == b"HEAD" or status in (204, 304):
            self._end(way, events)
        elif head.framing == CHUNKED:
            way.state = STATE_SIZE
        elif head.framing == UNTIL_CLOSE:
            way.state = STATE_CLOSE
        elif head.length:
            way.state = STATE_LENGTH
            way.left = head.length
        else:
            self._end(way, events)

    def _upgrade(self, exchange: Exchange, head: StatusLine, events: list[Event]) -> None:
        protocol = b"" if exchange.method == b"CONNECT" else dict(head.headers).get(b"upgrade", b"")
        if not exchange.lost:
            events.append(Upgraded(exchange.stream, protocol))
        exchange.lost = True
        self._abort_all(Side.SERVER, "upgraded", events)
        self._stop()

    def _end(self, way: Direction, events: list[Event], trailers: Headers = ()) -> None:
        """The message of this direction is complete."""
        exchange = way.exchange
        way.exchange = None
        way.state = STATE_HEAD
        if exchange is None:
            return
        if way.side:
            exchange.response_done = True
            self._awaiting.popleft()
            if not exchange.lost:
                events.append(ResponseEnd(exchange.stream, trailers))
        else:
            exchange.request_done = True
            if not exchange.lost:
                events.append(RequestEnd(exchange.stream, trailers))

    def eof(self, side: Side) -> list[Event]:
        events: list[Event] = []
        way = self._server if side else self._client
        if self._dead or way.closed:
            return events
        if self._resume is not None:
            if side:
                self._give_up(events)
            way.closed = True
            return events
        if way.state == STATE_CLOSE:
            self._end(way, events)
        way.closed = True
        if side:
            self._abort_all(side, "eof", events)
            self._stop()
        elif way.exchange is not None:
            self._abort(way.exchange, side, "eof", events)
            way.exchange.lost = True
            way.exchange = None
        return events

    def close(self) -> list[Event]:
        events: list[Event] = []
        if self._dead:
            return events
        if self._resume is not None:
            self._give_up(events)
        self._abort_all(Side.CLIENT, "closed", events)
        self._stop()
        return events

    def gap(self, side: Side, count: int) -> list[Event]:
        events: list[Event] = []
        way = self._server if side else self._client
        if self._dead or way.closed or count <= 0:
            return events
        way.offset += count
        if self._resume is not None:
            self._resume.gap(side, count)
            return events
        if way.state == STATE_CLOSE or (way.state == STATE_LENGTH and count <= way.left):
            # The framing of a body of known length survives: only its bytes are gone.
            if way.exchange is not None:
                self._lose(way.exchange, events)
            if way.state == STATE_LENGTH:
                way.left -= count
                if not way.left:
                    self._end(way, events)
            return events
        for exchange in self._open():
            self._lose(exchange, events)
        self._awaiting.clear()
        for each in (self._client, self._server):
            each.state, each.left, each.exchange = STATE_HEAD, 0, None
            each.buf.clear()
        self._resume = Resume(side, hopeless=self._pipelined)
        self._resume.gap(side, count)
        events.append(Unsynced(side))
        return events

    def _seek(self, way: Direction, data: bytes, events: list[Event]) -> None:
        resume = self._resume
        if resume is None:
            return
        found = resume.feed(way.side, data)
        if found is None:
            return
        self._resume = None
        average = self._client_bytes // self._streams if self._streams else 0
        events.append(Missed(resume.estimate(average, len(found)), False))
        events.append(Resynced(resume.side, resume.skipped(len(found))))
        way.offset -= len(found)
        self._read(way, found, events)

    def _give_up(self, events: list[Event]) -> None:
        resume = self._resume
        self._resume = None
        self._dead = True
        if resume is not None and resume.client_bytes:
            average = self._client_bytes // self._streams if self._streams else 0
            events.append(Missed(resume.estimate(average, 0), False))

    def _open(self) -> list[Exchange]:
        """Exchanges with at least one incomplete message."""
        current = self._client.exchange
        early = [current] if current is not None and current.response_done else []
        return early + list(self._awaiting)

    def _lose(self, exchange: Exchange, events: list[Event]) -> None:
        if not exchange.lost:
            exchange.lost = True
            events.append(Lost(exchange.stream))

    def _abort(self, exchange: Exchange, by: Side, reason: str, events: list[Event]) -> None:
        if not exchange.lost:
            events.append(Aborted(exchange.stream, by, 0, reason))

    def _abort_all(self, by: Side, reason: str, events: list[Event]) -> None:
        for exchange in self._open():
            self._abort(exchange, by, reason, events)
        self._awaiting.clear()

    def _refuse(self, way: Direction, offset: int, reason: str, events: list[Event]) -> None:
        events.append(Undecodable(way.side, reason, offset))
        self._abort_all(way.side, "undecodable", events)
        self._stop()

    def _stop(self) -> None:
        self._dead = True
        self._awaiting.clear()
        for way in (self._client, self._server):
            way.buf.clear()
            way.exchange = None
