"""``python -m tests.support.refresh_killed BASE STORE MODEL STEP``: refresh, killed before its system call number STEP.

Counted are the calls that change the disk, from the first after the records ran. TensorFlow is not asked: every record
runs. Ends with 0 where there are fewer steps.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capture.store.base import open_store
from replay import refresh
from replay.trial import Trial, Tried

CALLS = ("mkdir", "chmod", "open", "fchmod", "fsync", "replace")


def main(base: str, store: str, model: str, last: str) -> None:
    step = -1

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal step
            if step >= 0:
                step += 1
                if step > int(last):
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    def trial(_: Path, __: str, bodies: list[bytes]) -> Trial:
        nonlocal step
        step = 0
        return Trial("executor", "0", [Tried("") for _ in bodies])

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    done, _ = refresh.refresh(open_store(store), Path(base), model, trial=trial)
    assert [one.failed for one in done] == [False], done


if __name__ == "__main__":
    main(*sys.argv[1:])
