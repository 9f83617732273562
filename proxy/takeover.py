"""A running sidecar hands its listening sockets to its successor: a listener is never closed.

On a ``SOCK_SEQPACKET`` Unix socket, between processes of one user::

    predecessor   JSON {"protocol": 1, "listeners": [[address asked for, address bound], ...]} + the descriptors
    successor     ready       its relays accept on them
    predecessor   yours       it no longer holds takeover socket and admin port, and drains

If the connection breaks before ``ready``, nothing has changed and the predecessor serves on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from proxy.address import Address
from proxy.listening import Listening
from proxy.worker_socket import listen_private, peer_user

log = logging.getLogger("supervisor")

PROTOCOL: Final = 1
READY: Final = b"ready"
YOURS: Final = b"yours"
MAX_MESSAGE: Final = 65536
#: SCM_RIGHTS takes no more descriptors in one message (SCM_MAX_FD).
MAX_LISTENERS: Final = 253
#: Seconds that a predecessor has to answer, beyond what draining takes it.
ANSWER_SECONDS: Final = 10.0
#: Seconds between attempts to accept when no descriptor is free.
_RETRY: Final = 1.0
#: Seconds that a successor may take to become ready.
READY_SECONDS: Final = 60.0


class TakeOverError(Exception):
    """The listeners cannot be taken over. One line with the remedy."""


class _Offer(msgspec.Struct, frozen=True):
    protocol: int
    listeners: list[tuple[str, str]]


class Predecessor:
    """The successor's view of the sidecar that it replaces."""

    def __init__(self, link: socket.socket, sockets: dict[str, socket.socket]) -> None:
        self._link = link
        self._sockets = sockets

    @classmethod
    def meet(cls, path: str) -> Predecessor:
        """Receive its listeners. Raises TakeOverError."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.settimeout(ANSWER_SECONDS)
        try:
            link.connect(path)
            message, fds, _, _ = socket.recv_fds(link, MAX_MESSAGE, MAX_LISTENERS)
        except OSError as error:
            link.close()
            raise TakeOverError(
                f"takeover_socket {path}: {error.strerror or error}; is the sidecar to be replaced running, as this "
                "user, with the same takeover_socket?"
            ) from None
        sockets = [socket.socket(fileno=fd) for fd in fds]
        try:
            offer = msgspec.json.decode(message, type=_Offer) if message else None
            if offer is None:
                raise TakeOverError(f"takeover_socket {path}: the sidecar there is stopping, or being replaced already")
            if offer.protocol != PROTOCOL or len(offer.listeners) != len(sockets):
                raise TakeOverError(f"takeover_socket {path}: the sidecar there is of another version; restart it")
        except (TakeOverError, msgspec.MsgspecError) as error:
            for sock in (*sockets, link):
                sock.close()
            raise TakeOverError(str(error)) from None
        named: dict[str, socket.socket] = {}
        for (asked, bound), sock in zip(offer.listeners, sockets, strict=True):
            named[bound] = sock
            named[asked] = sock
        return cls(link, named)

    def listening(self, address: Address) -> Listening | None:
        """Its socket of this address, if it has one. To be asked once for each."""
        sock = self._sockets.pop(str(address), None)
        if sock is None:
            return None
        for name in [name for name, other in self._sockets.items() if other is sock]:
            del self._sockets[name]
        return Listening(address, sock, borrowed=True)

    def close_rest(self) -> None:
        """Close what nobody asked for: the predecessor is then the last who holds it."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()

    async def taken(self) -> None:
        """Say ready, and wait until it has let go. Raises TakeOverError."""
        loop = asyncio.get_running_loop()
        self._link.setblocking(False)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await loop.sock_sendall(self._link, READY)
                answer = await loop.sock_recv(self._link, MAX_MESSAGE)
        except (OSError, TimeoutError) as error:
            raise TakeOverError(f"the sidecar to be replaced does not answer: {error}") from None
        finally:
            self._link.close()
        if answer != YOURS:
            raise TakeOverError("the sidecar to be replaced does not let go")

    def close(self) -> None:
        """Without having taken over: it serves on."""
        self.close_rest()
        self._link.close()


class TakeOverSocket:
    """The predecessor's end. Serves one successor at a time."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self.path = path
        self._sock = listen_private(path)

    async def serve(self, listeners: Callable[[], Sequence[Listening]], let_go: Callable[[], Awaitable[None]]) -> None:
        """Until a successor has taken over: then ``let_go`` was awaited."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                link, _ = await loop.sock_accept(self._sock)
            except OSError as error:
                log.error("cannot accept a successor", extra={"fields": {"error": error}})
                await asyncio.sleep(_RETRY)
                continue
            with link:
                if (user := peer_user(link)) != os.geteuid():
                    log.error("a successor of another user was turned away", extra={"fields": {"user": user}})
                    continue
                link.setblocking(False)
                offered = listeners()
                log.info("a successor asks for the listeners")
                names = [[str(one.address), one.name] for one in offered]
                message = json.dumps({"protocol": PROTOCOL, "listeners": names}).encode()
                answer = b""
                with contextlib.suppress(OSError, TimeoutError):
                    socket.send_fds(link, [message], [one.sock.fileno() for one in offered])
                    async with asyncio.timeout(READY_SECONDS):
                        answer = await loop.sock_recv(link, MAX_MESSAGE)
                if answer != READY:
                    log.warning("the successor did not become ready; serving on")
                    continue
                await let_go()
                with contextlib.suppress(OSError):
                    await loop.sock_sendall(link, YOURS)
                return

    def close(self) -> None:
        """Nobody takes over any more. The name goes first: a successor puts its own there."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        self._sock.close()
