"""``capture proxy`` as a process: its ports, its children and its counters."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from capture.counters import Counters
from tests.support.processes import Process
from tests.support.waiting import until


class Sidecar(Process):
    """``capture proxy`` with these arguments; ready when it says so."""

    def __init__(
        self, *arguments: str, cwd: Path, module: str = "proxy.command", stderr: int = subprocess.PIPE
    ) -> None:
        """``module`` is run with ``python -m``; ``cwd`` is where the store goes."""
        super().__init__(module, *arguments, cwd=cwd, stderr=stderr)

    def stop(self, signum: int = signal.SIGINT) -> int:
        """SIGINT: without the delay in which a sidecar that is to stop still accepts."""
        return super().stop(signum)

    def ready(self) -> list[int]:
        """The ports of its listeners, once both children are up."""
        listeners = self.wait_for(r"ready listeners=(\S+)")[1]
        return [int(one.rpartition(":")[2]) for one in listeners.split(",")]

    def pid(self, child: str, start: int = 1) -> int:
        """Process id of the ``relay`` or ``worker``, of its n-th start."""
        return int(self.wait_for(rf'msg="{child} started" pid=(\d+)', start)[1])

    def counters(self) -> Counters:
        """The live counters, through the supervisor's descriptor."""
        base = Path(f"/proc/{self.process.pid}/fd")
        for entry in base.iterdir():
            # Others may be closed in this moment.
            with contextlib.suppress(FileNotFoundError):
                if "warmtap-counters" in os.readlink(entry):
                    return Counters(os.open(entry, os.O_RDWR))
        raise AssertionError("no counters")


def balanced(counters: Mapping[str, int]) -> bool:
    """Whether every relayed byte is accounted for: handed to a worker or counted as lost."""
    return all(
        counters[f"{side}_bytes"] == counters[f"tap_{side}_bytes"] + counters[f"tap_lost_{side}_bytes"]
        for side in ("client", "server")
    )


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def wait_gone(pid: int) -> None:
    """Until a process has ended."""
    until(lambda: gone(pid), f"end of process {pid}")
