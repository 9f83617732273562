"""One of several jobs works on a model at a time.

The lock of a local place is the kernel's (flock) on a file beside the history: it is gone when its holder is, however
that ended. Others may be added to it; a job works only while it holds all of them.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from capture.errors import UserError


class Lock(Protocol):
    """Something that one holder at a time has."""

    def acquire(self) -> bool:
        """Take it; False where another one has it. Raises UserError where that cannot be told."""

    def holds(self) -> bool:
        """Whether it is still held: asked before anything is published."""

    def holder(self) -> str:
        """Who has it, for people; "" where that is not known."""

    def release(self) -> None:
        """Give it back, if it is held."""


class FileLock:
    """A lock on the file ``path``, in a directory that is made where it is missing. Others on this machine see it at
    once; on other machines as far as their file system shares locks (NFS does)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def acquire(self) -> bool:
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UserError(f"{self._path}: {error.strerror}; the job needs a lock there, or another state") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError as error:
            os.close(descriptor)
            raise UserError(
                f"{self._path}: {error.strerror}: its file system knows no locks; give another state"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._descriptor = descriptor
        return True

    def holds(self) -> bool:
        return self._descriptor >= 0

    def holder(self) -> str:
        try:
            return self._path.read_text(errors="replace").strip()
        except OSError:
            return ""

    def release(self) -> None:
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1


@contextmanager
def held(locks: Sequence[Lock]) -> Iterator[str]:
    """Hold all of them. Yields "" where they are held, otherwise who is in the way."""
    taken: list[Lock] = []
    try:
        for lock in locks:
            if not lock.acquire():
                yield lock.holder() or "another job"
                return
            taken.append(lock)
        yield ""
    finally:
        for lock in reversed(taken):
            lock.release()
