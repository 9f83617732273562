"""A tap as the supervisor sees it: a socket pair, and the memory in which one worker leaves to the next where it stood.

Both outlive the worker. The relay sees no difference between a worker that is dead and one that is stopped: its queue
fills, up to the bound, and is read by the next one.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import Final

from capture.flow_state import FlowState
from capture.held_tap import can_hold

#: Workers that may die of what seems to be the same piece of the traffic; then it is given up, with all that waits
#: behind it: counted as lost.
MAX_DEATHS: Final = 2


class WorkerTap:
    """One tap. The relay's end is given away, the worker's end lent to one worker after the other."""

    def __init__(self, frames_read: int) -> None:
        """``frames_read``: the counter ``tap_frames`` now, before anybody reads of this tap."""
        self._frames_before = frames_read
        #: The relay's end, to be given away and closed by whoever made this.
        self.relay_end, self._worker_end = socket.socketpair()
        self._state = FlowState.create() if can_hold(self._worker_end) else None
        self._deaths = 0
        self._recorded = 0

    def worker_fds(self) -> dict[str, int]:
        """What the worker inherits, by the name of its option."""
        fds = {"tap": self._worker_end.fileno()}
        if self._state is not None:
            fds["state"] = self._state.fd
        return fds

    @property
    def ended(self) -> bool:
        """The relay has closed its end: nobody writes to it any more."""
        poll = select.poll()
        poll.register(self._worker_end, 0)
        return bool(poll.poll(0))  # POLLHUP

    def serves_another(self, frames_read: int, began: bool) -> bool:
        """A worker has ended, with the counter ``tap_frames`` at ``frames_read``; ``began``: it had
        begun to read. Whether the next one can read on. False where nobody writes to the tap any more, where
        the kernel cannot, or where workers die of what it holds."""
        state = self._state
        if state is None:
            return False
        if not state.used and frames_read != self._frames_before:
            return False  # a worker that reads without saying where it stands
        if self.ended:
            return False
        if state.recorded != self._recorded:
            self._deaths = 0
        self._recorded = state.recorded
        # One that died while it started had nothing to do with the piece that its predecessor left.
        self._deaths += began and state.interrupted
        return self._deaths < MAX_DEATHS

    def close(self) -> None:
        """The tap ends."""
        self._worker_end.close()
        if self._state is not None:
            self._state.close()
            with contextlib.suppress(OSError):
                os.close(self._state.fd)
            self._state = None
