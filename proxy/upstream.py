"""Where a flow goes: names resolved off the loop and kept, all addresses tried."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from proxy.address import Address
from proxy.tls_contexts import UpstreamContexts

#: Seconds between two attempts on a Unix socket whose backlog is full (connect says EAGAIN, with no event to wait for).
UNIX_RETRY = 0.01


class Upstream:
    """One model server. Connecting never waits for a resolver once the name has been resolved."""

    def __init__(
        self, address: Address, *, resolve_interval: float = 30.0, tls: UpstreamContexts | None = None
    ) -> None:
        """``resolve_interval``: seconds after which a name is looked up again, behind the connections it serves.
        ``tls``: how to speak TLS to it, None for plaintext; may be replaced at any time."""
        self.address = address
        self.tls = tls
        self._resolve_interval = resolve_interval
        self._hosts: list[str] = [address.host] if address.literal else []
        self._resolved_at = 0.0
        self._refresh: asyncio.Task[None] | None = None

    async def connect(self, loop: asyncio.AbstractEventLoop, factory: Callable[[], asyncio.Protocol]) -> None:
        """Connect a protocol made by ``factory``. Raises OSError when no address accepts; the caller sets a deadline.

        The time left is not known here, so a first address that swallows packets uses up the deadline of this call;
        it is tried last from then on.
        """
        if self.address.path:
            await self._connect_unix(loop, factory)
            return
        await self._resolve(loop)
        refused: OSError | None = None
        for host in list(self._hosts):
            answered = False
            try:
                await loop.create_connection(factory, host, self.address.port)
                answered = True
                return
            except OSError as error:
                refused = error
            finally:
                if not answered and len(self._hosts) > 1 and host in self._hosts:
                    self._hosts.remove(host)
                    self._hosts.append(host)
        self._resolved_at = 0.0
        raise refused or OSError(f"{self.address} has no address")

    async def _connect_unix(self, loop: asyncio.AbstractEventLoop, factory: Callable[[], asyncio.Protocol]) -> None:
        while True:
            try:
                await loop.create_unix_connection(factory, self.address.path)
                return
            except BlockingIOError:
                await asyncio.sleep(UNIX_RETRY)

    async def _resolve(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.address.literal or (loop.time() - self._resolved_at < self._resolve_interval and self._hosts):
            return
        if not self._hosts:
            await self._look_up(loop)
        elif self._refresh is None or self._refresh.done():
            self._refresh = loop.create_task(self._look_up_again(loop))

    async def _look_up(self, loop: asyncio.AbstractEventLoop) -> None:
        found = await loop.getaddrinfo(self.address.host, self.address.port, type=socket.SOCK_STREAM)
        self._hosts = list(dict.fromkeys(str(info[4][0]) for info in found))
        self._resolved_at = loop.time()

    async def _look_up_again(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            await self._look_up(loop)
        except OSError:
            # The name service is away: the addresses that are known serve on.
            self._resolved_at = loop.time()
