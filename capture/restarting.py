"""A process that does the work, started anew whatever ends it, by a parent that does nothing else.

In Kubernetes a container that ends is not ready until it runs again, and with it neither is its pod: clients would be
turned away because a worker was killed. The parent is what the container is; the worker may end as often as it likes.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger("worker")

#: Seconds until the next start: doubling up to the limit, and from the first again after one that lived for longer.
FIRST: Final = 0.1
LIMIT: Final = 30.0
#: <linux/prctl.h>
_PR_SET_PDEATHSIG: Final = 1


class _Parent:
    """Hears SIGTERM and the ends of children, without missing one."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.stopping = False
        self._told, self._tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._told, select.POLLIN)
        signal.set_wakeup_fd(self._tell)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def fork(self) -> int:
        """0 in the child, which hears signals as any other process and dies with this one."""
        # A signal that comes before the child has forgotten these handlers waits until it has.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        child = os.fork()
        if not child:
            signal.set_wakeup_fd(-1)
            for fd in (self._told, self._tell):
                os.close(fd)
            for signum in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(signum, signal.SIG_DFL)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            # It may have died before the call.
            if os.getppid() != self.pid:
                sys.exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return child

    def hear(self, seconds: float | None) -> None:
        """Until a signal, or so long."""
        if self._poll.poll(None if seconds is None else 1000 * seconds):
            os.read(self._told, 4096)

    def wait(self, child: int) -> int:
        """Its exit status, negative for a signal; it is told to stop when this process is."""
        told = False
        while True:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            if self.stopping and not told:
                os.kill(child, signal.SIGTERM)
                told = True
            self.hear(None)


def restarted(run: Callable[[], int]) -> int:
    """Run it in a child, again and again until SIGTERM, which the child is told too. Its last exit code; in the child
    that of ``run``. To be called before there are threads."""
    parent = _Parent()
    wait = FIRST
    while not parent.stopping:
        begun = time.monotonic()
        child = parent.fork()
        if not child:
            return run()
        status = parent.wait(child)
        if parent.stopping:
            # Negative: it was told before it could listen.
            return max(status, 0)
        wait = FIRST if time.monotonic() - begun > LIMIT else min(2 * wait, LIMIT)
        log.error("worker ended", extra={"fields": {"status": status, "next_in": wait}})
        until = time.monotonic() + wait
        while not parent.stopping and (left := until - time.monotonic()) > 0:
            parent.hear(left)
    return 0
