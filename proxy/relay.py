"""The relay: accepts, limits, and ends flows. What a flow does is in :mod:`proxy.flow`."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from bisect import bisect_left
from collections.abc import Callable
from typing import Final, cast

from capture.counters import HISTOGRAMS, SLOT
from capture.tap_writer import TapWriter
from proxy.control import BEAT_SECONDS
from proxy.deadlines import Deadlines, KeepAlive
from proxy.flow import Flow, Shared
from proxy.tls import TlsEnd
from proxy.tls_contexts import UpstreamContexts
from proxy.upstream import Upstream

#: Descriptors that are not flows: listeners, tap, control, logs, resolver, loop.
RESERVED_DESCRIPTORS = 64
#: The kernel cuts it to net.core.somaxconn. (2,000 connects at backlog 100 took up to 3 s.)
BACKLOG = 65535
#: While it stops, a relay looks this many times per ``drain_quiet`` at who has become idle.
DRAIN_LOOKS: Final = 4

_BEATS: Final = SLOT["relay_beats"]
_LAG: Final = SLOT["loop_lag_0"]
_LAG_US: Final = SLOT["loop_lag_us"]
_LAG_BOUNDS: Final = HISTOGRAMS["loop_lag"]
_FLOWS_OPEN: Final = SLOT["flows_open"]
_ATTACHED: Final = SLOT["tap_attached"]
_QUEUED_BYTES: Final = SLOT["tap_queued_bytes"]
_QUEUED_FRAMES: Final = SLOT["tap_queued_frames"]


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open descriptors to the hard one; the connections that fit, two descriptors each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(1, (hard - RESERVED_DESCRIPTORS) // 2)


class _Listener:
    """One listening socket. ``tls`` is None where clients speak plaintext, ``server`` while it is refused."""

    def __init__(self, sock: socket.socket, upstream: Upstream, tls: ssl.SSLContext | None) -> None:
        self.sock = sock
        self.upstream = upstream
        self.tls = tls
        self.server: asyncio.AbstractServer | None = None


class Relay:
    """All flows of one process. Bytes go through unaltered; nothing here waits for the capture worker."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        tap: TapWriter,
        slots: memoryview,
        *,
        max_connections: int,
        deadlines: Deadlines | None = None,
        keep_alive: KeepAlive | None = None,
    ) -> None:
        """``max_connections`` beyond which a client is accepted and reset; ``slots`` of the counters."""
        self._loop = loop
        self._tap = tap
        self._slots = slots
        self._listeners: list[_Listener] = []
        self._live: set[Flow] = set()
        self._quiet = asyncio.Event()
        self._beat_timer: asyncio.TimerHandle | None = None
        self._shared = Shared(
            loop,
            tap,
            slots,
            deadlines or Deadlines(),
            keep_alive or KeepAlive(),
            max_connections,
            self._live,
            self._quiet.set,
        )

    @property
    def connections(self) -> int:
        """Flows that are open."""
        return len(self._live)

    def change(
        self,
        *,
        max_connections: int | None = None,
        deadlines: Deadlines | None = None,
        keep_alive: KeepAlive | None = None,
    ) -> None:
        """New values for flows that begin from now on."""
        shared = self._shared
        self._shared = shared._replace(
            max_connections=shared.max_connections if max_connections is None else max_connections,
            deadlines=deadlines or shared.deadlines,
            keep_alive=keep_alive or shared.keep_alive,
        )
        if keep_alive is not None:
            for listener in self._listeners:
                keep_alive.apply(listener.sock)

    # -- accepting

    def secure(self, number: int, tls: ssl.SSLContext | None, upstream_tls: UpstreamContexts | None) -> None:
        """Other certificates, for connections that begin from now on. None where
        there is no TLS, which never changes."""
        listener = self._listeners[number]
        listener.tls, listener.upstream.tls = tls, upstream_tls

    async def listen(self, sock: socket.socket, upstream: Upstream, tls: ssl.SSLContext | None = None) -> None:
        """Accept on a bound socket. Flows name their listener by the order of these calls."""
        sock.setblocking(False)
        self._shared.keep_alive.apply(sock)
        self._listeners.append(_Listener(sock, upstream, tls))
        await self.accept(len(self._listeners) - 1)

    async def accept(self, number: int) -> None:
        """Accept (again) on a listener. Does nothing where it accepts."""
        listener = self._listeners[number]
        if listener.server is not None:
            return
        # A duplicate: to stop accepting closes it, and the socket must stay for the next time.
        sock = listener.sock.dup()
        if sock.family == socket.AF_UNIX:
            listener.server = await self._loop.create_unix_server(self._flow(number), sock=sock, backlog=BACKLOG)
        else:
            listener.server = await self._loop.create_server(self._flow(number), sock=sock, backlog=BACKLOG)

    def refuse(self, number: int) -> None:
        """Stop accepting on a listener. Flows go on; who connects waits in the backlog."""
        listener = self._listeners[number]
        if listener.server is not None:
            listener.server.close()
            listener.server = None

    def _flow(self, number: int) -> Callable[[], asyncio.Protocol]:
        listener = self._listeners[number]
        upstream = listener.upstream
        # ``_shared`` and ``tls`` are looked up each time: a reload replaces them.
        if listener.tls is None:
            return lambda: Flow(self._shared, number, upstream).client
        return lambda: TlsEnd.to_client(Flow(self._shared, number, upstream).client, cast(ssl.SSLContext, listener.tls))

    def stop_accepting(self) -> None:
        """Close the listeners of this process. Flows go on."""
        for number in range(len(self._listeners)):
            self.refuse(number)

    async def accept_waiting(self) -> None:
        """Accept what waits in the backlogs: where nobody else holds the socket, closing it would reset them."""
        for number, listener in enumerate(self._listeners):
            while listener.server is not None:
                try:
                    sock, _ = listener.sock.accept()
                except OSError:
                    break
                with contextlib.suppress(OSError):
                    await self._loop.connect_accepted_socket(self._flow(number), sock)

    # -- a sign of life

    def beat(self, due: float | None = None) -> None:
        """Begin to count ``relay_beats``, and with each how late the loop was; gauges are written along the way."""
        now, slots = self._loop.time(), self._slots
        if due is not None:
            late = max(0.0, now - due)
            slots[_LAG + bisect_left(_LAG_BOUNDS, late)] += 1
            slots[_LAG_US] += int(late * 1e6)
        slots[_BEATS] += 1
        slots[_FLOWS_OPEN] = len(self._live)
        slots[_ATTACHED] = self._tap.attached
        slots[_QUEUED_BYTES] = self._tap.queued_bytes
        slots[_QUEUED_FRAMES] = self._tap.queued_frames
        due = now + BEAT_SECONDS
        self._beat_timer = self._loop.call_at(due, self.beat, due)

    def still(self) -> None:
        """End the beat. The gauges are left at what is open now."""
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        for slot, value in ((_FLOWS_OPEN, len(self._live)), (_ATTACHED, 0), (_QUEUED_BYTES, 0), (_QUEUED_FRAMES, 0)):
            self._slots[slot] = value

    # -- stopping

    async def stop(self, seconds: float, quiet: float = 0.0) -> None:
        """Stop accepting, let flows finish for ``seconds``, then reset what remains (``shutdown``).

        A flow that is answered and has been silent for ``quiet`` seconds is idle and closed at once (``drained``); 0
        leaves idle flows alone until the end. Silence without an answer may be a graph build: it is waited for.
        """
        await self.accept_waiting()
        self.stop_accepting()
        for listener in self._listeners:
            listener.sock.close()
        deadline = self._loop.time() + seconds
        seen: dict[Flow, tuple[int, float]] = {}
        while self._live and (left := deadline - self._loop.time()) > 0:
            if quiet:
                self._close_idle(seen, quiet)
            await self._wait_for_last(min(left, quiet / DRAIN_LOOKS or left))
        for flow in list(self._live):
            flow.end("shutdown")
        while self._live:
            await self._wait_for_last(None)

    async def _wait_for_last(self, seconds: float | None) -> None:
        """Until the last flow has ended."""
        self._quiet.clear()
        if self._live:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._quiet.wait()

    def _close_idle(self, seen: dict[Flow, tuple[int, float]], quiet: float) -> None:
        """``seen``: how much each flow had moved when it was first found at rest, and when that was."""
        now = self._loop.time()
        for flow in list(self._live):
            moved = flow.moved()
            before, since = seen.get(flow, (-1, now))
            if moved != before or not flow.answered:
                seen[flow] = (moved, now)
            elif now - since >= quiet:
                flow.drained()
