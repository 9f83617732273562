"""A piece of work in a process of its own that is killed before its system call number N."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

#: Those that change the disk, by their names in ``os``.
CALLS = ("mkdir", "chmod", "open", "fchmod", "fsync", "replace", "rename", "link", "unlink", "write", "ftruncate")


class Steps:
    """Counts the calls from :meth:`begin` on, and kills the process before number ``last``."""

    def __init__(self, last: int) -> None:
        self._last = last
        self._step = -1

    def begin(self) -> None:
        """From here on calls count; before, nothing is to be changed yet."""
        self._step = max(self._step, 0)

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The call, counted."""

        def call(*arguments: Any, **named: Any) -> Any:
            if self._step >= 0:
                self._step += 1
                if self._step > self._last:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call


def killed_at(step: int, work: Callable[[Steps], None]) -> bool:
    """Do ``work`` in a fork of this process; False where it ended before that step. It must be a success then."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            steps = Steps(step)
            for name in CALLS:
                setattr(os, name, steps.counted(getattr(os, name)))
            work(steps)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    if os.WIFSIGNALED(ended):
        assert os.WTERMSIG(ended) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(ended) == 0, "see standard error"
    return False
