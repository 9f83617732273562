"""Keeping a child process: what all are told, how soon it is started again, and what it is started with."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from typing import Final

from capture.config import WorkerConfig
from proxy.relay_main import RelayConfig

#: A child that lived for less than this many seconds died quickly.
QUICK_SECONDS: Final = 10.0
#: Seconds before a restart after quick deaths: at once, then this, doubling up to the limit.
BACKOFF_FIRST: Final = 0.5
BACKOFF_LIMIT: Final = 30.0


class Backoff:
    """How long to wait before the next start: 0 after a long life or a first quick death, then 0.5 s doubling to 30."""

    def __init__(self) -> None:
        self._quick = 0

    def after(self, lived: float) -> float:
        """Seconds to wait, for a child that lived so many seconds."""
        self._quick = 0 if lived >= QUICK_SECONDS else self._quick + 1
        return 0.0 if self._quick <= 1 else min(BACKOFF_LIMIT, BACKOFF_FIRST * 2.0 ** (self._quick - 2))


def inherited(data: bytes) -> int:
    """A descriptor that reads ``data``: for what must not stand in an argument, where ``ps`` shows it."""
    fd = os.memfd_create("warmtap-config", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


class Orders:
    """What all pairs are told alike; the supervisor changes it."""

    def __init__(
        self, relay: RelayConfig, worker: WorkerConfig, *, pairs: int = 1, heartbeat_timeout: float = 0.0
    ) -> None:
        """``relay`` is completed with generation and descriptors at each start, ``worker`` with the pair's number."""
        self.pairs = pairs
        self.relay = relay
        self.worker = worker
        #: Seconds without a heartbeat after which a relay is killed; 0 is never.
        self.heartbeat_timeout = heartbeat_timeout
        self.stop = asyncio.Event()
        #: The kill switch: no tap is attached.
        self.paused = False
        #: Listeners, by place, that no relay may accept on now.
        self.refused: set[int] = set()

    def which(self, pair: int) -> dict[str, int]:
        """The pair, for log lines where there are several."""
        return {"pair": pair} if self.pairs > 1 else {}


async def keep(stop: asyncio.Event, run: Callable[[int], Coroutine[None, None, None]]) -> None:
    """``run(0)``, ``run(1)``, ... each when the one before has returned, with a backoff, until ``stop``."""
    loop = asyncio.get_running_loop()
    backoff, generation = Backoff(), 0
    while not stop.is_set():
        began = loop.time()
        await run(generation)
        generation += 1
        if not stop.is_set() and (seconds := backoff.after(loop.time() - began)):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await stop.wait()
