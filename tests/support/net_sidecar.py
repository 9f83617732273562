"""``capture proxy`` as a process: started with arguments, ready when it says so, its log lines and counters at hand."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

from capture.counters import Counters
from tests.support.net_relay import PATIENCE, until

ROOT = Path(__file__).parents[2]


class Sidecar:
    """Use as a context manager; leaving it stops the process with SIGTERM and checks that it ended with 0."""

    def __init__(self, *arguments: str, cwd: Path, module: str = "proxy.command", stderr: int | None = None) -> None:
        """``module`` is run with ``python -m``; ``cwd`` is where the store goes. With ``stderr`` lines are not read."""
        self.lines: list[str] = []
        self._changed = threading.Condition()
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.PIPE if stderr is None else stderr,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, pattern: str, times: int = 1) -> re.Match[str]:
        """The last of so many log lines that match."""
        found: list[re.Match[str]] = []

        def enough() -> bool:
            found[:] = [match for line in self.lines if (match := re.search(pattern, line))]
            return len(found) >= times

        with self._changed:
            if not self._changed.wait_for(enough, PATIENCE):
                raise AssertionError(f"no {pattern!r} in:\n" + "\n".join(self.lines))
        return found[times - 1]

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
            if "warmtap-counters" in os.readlink(entry):
                return Counters(os.open(entry, os.O_RDWR))
        raise AssertionError("no counters")

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Signal, wait; the exit status."""
        self.process.send_signal(signum)
        status = self.process.wait(PATIENCE)
        self._end()
        return status

    def _end(self) -> None:
        self._reader.join()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def __enter__(self) -> Sidecar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            status = self.stop()
            assert kind is not None or status == 0, "\n".join(self.lines)
        else:
            self._end()


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def wait_gone(pid: int) -> None:
    until(lambda: gone(pid), f"end of process {pid}")
