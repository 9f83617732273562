"""The relay: accepts, limits, and ends flows. What a flow does is in :mod:`proxy.flow`."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket

from capture.tap_writer import TapWriter
from proxy.flow import Deadlines, Flow, KeepAlive, Shared
from proxy.upstream import Upstream

#: Descriptors that are not flows: listeners, tap, control, logs, resolver, loop.
RESERVED_DESCRIPTORS = 64
#: The kernel cuts it to net.core.somaxconn. (2,000 connects at backlog 100 took up to 3 s.)
BACKLOG = 65535


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open descriptors to the hard one; the connections that fit, two descriptors each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(1, (hard - RESERVED_DESCRIPTORS) // 2)


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
        self._servers: list[asyncio.AbstractServer] = []
        self._live: set[Flow] = set()
        self._quiet = asyncio.Event()
        self._keep_alive = keep_alive or KeepAlive()
        self._shared = Shared(
            loop,
            tap,
            slots,
            deadlines or Deadlines(),
            self._keep_alive,
            max_connections,
            self._live,
            self._quiet.set,
        )

    @property
    def connections(self) -> int:
        """Flows that are open."""
        return len(self._live)

    async def listen(self, sock: socket.socket, upstream: Upstream) -> None:
        """Accept on a bound socket. Flows name their listener by the order of these calls."""
        self._keep_alive.apply(sock)
        number, shared = len(self._servers), self._shared
        server = await self._loop.create_server(
            lambda: Flow(shared, number, upstream).client, sock=sock, backlog=BACKLOG
        )
        self._servers.append(server)

    def stop_accepting(self) -> None:
        """Close the listeners of this process. Flows go on."""
        for server in self._servers:
            server.close()

    async def stop(self, seconds: float) -> None:
        """Stop accepting, let flows finish for this long, then reset what remains (``shutdown``)."""
        self.stop_accepting()
        self._quiet.clear()
        if self._live and seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._quiet.wait()
        self._quiet.clear()
        for flow in list(self._live):
            flow.end("shutdown")
        if self._live:
            await self._quiet.wait()
