"""What answers mirrored traffic: a stand-in for the model server behind the relay, for listeners of mode sink.

::

    mirror ──copies──▶ relay ──▶ stand-in: reads each request whole, keeps nothing of it, says 200
                         └── tap ──▶ capture worker: reads the same bytes as it reads relayed traffic

The capture worker loads no server and nothing may wait for it; the relay parses nothing. So the answers come from a
process of their own (:mod:`proxy.sink_main`), which stands where a model server would: relay, tap, observers, dialects,
admission, limits, counters and store are the same for a copy as for relayed traffic, and a stand-in that is stopped or
killed costs copies alone. What it answers proves nothing: the worker is told that the listener is ``mirrored``.

It speaks HTTP/1.1 (aiohttp) and HTTP/2 with prior knowledge (h2: aiohttp has none), told apart by the first bytes:
EAS's mirror, nginx ``mirror``, Envoy's and Istio's ``request_mirror_policies`` send one or the other. A gRPC call gets
grpc-status 0 and no message.

Bounded: a body is thrown away as it comes, one over the limit is answered with 413; connections are counted, and for
one too many the one that was answered least recently goes; a request that does not end in time ends its connection.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, cast

import msgspec
from aiohttp import web
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, Event, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

#: aiohttp's own lines quote what it could not read: a header with a token in it, for one.
_SILENT: Final = logging.getLogger("warmtap.sink.http")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False

#: What an HTTP/2 client that knows says first (RFC 9113 §3.4); no method of HTTP/1.1 begins so.
_PREFACE: Final = b"PRI * HTTP/2.0"
#: Bytes of one header field: as much as the worker reads (capture/wire), more than aiohttp's 8 KiB.
_MAX_FIELD: Final = 64 << 10
#: Bytes that one HTTP/2 stream may send ahead, and a connection: nothing is held, so nobody need wait.
_STREAM_WINDOW: Final = 4 << 20
_CONNECTION_WINDOW: Final = 64 << 20
#: What a client is told at the beginning: beside the window, how many streams at a time.
_SETTINGS: Final = {SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW, SettingCodes.MAX_CONCURRENT_STREAMS: 1000}
#: Seconds that a client whose body was too large may go on sending before the connection is closed.
_LINGER: Final = 1.0
#: Seconds between looks for requests that do not end.
_LOOK: Final = 1.0


class SinkConfig(msgspec.Struct, frozen=True):
    """Bounds: connections at once, bytes of one request body, seconds that a request may take (0: any)."""

    max_connections: int
    request_bytes: int
    request_timeout: float
    log_level: str = "info"


class Sink:
    """Makes a protocol for each connection, and knows them all."""

    def __init__(self, loop: asyncio.AbstractEventLoop, config: SinkConfig) -> None:
        self.config = config
        self.loop = loop
        #: Least recently answered first.
        self.live: dict[_Connection, None] = {}
        self.http1 = web.Server(
            self._answer,
            access_log=None,
            logger=_SILENT,
            auto_decompress=False,
            max_line_size=_MAX_FIELD,
            max_field_size=_MAX_FIELD,
            lingering_time=_LINGER,
            # A mirror that finds a kept connection closed loses the copy: none is closed for being idle.
            keepalive_timeout=float("inf"),
        )
        self._look()

    def connection(self) -> asyncio.Protocol:
        """The protocol of one more connection."""
        return _Connection(self)

    async def close(self, seconds: float) -> None:
        """End: what is half answered has so many seconds."""
        self._looking.cancel()
        await self.http1.shutdown(seconds)
        for connection in list(self.live):
            connection.reset()

    def enter(self, connection: _Connection) -> None:
        """One more; one too many costs the one that was answered least recently."""
        if len(self.live) >= self.config.max_connections:
            next(iter(self.live)).reset()
        self.live[connection] = None

    def answered(self, connection: _Connection) -> None:
        """It is alive: the last to be given up."""
        if connection in self.live:
            del self.live[connection]
            self.live[connection] = None

    def _look(self) -> None:
        if timeout := self.config.request_timeout:
            late = self.loop.time() - timeout
            for connection in [one for one in self.live if one.waiting_since and one.waiting_since < late]:
                connection.reset()
        self._looking = self.loop.call_later(_LOOK, self._look)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        limit = self.config.request_bytes
        size = request.content_length or 0
        if size <= limit:
            size = 0
            async for piece in request.content.iter_any():
                size += len(piece)
                if size > limit:
                    break
        protocol = request.transport and request.transport.get_protocol()
        if isinstance(protocol, _Connection):
            protocol.answered()
        answer = web.Response(status=413 if size > limit else 200)
        if size > limit:
            answer.force_close()
        return answer


class _Connection(asyncio.Protocol):
    """One connection: finds out what is spoken, and passes on to what speaks it."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._transport: asyncio.Transport | None = None
        self._first = b""
        self._spoken: asyncio.Protocol | None = None
        #: When the first byte came since the last answer, by the loop's clock; 0: all is answered.
        self.waiting_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._sink.enter(self)

    def data_received(self, data: bytes) -> None:
        if not self.waiting_since:
            self.waiting_since = self._sink.loop.time()
        if self._spoken is not None:
            self._spoken.data_received(data)
            return
        self._first += data
        if self._first.startswith(_PREFACE) or not _PREFACE.startswith(self._first):
            self._begin(_Http2(self) if self._first.startswith(_PREFACE) else self._sink.http1())

    def _begin(self, spoken: asyncio.Protocol) -> None:
        assert self._transport is not None
        self._spoken = spoken
        first, self._first = self._first, b""
        spoken.connection_made(self._transport)
        spoken.data_received(first)

    def eof_received(self) -> bool | None:
        return None if self._spoken is None else self._spoken.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._sink.live.pop(self, None)
        if self._spoken is not None:
            self._spoken.connection_lost(exc)

    def pause_writing(self) -> None:
        """A client that asks and does not read is read no further."""
        if self._transport is not None:
            self._transport.pause_reading()
        if self._spoken is not None:
            self._spoken.pause_writing()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()
        if self._spoken is not None:
            self._spoken.resume_writing()

    def answered(self, *, waiting: bool = False) -> None:
        """A request was read whole. ``waiting``: others are not."""
        self.waiting_since = self._sink.loop.time() if waiting else 0.0
        self._sink.answered(self)

    def reset(self) -> None:
        """End it now."""
        self._sink.live.pop(self, None)
        if self._transport is not None:
            self._transport.abort()

    @property
    def body_limit(self) -> int:
        """Bytes."""
        return self._sink.config.request_bytes


class _Http2(asyncio.Protocol):
    """HTTP/2: each stream is answered when it has ended."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        # Nobody acts on what it says, so nothing of it needs to be right: a mirror changes the authority, not Host.
        self._h2 = H2Connection(
            H2Configuration(client_side=False, header_encoding=None, validate_inbound_headers=False)
        )
        #: Stream -> bytes of its body so far, and whether it is a gRPC call.
        self._open: dict[int, tuple[int, bool]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._h2.local_settings = Settings(client=False, initial_values=_SETTINGS)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW)
        self._send()

    def data_received(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
            for event in events:
                self._on(event)
        except ProtocolError:
            # GOAWAY says why. The worker has read what was whole: it reads the bytes, not what is made of them here.
            self._send()
            self._close()
            return
        self._send()

    def _on(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            grpc = any(
                name == b"content-type" and value.startswith(b"application/grpc") for name, value in event.headers
            )
            self._open[event.stream_id] = (0, grpc)
        elif isinstance(event, DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if (found := self._open.get(event.stream_id)) is not None:
                size = found[0] + len(event.data)
                self._open[event.stream_id] = (size, found[1])
                if size > self._connection.body_limit:
                    self._answer(event.stream_id, b"413")
                    self._h2.reset_stream(event.stream_id, ErrorCodes.NO_ERROR)
        elif isinstance(event, StreamEnded):
            if event.stream_id in self._open:
                self._answer(event.stream_id, b"200")
        elif isinstance(event, StreamReset):
            self._open.pop(event.stream_id, None)
        elif isinstance(event, ConnectionTerminated):
            self._close()

    def _answer(self, stream: int, status: bytes) -> None:
        _, grpc = self._open.pop(stream)
        headers = [(b":status", status)]
        if grpc and status == b"200":
            headers += [(b"content-type", b"application/grpc"), (b"grpc-status", b"0")]
        self._h2.send_headers(stream, headers, end_stream=True)
        self._connection.answered(waiting=bool(self._open))

    def _send(self) -> None:
        assert self._transport is not None
        if data := self._h2.data_to_send():
            self._transport.write(data)

    def _close(self) -> None:
        assert self._transport is not None
        self._transport.close()
