"""One client connection and its upstream: two protocols that copy.

    client ──▶ ClientSide ──write──▶ upstream transport ──▶ server
    client ◀── client transport ◀──write── ServerSide ◀── server

Either end may speak TLS (:mod:`proxy.tls`); what passes here is plaintext then. The model server is offered exactly the
protocol (ALPN) that the client negotiated.

Per chunk: a write to the other side and an append to the tap, nothing else. How a flow ends::

    EOF on both sides               close both once all is sent                          finished
    an error on one side            deliver what it had sent, then reset the other       client_reset, server_reset, ...
    a deadline, the limit, a stop   reset both                                           the reason's own name
"""

from __future__ import annotations

import asyncio
import ssl
from bisect import bisect_left
from collections.abc import Callable
from typing import Final, NamedTuple

from capture.counters import FLOW_END_REASONS, HISTOGRAMS, SLOT
from capture.tap_writer import TapFlow, TapWriter
from proxy.address import peer_name
from proxy.deadlines import Deadlines, KeepAlive
from proxy.sides import ClientSide, ServerSide, Side, Transport
from proxy.tls_contexts import TlsError
from proxy.upstream import Upstream

#: Seconds between two looks at whether a peer that is about to be reset has acknowledged everything. There is no event
#: for it; the case is rare (a server that fails in mid-exchange).
_FLUSH_POLL_FIRST: Final = 0.001
_FLUSH_POLL_LAST: Final = 0.1
#: Bytes. Less may be nothing but HTTP/2 control frames (SETTINGS, its ACK, WINDOW_UPDATE, PING: 9 to 60 bytes) that
#: follow a request which still runs. The answers of model servers are longer; a shorter one only costs a stop its time.
ANSWER_BYTES: Final = 100
#: Seconds between two looks at whether a model server that speaks TLS has answered a client that sends no more.
_EOF_LOOK: Final = 1.0
_OPENED: Final = SLOT["flows_opened"]
_CONNECTS: Final = SLOT["connect_0"]
_CONNECT_US: Final = SLOT["connect_us"]
_CONNECT_BOUNDS: Final = HISTOGRAMS["connect"]
_CLOSED: Final = {reason: SLOT[f"flows_closed_{reason}"] for reason in FLOW_END_REASONS}


class Shared(NamedTuple):
    """What all flows of a relay have in common."""

    loop: asyncio.AbstractEventLoop
    tap: TapWriter
    slots: memoryview
    deadlines: Deadlines
    keep_alive: KeepAlive
    max_connections: int
    live: set[Flow]
    on_last: Callable[[], None]


class Flow:
    """Both ends and what happens to them. ``reason`` is empty until it is decided how the flow ends."""

    __slots__ = (
        "_connecting",
        "_early",
        "_finished",
        "_first_byte_timer",
        "_listener",
        "_shared",
        "_timer",
        "_upstream",
        "client",
        "reason",
        "server",
        "tap",
        "tapped",
    )

    tapped: TapFlow

    def __init__(self, shared: Shared, listener: int, upstream: Upstream) -> None:
        self._shared = shared
        self._listener = listener
        self._upstream = upstream
        self._connecting: asyncio.Task[None] | None = None
        #: What the client sent before the upstream was connected: one chunk, since reading then pauses.
        self._early: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._first_byte_timer: asyncio.TimerHandle | None = None
        self.client = ClientSide(self)
        self.server = ServerSide(self)
        self.tap = shared.tap
        self.reason = ""
        self._finished = False

    # -- beginning

    def accepted(self, transport: Transport, *, tls: bool = False) -> None:
        """A client connected. ``tls``: :meth:`secured` follows, or an end."""
        shared = self._shared
        shared.slots[_OPENED] += 1
        if len(shared.live) >= shared.max_connections:
            self.reason = "limit"
            self.client.reset()
            return
        shared.live.add(self)
        self.tapped = shared.tap.open(self._listener, peer_name(transport.get_extra_info("peername")), announce=not tls)
        if tls:
            if seconds := shared.deadlines.tls_handshake:
                self._timer = shared.loop.call_later(seconds, self.end, "tls_timeout")
            return
        # Obeyed by asyncio; uvloop starts reading all the same, and early_data keeps what comes.
        transport.pause_reading()
        self._connecting = shared.loop.create_task(self._connect())

    def secured(self, alpn: str) -> None:
        """The client's TLS handshake is complete; ``alpn`` is empty where none was negotiated."""
        self._cancel_timers()
        # The worker hears of the flow with its first bytes.
        self.tapped.tls, self.tapped.alpn = True, alpn
        if not self.reason:
            self._connecting = self._shared.loop.create_task(self._connect())

    def left_unspoken(self) -> None:
        """A client that was expected to speak TLS closed without a byte: a load balancer that looks whether the port
        is open."""
        self.reason = "finished"
        assert self.client.transport is not None
        self.client.transport.close()

    async def _connect(self) -> None:
        reason = "connect_failed"
        loop, slots = self._shared.loop, self._shared.slots
        began = loop.time()
        try:
            async with asyncio.timeout(self._shared.deadlines.connect or None):
                if self._upstream.tls is None:
                    await self._upstream.connect(loop, lambda: self.server)
                else:
                    ready = loop.create_future()
                    end = self._upstream.tls.end(self.server, self.tapped.alpn, ready)
                    await self._upstream.connect(loop, lambda: end)
                    await ready
            reason = ""
            took = loop.time() - began
            slots[_CONNECTS + bisect_left(_CONNECT_BOUNDS, took)] += 1
            slots[_CONNECT_US] += int(took * 1e6)
        except TimeoutError:
            reason = "connect_timeout"
        except (ssl.SSLError, TlsError):
            reason = "tls_failed"
        except (OSError, UnicodeError):  # UnicodeError: a host name that cannot be one
            reason = "connect_failed"
        finally:
            self._connecting = None
            gone = self.server.gone_unsaid()
            if reason and not self.reason:
                self.end(reason)
            if gone:
                self.lost(self.server, None)

    def early_data(self, data: bytes) -> None:
        """Bytes of the client with nobody to write them to: not connected yet, or not any more."""
        if not self.reason:
            self._early.append(data)
            self.client.pause()

    def connected(self, transport: Transport) -> None:
        """The upstream accepted: replay what came before."""
        if self.reason:
            self.server.reset()
            return
        client = self.client.transport
        assert client is not None
        self._shared.keep_alive.apply(transport.get_extra_info("socket"))
        self.client.write = transport.write
        self.server.write = client.write
        # First: a write below may pause it again.
        self.client.resume()
        for data in self._early:
            transport.write(data)
            self.tap.client(self.tapped, data)
        self._early.clear()
        if self.client.eof:
            self._pass_client_eof(transport)
        deadlines = self._shared.deadlines
        if deadlines.first_byte:
            self._watch_first_byte()
        if deadlines.idle and not self.client.eof:
            self._watch("idle_timeout", deadlines.idle, self.moved)

    # -- ending

    def client_eof(self) -> None:
        """The client sends no more."""
        self.client.eof = True
        if self.client.write is not None and not self.reason:
            assert self.server.transport is not None
            self._pass_client_eof(self.server.transport)

    def _pass_client_eof(self, server: Transport) -> None:
        self.tap.eof_client(self.tapped)
        tls = self.server.tls
        # TLS: what the client said itself. HTTP/2 knows no half-close, and who leaves may have spoken last (GOAWAY).
        if tls is None or self.client.tls is not None or tls.protocol == "h2":
            server.write_eof()
        else:
            self._pass_when_answered(server)
        self._one_ended()

    def _pass_when_answered(self, server: Transport, last: int = -1) -> None:
        """Many TLS peers take a close_notify for the end of both directions (TLS 1.2 asked for that: RFC 5246, section
        7.2.1), and an answer would be lost: it goes out once the server has said something and all is quiet."""
        if self.reason:
            return
        now = self.moved()
        if now == last and (not self.tapped.client_offset or self.tapped.server_offset > self.tapped.server_before):
            server.write_eof()
        else:
            self._shared.loop.call_later(_EOF_LOOK, self._pass_when_answered, server, now)

    def server_eof(self) -> None:
        """The server sends no more."""
        self.server.eof = True
        if not self.reason:
            assert self.client.transport is not None
            self.tap.eof_server(self.tapped)
            self.client.transport.write_eof()
            self._one_ended()

    def server_cut(self) -> None:
        """The server's TLS ended without a close_notify: no end that a capture may take for complete."""
        self.server.eof = True
        if self.reason:
            return
        if self.client.tls is None:
            # Only a reset says so in plaintext.
            assert self.server.transport is not None
            self.server.transport.abort()
        else:
            self.client.tls.cut()
            self._one_ended()

    def tls_failed(self, side: Side) -> None:
        """A handshake failed after the flow began, or a record cannot be read: an alert is on its way to the peer."""
        if self.reason:
            return
        self.reason = "server_reset" if self.client.was_cut else "tls_failed"
        if self._connecting is not None:
            self._connecting.cancel()
        (self.server if side is self.client else self.client).reset()
        side.pause()
        closing = self._shared.deadlines.closing
        self._reset_when_sent(side, self._shared.loop.time() + closing if closing else None)

    def _one_ended(self) -> None:
        if self.client.eof and self.server.eof:
            assert self.client.transport is not None
            assert self.server.transport is not None
            self.reason = "server_reset" if self.client.was_cut else "finished"
            self.client.transport.close()
            self.server.transport.close()
            self._watch("closing_timeout", self._shared.deadlines.closing, self._unwritten)
        else:
            self._watch("half_closed_timeout", self._shared.deadlines.half_closed, self.moved)

    def lost(self, side: Side, exc: Exception | None) -> None:
        """One connection is gone, by our decision or by an error."""
        other: Side = self.server if side is self.client else self.client
        other.write = None
        if self.reason:
            if exc is not None and self.reason == "finished":
                self.reason = side.blame(exc)
        else:
            self.reason = side.blame(exc)
            if side.write is None:
                # The server's TLS handshake is not complete: nothing can be delivered.
                other.reset()
            elif other.transport is not None and not other.lost:
                self._deliver_rest(side, other, exc)
                other.pause()
                closing = self._shared.deadlines.closing
                self._reset_when_sent(other, self._shared.loop.time() + closing if closing else None)
        if self._connecting is not None:
            self._connecting.cancel()
        if other.lost or other.transport is None:
            self._finish()

    def _deliver_rest(self, side: Side, other: Side, exc: Exception | None) -> None:
        """An early 413, 408 or 450 reaches the client though the upload broke."""
        if side.eof:
            return
        assert other.transport is not None
        chunks, fin = side.left_over()
        to_client = other is self.client
        for chunk in chunks:
            other.transport.write(chunk)
            (self.tap.server if to_client else self.tap.client)(self.tapped, chunk)
        # Linux reports a reset once: by the write that failed, or by the read here. FIN and then RST is EPIPE.
        if fin and not isinstance(exc, ConnectionResetError):
            side.eof = True
            (self.tap.eof_server if to_client else self.tap.eof_client)(self.tapped)
            other.transport.write_eof()

    def _reset_when_sent(self, side: Side, deadline: float | None, pause: float = _FLUSH_POLL_FIRST) -> None:
        if side.lost:
            return
        loop = self._shared.loop
        if side.unsent() == 0 or (deadline is not None and loop.time() >= deadline):
            side.reset()
        else:
            longer = min(2 * pause, _FLUSH_POLL_LAST)
            self._cancel_timers()
            self._timer = loop.call_later(pause, self._reset_when_sent, side, deadline, longer)

    def moved(self) -> int:
        """Grows with every byte."""
        return self.tapped.client_offset + self.tapped.server_offset

    @property
    def answered(self) -> bool:
        """Whether nobody seems to wait: the server has said enough for an answer since the client last spoke, or the
        client never did. Not while one side has ended, nor in a TLS handshake."""
        tapped, tls = self.tapped, self.client.tls
        if self.reason or self.client.eof or self.server.eof or self._connecting or (tls is not None and tls.shaking):
            return False
        return not tapped.client_offset or tapped.server_offset - tapped.server_before > ANSWER_BYTES

    def drained(self) -> None:
        """Close an idle flow: FIN to both. A request that is on its way in this moment meets a reset, and the server
        never sees it; nothing short of a GOAWAY or a ``Connection: close`` could prevent that."""
        self.reason = "drained"
        for side in (self.client, self.server):
            if side.transport is not None and not side.lost:
                side.transport.close()
        self._watch("closing_timeout", self._shared.deadlines.closing, self._unwritten)

    def end(self, reason: str) -> None:
        """Reset both sides now."""
        if not self.reason or self.reason in ("finished", "drained"):
            self.reason = reason
        if self._connecting is not None:
            self._connecting.cancel()
        self.client.reset()
        self.server.reset()

    def _finish(self) -> None:
        if self._finished:
            # The server accepted after all: the cancel came too late, and its connection was reset as well.
            return
        self._finished = True
        self._cancel_timers()
        self.client.release()
        self.server.release()
        shared = self._shared
        shared.slots[_CLOSED[self.reason]] += 1
        if self in shared.live:
            shared.live.remove(self)
            shared.tap.closed(self.tapped, self.reason)
            if not shared.live:
                shared.on_last()

    # -- deadlines

    def _watch(self, reason: str, seconds: float, measure: Callable[[], int], last: int = -1) -> None:
        """End the flow with ``reason`` when ``measure`` gives the same twice, ``seconds`` apart."""
        if not seconds:
            return
        now = measure()
        if now == last:
            self.end(reason)
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._shared.loop.call_later(seconds, self._watch, reason, seconds, measure, now)

    def _unwritten(self) -> int:
        sides = (self.client, self.server)
        return sum(s.transport.get_write_buffer_size() for s in sides if s.transport is not None and not s.lost)

    def _watch_first_byte(self, spoken: bool = False) -> None:
        """``spoken``: the client had sent something at the last look already."""
        if self.tapped.server_offset or self.reason:
            return
        if spoken:
            self.end("first_byte_timeout")
            return
        seconds = self._shared.deadlines.first_byte
        spoken = self.tapped.client_offset > 0
        self._first_byte_timer = self._shared.loop.call_later(seconds, self._watch_first_byte, spoken)

    def _cancel_timers(self) -> None:
        for timer in (self._timer, self._first_byte_timer):
            if timer is not None:
                timer.cancel()
