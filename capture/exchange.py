"""Exchanges: one request with its outcome, put together from the events of a flow.

:class:`ExchangeTracker` is pure: events in, finished exchanges out. It holds request bodies only as far as one byte
budget, shared by all flows of a worker, allows; over it the largest open body is given up and its exchange counted as
oversized, never kept short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

from capture.config import ListenerConfig
from capture.dialects.base import Ignored, Judgement, Opaque, Outcome, Response, Route, Unreadable
from capture.dialects.content_coding import IDENTITY, undone
from capture.dialects.eas import EasDialect
from capture.dialects.tfserving_rest import TFServingRest
from capture.heads import Heads
from capture.open_exchange import FAIR_EXCHANGES, MAX_OPEN_EXCHANGES, BodyBudget, Exchange, OpenExchange, Parts
from capture.schema.inflating import GzipProbe
from capture.signature import Call
from capture.wire import events as ev
from capture.wire.grpc import (
    PREFIX_BYTES,
    DecompressError,
    GrpcReader,
    MessageData,
    MessageError,
    MessageStart,
    decompress,
    grpc_status,
)

#: A compressed gRPC response is kept up to here to find its model_spec; beyond it the version stays unknown.
MAX_COMPRESSED_RESPONSE_BYTES: Final = 8 << 20
#: The outcome of a copy (a listener with ``mirrored``): what the model server said went to the original's sender.
MIRRORED: Final = Judgement(Outcome.UNPROVEN, "mirrored")
#: The two messages of an exchange.
_REQUEST, _RESPONSE = 1, 2


class ExchangeTracker:
    """Pairs the events of one flow by stream.

    ``wanted`` is asked once a request is complete and read, when memory is scarce: False frees its body at once.
    ``passed_over`` is asked at each request's head: True sheds that exchange, of which nothing is then looked at.

    """

    __slots__ = (
        "_budget",
        "_flow",
        "_heads",
        "_listener",
        "_max_request",
        "_open",
        "_passed_over",
        "_peer",
        "_shed",
        "_wanted",
        "finished",
        "notices",
    )

    def __init__(
        self,
        flow: int,
        listener: ListenerConfig,
        peer: str,
        budget: BodyBudget,
        heads: Heads,
        *,
        max_request_bytes: int,
        wanted: Callable[[Call], bool],
        passed_over: Callable[[], bool],
    ) -> None:
        self._flow = flow
        self._listener = listener
        self._peer = peer
        self._budget = budget
        self._heads = heads
        self._max_request = max_request_bytes
        self._wanted = wanted
        self._passed_over = passed_over
        self._open: dict[int, OpenExchange] = {}
        #: Streams of exchanges that are shed and have not ended: which of their messages are complete.
        self._shed: dict[int, int] = {}
        #: Exchanges that ended since the list was last emptied by its reader.
        self.finished: list[Exchange] = []
        #: Events that concern the flow rather than an exchange, likewise.
        self.notices: list[ev.Event] = []

    def feed(self, events: Iterable[ev.Event]) -> None:
        """Take the events of the flow in order; what they finish goes to ``finished``, the rest to ``notices``."""
        for event in events:
            handler = _ON.get(type(event))
            if handler is not None:
                handler(self, event)
            else:
                self.notices.append(event)

    def close(self) -> None:
        """The flow is gone. Whatever is open was cut off."""
        for stream in list(self._open):
            self._aborted(ev.Aborted(stream, ev.Side.CLIENT, 0, "connection closed"))
        self._shed.clear()

    @property
    def open_exchanges(self) -> int:
        """Exchanges in progress."""
        return len(self._open)

    # --- the request ---

    def _request_head(self, event: ev.RequestHead) -> None:
        stale = self._open.pop(event.stream, None)
        if stale is not None:
            stale.drop()
            self._budget.exchanges -= 1
        if self._passed_over():
            self._shed[event.stream] = 0
            return
        if self._budget.exchanges >= MAX_OPEN_EXCHANGES and len(self._open) >= FAIR_EXCHANGES:
            self.finished.append(Exchange(self._flow, event.stream, self._peer, lost=True))
            return
        path, headers, agent, found = self._heads.look_up(event, self._listener)
        exchange = Exchange(self._flow, event.stream, f"{agent} {self._peer}", path, headers)
        exchange.verified = event.verified
        if isinstance(found, Ignored):
            exchange.ignored = found.what
        else:
            exchange.route = found
        self._enter(exchange)

    def _enter(self, exchange: Exchange) -> OpenExchange:
        entry = self._open[exchange.stream] = OpenExchange(exchange, self._budget)
        exchange.began = self._budget.finished
        exchange.began_at = self._budget.monotonic
        self._budget.exchanges += 1
        return entry

    def _request_data(self, event: ev.RequestData) -> None:
        entry = self._open.get(event.stream)
        if entry is None or entry.exchange.route is None or entry.exchange.oversized:
            return
        entry.body_size += len(event.data)
        if entry.body_size > self._max_request:
            entry.exchange.oversized = True
            entry.drop()
            return
        self._budget.take(entry, entry.parts.add(event.data))

    def _request_end(self, event: ev.RequestEnd) -> None:
        entry = self._open.get(event.stream)
        if entry is None:
            self._shed_end(event.stream, _REQUEST)
            return
        exchange = entry.exchange
        exchange.request_complete = True
        if exchange.route is not None and not exchange.oversized:
            self._read(entry, exchange.route)
        if entry.response.complete:
            self._finish(entry)

    def _read(self, entry: OpenExchange, route: Route) -> None:
        """Understand the complete request, and keep of its body what may be stored."""
        exchange = entry.exchange
        sent = entry.parts.take()
        try:
            exchange.body, exchange.wire_body = self._decoded(exchange, route, sent)
            dialect, body = route.dialect, exchange.body
            if isinstance(dialect, EasDialect):
                # Its clients compress without a word of it.
                exchange.call, exchange.body = dialect.read_sent(route, body, self._max_request)
                if exchange.body is not body:
                    exchange.wire_body = sent
            else:
                exchange.call = dialect.read(route, body)
        except Unreadable as error:
            exchange.refusal = str(error)
            entry.opaque = isinstance(error, Opaque)
            entry.drop()
            return
        if exchange.wire_body is not None:
            # The unpacked bytes are held as well.
            self._budget.take(entry, len(exchange.body))
        if self._budget.used > self._budget.limit // 2 and not self._wanted(exchange.call):
            entry.drop()

    def _decoded(self, exchange: Exchange, route: Route, sent: bytes) -> tuple[bytes, bytes | None]:
        """(body as the server reads it, bytes as sent where they differ). Raises Unreadable."""
        if route.dialect.framing == "body":
            coding = exchange.headers.get("content-encoding", IDENTITY)
            if isinstance(route.dialect, TFServingRest):
                body = route.dialect.unpacked(coding, sent, self._max_request)
            else:
                body = undone(coding, sent, self._max_request)
            return body, None if body is sent else sent
        # A unary call: exactly one length-prefixed message.
        if len(sent) < PREFIX_BYTES or int.from_bytes(sent[1:5], "big") != len(sent) - PREFIX_BYTES:
            raise Unreadable("not one gRPC message")
        message = sent[PREFIX_BYTES:]
        if sent[0] == 0:
            return message, None
        encoding = exchange.headers.get("grpc-encoding", "").encode("latin-1")
        try:
            return decompress(encoding, message, self._max_request), message
        except DecompressError as error:
            raise Opaque(f"compressed message: {error}") from None

    # --- the response ---

    def _response_head(self, event: ev.ResponseHead) -> None:
        entry = self._open.get(event.stream)
        if entry is None:
            return
        response = entry.response
        response.status = event.status
        exchange = entry.exchange
        exchange.verified = exchange.verified and event.verified
        if exchange.route is None:
            return
        if exchange.route.dialect.framing == "grpc":
            self._grpc_status(response, event.headers, ())
            entry.reader = GrpcReader()
            for name, value in event.headers:
                if name == b"grpc-encoding":
                    entry.encoding = value
        probe = entry.probe = exchange.route.dialect.response_probe(exchange.route)
        if probe is not None and entry.reader is None:
            for name, value in event.headers:
                if name == b"content-encoding" and value.lower() != b"identity":
                    # What else there is stays unknown.
                    entry.probe = GzipProbe(probe, self._max_request) if value.lower() == b"gzip" else None

    def _response_data(self, event: ev.ResponseData) -> None:
        entry = self._open.get(event.stream)
        if entry is None or entry.probe is None:
            return
        if entry.reader is None:
            entry.probe.feed(event.data)
            return
        for piece in entry.reader.feed(event.data):
            kind = type(piece)
            if kind is MessageData:
                self._response_piece(entry, piece.data)  # type: ignore[union-attr]
            elif isinstance(piece, MessageStart):
                if entry.started:
                    # A second message on a unary call: whatever it is, its version is not the answer's.
                    entry.probe = None
                    return
                entry.started = True
                entry.compressed = Parts() if piece.compressed else None
            elif isinstance(piece, MessageError):
                entry.probe = None
            else:
                self._response_message_end(entry)

    def _response_piece(self, entry: OpenExchange, data: bytes) -> None:
        if entry.probe is None:
            return
        if entry.compressed is None:
            entry.probe.feed(data)
            return
        entry.compressed_size += len(data)
        if entry.compressed_size > MAX_COMPRESSED_RESPONSE_BYTES:
            self._forget_response(entry)
            entry.probe = None
            return
        cost = entry.compressed.add(data)
        entry.compressed_cost += cost
        self._budget.take(entry, cost)

    def _forget_response(self, entry: OpenExchange) -> bytes:
        """What was kept of a compressed response; it is not held any more."""
        if entry.compressed is None:
            return b""
        data, entry.compressed = entry.compressed.take(), None
        self._budget.give_back_some(entry, entry.compressed_cost)
        entry.compressed_size = entry.compressed_cost = 0
        return data

    def _response_message_end(self, entry: OpenExchange) -> None:
        if entry.compressed is None or entry.probe is None:
            return
        try:
            entry.probe.feed(decompress(entry.encoding, self._forget_response(entry), self._max_request))
        except DecompressError:
            entry.probe = None

    def _response_end(self, event: ev.ResponseEnd) -> None:
        entry = self._open.get(event.stream)
        if entry is None:
            self._shed_end(event.stream, _RESPONSE)
            return
        response = entry.response
        response.complete = True
        entry.exchange.verified = entry.exchange.verified and event.verified
        if event.trailers and entry.reader is not None:
            self._grpc_status(response, (), event.trailers)
        if entry.exchange.request_complete:
            self._finish(entry)

    @staticmethod
    def _grpc_status(response: Response, headers: ev.Headers, trailers: ev.Headers) -> None:
        status = grpc_status(headers, trailers)
        if status is None:
            return
        response.grpc_status = status
        for name, value in trailers or headers:
            if name == b"grpc-message":
                response.grpc_message = unquote_to_bytes(value).decode("utf-8", "replace")

    # --- the end ---

    def _aborted(self, event: ev.Aborted) -> None:
        entry = self._open.get(event.stream)
        if entry is not None:
            entry.response.aborted = event.reason
            self._finish(entry)
        else:
            self._shed.pop(event.stream, None)

    def _lost(self, event: ev.Lost) -> None:
        if self._shed.pop(event.stream, None) is not None:
            return
        # It may be the first that is heard of its stream.
        entry = self._open.get(event.stream)
        if entry is None:
            entry = self._enter(Exchange(self._flow, event.stream, self._peer))
        entry.exchange.lost = True
        self._finish(entry)

    def _shed_end(self, stream: int, message: int) -> None:
        """One message of an exchange that is shed is complete."""
        ended = self._shed.get(stream)
        if ended is None:
            return
        if ended | message == _REQUEST | _RESPONSE:
            del self._shed[stream]
        else:
            self._shed[stream] = message

    def _finish(self, entry: OpenExchange) -> None:
        exchange = entry.exchange
        del self._open[exchange.stream]
        self._budget.exchanges -= 1
        self._budget.finished += 1
        exchange.ended = self._budget.finished
        body, wire_body = exchange.body, exchange.wire_body
        entry.drop()
        if exchange.lost:
            exchange.call = None
        elif exchange.call is not None and exchange.route is not None:
            exchange.body, exchange.wire_body = body, wire_body
            if entry.probe is not None:
                entry.response.probe = entry.probe.value
                entry.response.probed = entry.probe.whole
            if self._listener.mirrored:
                exchange.judgement = MIRRORED
            else:
                exchange.judgement = exchange.route.dialect.judge(exchange.route, entry.response)
                self._doubt(exchange, entry.response)
        elif exchange.refusal and not exchange.verified:
            # Not a call of this method: then the head was wrong, and nothing of it is to be believed.
            exchange.lost = True
        elif exchange.refusal and exchange.route is not None:
            outcome = exchange.route.dialect.judge(exchange.route, entry.response).outcome
            # The server took it for a call, or nobody can tell that it did not.
            taken = outcome is Outcome.PROVEN or (entry.opaque and outcome is not Outcome.REFUSED)
            taken = taken or self._listener.mirrored
            exchange.judgement = Judgement(Outcome.UNDECODABLE if taken else Outcome.REFUSED, exchange.refusal)
        self.finished.append(exchange)

    @staticmethod
    def _doubt(exchange: Exchange, response: Response) -> None:
        """Headers read with a table that missed bytes may be wrong: success then needs the body's word as well."""
        judgement = exchange.judgement
        if (
            not exchange.verified
            and judgement is not None
            and judgement.outcome is Outcome.PROVEN
            and not response.probe
        ):
            exchange.judgement = Judgement(Outcome.UNPROVEN, "read behind missed bytes")


#: What each event does. (Not bound to a tracker, which would hold itself: flows come and go by the thousand.)
_ON: Final[dict[type, Callable[..., None]]] = {
    ev.RequestHead: ExchangeTracker._request_head,
    ev.RequestData: ExchangeTracker._request_data,
    ev.RequestEnd: ExchangeTracker._request_end,
    ev.ResponseHead: ExchangeTracker._response_head,
    ev.ResponseData: ExchangeTracker._response_data,
    ev.ResponseEnd: ExchangeTracker._response_end,
    ev.Aborted: ExchangeTracker._aborted,
    ev.Lost: ExchangeTracker._lost,
}
