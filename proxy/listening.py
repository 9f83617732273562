"""Listening sockets: bound once, inherited by every relay and by a successor, never closed in between.

What the kernel does, tried on Linux 6 with uvloop and duplicates of the descriptor in several processes:
``shutdown(SHUT_RD)`` on a listening TCP socket makes clients meet ECONNREFUSED at once and keeps the port, and
``listen()`` undoes it for all duplicates; for a Unix socket nothing undoes it, so its name is taken away instead
(ENOENT) and given back.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from proxy.address import Address
from proxy.relay import BACKLOG

#: Bytes of a Unix socket's path (struct sockaddr_un holds 108 with the final zero), and of what is put behind it for a
#: moment.
MAX_PATH = 107
_SUFFIX = 12


class Listening:
    """One bound and listening socket. ``address`` is the one asked for."""

    def __init__(self, address: Address, sock: socket.socket, *, borrowed: bool = False) -> None:
        """Of a socket that listens already. ``borrowed``: a predecessor still serves on it, and the name is its."""
        self.address = address
        self.sock = sock
        #: ``host:port`` that the kernel gave, or ``unix:/path``.
        self.name = str(address if address.path else Address(*sock.getsockname()[:2]))
        self.refusing = False
        self.borrowed = borrowed
        self._identity = _identity(address.path) if address.path else None

    @classmethod
    def bind(cls, address: Address, mode: int = 0o600) -> Listening:
        """``mode``: permissions of a Unix socket. Raises OSError."""
        if address.path:
            sock = _bind_unix(address.path, mode)
        else:
            family, kind, protocol, _, where = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(where)
                sock.listen(BACKLOG)
            except OSError:
                sock.close()
                raise
        return cls(address, sock)

    def refuse(self) -> None:
        """Have the kernel refuse clients. No relay may be accepting. Again: renewed."""
        self.refusing = True
        if self.address.path:
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.address.path, _hidden(self.address.path))
        else:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RD)

    def accept(self) -> None:
        """Undo :meth:`refuse`: clients wait in the backlog until a relay accepts. Raises OSError where the port was
        taken meanwhile."""
        if not self.refusing:
            return
        if self.address.path:
            with contextlib.suppress(FileNotFoundError):
                os.rename(_hidden(self.address.path), self.address.path)
        else:
            self.sock.listen(BACKLOG)
        self.refusing = False

    def close(self, *, remove: bool) -> None:
        """Close this process's descriptor. ``remove``: and take the name of a Unix socket away, if it is still ours."""
        self.sock.close()
        if remove and self.address.path and not self.borrowed:
            for path in (self.address.path, _hidden(self.address.path)):
                with contextlib.suppress(OSError):
                    if self._identity is not None and _identity(path) == self._identity:
                        os.unlink(path)


def _bind_unix(path: str, mode: int) -> socket.socket:
    """Under a temporary name first: whoever finds the name finds a socket that listens, with its permissions."""
    if len(os.fsencode(path)) + _SUFFIX > MAX_PATH:
        raise OSError(f"the path is longer than {MAX_PATH - _SUFFIX} bytes")
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        found = None
    if found is not None:
        if not stat.S_ISSOCK(found.st_mode):
            raise OSError("there is a file of that name that is no socket")
        if _answers(path):
            raise OSError("another process listens there")
    temporary = f"{path}.{os.getpid()}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        before = os.umask(0o177)
        try:
            sock.bind(temporary)
        finally:
            os.umask(before)
        os.chmod(temporary, mode)
        sock.listen(BACKLOG)
        os.rename(temporary, path)
    except OSError:
        sock.close()
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return sock


def _hidden(path: str) -> str:
    return f"{path}.refused"


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except BlockingIOError:  # a full backlog: somebody listens
            return True
        except OSError:
            return False
        return True
