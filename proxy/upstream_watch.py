"""Whether model servers accept connections: asked for ``/readyz``, and by ``follow_upstream``."""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.address import Address

#: Seconds that a model server has to accept a connection.
CONNECT_SECONDS: Final = 1.0
#: Seconds for which an answer holds.
FRESH_SECONDS: Final = 1.0


class Probe:
    """Connects and closes, at most once a second however often it is asked."""

    def __init__(self, address: Address) -> None:
        self.address = address
        #: The last failure was silence, no refusal: a busy server whose backlog is full is silent as well.
        self.silent = False
        self._known = ""
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[str] | None = None

    async def failure(self) -> str:
        """Why a connection is not accepted; empty if it is. Never raises."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._asked_at < FRESH_SECONDS:
            return self._known
        if self._asking is None or self._asking.done():
            self._asking = loop.create_task(self._ask())
        # Whoever asked first may be cancelled; the others wait on.
        return await asyncio.shield(self._asking)

    async def _ask(self) -> str:
        loop = asyncio.get_running_loop()
        silent = False
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if self.address.path:
                    transport, _ = await loop.create_unix_connection(asyncio.Protocol, self.address.path)
                else:
                    transport, _ = await loop.create_connection(asyncio.Protocol, self.address.host, self.address.port)
            transport.abort()
            self._known = ""
        except TimeoutError:
            silent = True
            self._known = f"no connection within {CONNECT_SECONDS:g} s"
        except BlockingIOError:  # a Unix socket whose backlog is full: somebody listens
            self._known = ""
        except (OSError, UnicodeError) as error:
            self._known = getattr(error, "strerror", None) or str(error)
        self.silent = silent
        self._asked_at = loop.time()
        return self._known
