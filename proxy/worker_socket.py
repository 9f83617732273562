"""Where capture workers connect that the sidecar does not start: ``capture worker --connect`` in another container.

``SOCK_SEQPACKET``. To a worker that connects, one message is sent when a pair is free: JSON ``{"protocol": 1, "fds":
[names], "pair": N}`` with the descriptors in that order (SCM_RIGHTS). The connection stays open as the sign of life of
both. Only processes of the sidecar's own user are served (SO_PEERCRED): the tap carries production requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Mapping
from typing import Final

log = logging.getLogger("supervisor")

PROTOCOL: Final = 1
_CREDENTIALS: Final = struct.Struct("3i")
#: Seconds between attempts to accept when no descriptor is free.
_RETRY: Final = 1.0


def peer_user(sock: socket.socket) -> int:
    """User id of the process at the other end of a Unix socket."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


def listen_private(path: str) -> socket.socket:
    """A listening SOCK_SEQPACKET socket that only this user may connect to; a stale one is replaced. Raises OSError."""
    # Under a temporary name first: whoever finds the name finds a socket that listens.
    temporary = f"{path}.{os.getpid()}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise OSError("there is a file of that name that is no socket")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        before = os.umask(0o177)
        try:
            sock.bind(temporary)
        finally:
            os.umask(before)
        sock.listen(16)
        sock.setblocking(False)
        os.rename(temporary, path)
    except OSError:
        sock.close()
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return sock


class WorkerSocket:
    """Accepts workers; pairs ask for the next one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._sock: socket.socket | None = None
        self._inode = (0, 0)
        self._open = asyncio.Event()
        #: An event loop waits for a descriptor once: a second sock_accept would take the place of the first, for good.
        self._turn = asyncio.Lock()

    def listen(self) -> None:
        """Workers find it from now on; a successor does this when it has taken over. Raises OSError."""
        self._sock = listen_private(self._path)
        found = os.lstat(self._path)
        self._inode = found.st_dev, found.st_ino
        self._open.set()

    async def next(self) -> socket.socket:
        """A worker that has connected and is still there."""
        loop = asyncio.get_running_loop()
        await self._open.wait()
        assert self._sock is not None
        while True:
            try:
                async with self._turn:
                    link, _ = await loop.sock_accept(self._sock)
            except OSError as error:
                log.error("cannot accept a worker", extra={"fields": {"error": error}})
                await asyncio.sleep(_RETRY)
                continue
            if (user := peer_user(link)) == os.geteuid():
                return link
            log.error(
                "a worker of another user was turned away: run both as one user",
                extra={"fields": {"user": user, "own": os.geteuid()}},
            )
            link.close()

    @staticmethod
    def hand_over(link: socket.socket, pair: int, fds: Mapping[str, int]) -> None:
        """Send the descriptors. Raises OSError."""
        message = json.dumps({"protocol": PROTOCOL, "fds": list(fds), "pair": pair}).encode()
        socket.send_fds(link, [message], list(fds.values()))

    @staticmethod
    async def end_of(link: socket.socket) -> None:
        """Until the worker has closed its end."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while await loop.sock_recv(link, 64):
                pass

    def close(self) -> None:
        """Nobody connects any more. The name is taken away if it is still ours: a successor puts its own there."""
        if self._sock is None:
            return
        self._sock.close()
        with contextlib.suppress(OSError):
            found = os.lstat(self._path)
            if (found.st_dev, found.st_ino) == self._inode:
                os.unlink(self._path)
