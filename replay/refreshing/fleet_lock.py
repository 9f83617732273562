"""One of several jobs on any machines works on a model: the lock of a fleet's store (Redis, Valkey).

It is kept alive by a thread of its own while a trial takes minutes, and expires SECONDS after its holder died.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from capture.errors import UserError
from capture.store.base import StoreError

#: A job that died holding it blocks the next one so long.
SECONDS: Final = 60.0
#: Renewals in that time: all of them must fail before it is lost.
RENEWALS: Final = 4


class Expiring(Protocol):
    """A lock that is its holder's for a while, as :class:`capture.store.redis_lock.RedisLock`."""

    def acquire(self) -> bool: ...

    def renew(self) -> bool: ...

    def release(self) -> bool: ...


class FleetLock:
    """See :class:`replay.refreshing.lock.Lock`. ``connect`` gives the lock and what closes its connection, which is
    this one's alone."""

    def __init__(self, connect: Callable[[], tuple[Expiring, Callable[[], None]]], seconds: float = SECONDS) -> None:
        self._connect = connect
        self._seconds = seconds
        self._lock: Expiring | None = None
        self._close: Callable[[], None] = lambda: None
        #: The connection belongs to one thread at a time.
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._lost = False
        self._thread: threading.Thread | None = None

    def acquire(self) -> bool:
        lock, close = self._connect()
        taken = False
        try:
            taken = lock.acquire()
        finally:
            if not taken:
                close()
        if not taken:
            return False
        self._lock, self._close, self._lost = lock, close, False
        self._ended.clear()
        self._thread = threading.Thread(target=self._keep, name="lock", daemon=True)
        self._thread.start()
        return True

    def _keep(self) -> None:
        while not self._ended.wait(self._seconds / RENEWALS):
            # A server that does not answer may do so in time yet.
            with suppress(StoreError):
                self._renew()

    def _renew(self) -> None:
        with self._turn:
            if self._lock is not None and not self._lost:
                self._lost = not self._lock.renew()

    def holds(self) -> bool:
        """Asked of the server: nothing is published by a job that another one may have replaced."""
        try:
            self._renew()
        except StoreError as error:
            raise UserError(f"{error}; whether the lock is still held cannot be told: nothing was published") from None
        return self._lock is not None and not self._lost

    def holder(self) -> str:
        return "another job (the store has its lock)"

    def release(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with suppress(StoreError):
            if self._lock is not None and not self._lost:
                self._lock.release()
        self._lock = None
        self._close()
