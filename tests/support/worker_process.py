"""The capture worker as a process, fed through a socket pair as a relay would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from capture.config import ListenerConfig, WorkerConfig
from capture.counters import Counters
from tests.support.processes import ROOT
from tests.support.tap_frames import START, Flow, encode, hello, time_frame
from tests.support.waiting import PATIENCE, until

LISTENERS = (ListenerConfig("grpc"), ListenerConfig("eas", version="v3"), ListenerConfig("text", dialect="eas-string"))


class Worker:
    """A running worker process. ``counters`` and ``program`` may be given: what it shares with a real relay, and the
    Python text to run in place of ``capture.worker``."""

    def __init__(
        self, store: Path | str, *, counters: Counters | None = None, program: str = "", **config: Any
    ) -> None:
        self.store = store
        self.counters = Counters.create() if counters is None else counters
        self.socket, theirs = socket.socketpair()
        listeners = config.pop("listeners", LISTENERS)
        run = config.pop("run", "run1")
        settings = WorkerConfig(str(store), run, listeners, **{"flush_interval": 0.01, "retention": 0.0, **config})
        with tempfile.TemporaryFile() as file:
            file.write(msgspec.json.encode(settings))
            file.seek(0)
            fds = {"tap": theirs.fileno(), "counters": self.counters.fd, "config": file.fileno()}
            what = ["-c", program] if program else ["-m", "capture.worker"]
            self.process = subprocess.Popen(
                [sys.executable, *what, *(f"--{name}-fd={fd}" for name, fd in fds.items())],
                cwd=ROOT, pass_fds=tuple(fds.values()), stderr=subprocess.PIPE, text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        theirs.close()
        self.socket.settimeout(PATIENCE)

    def greet(self) -> None:
        self.socket.sendall(encode([hello(), time_frame(START)]))

    def send(self, *flows: Flow) -> None:
        for flow in flows:
            self.socket.sendall(encode(flow.frames))
            flow.frames.clear()

    def wait_for(self, counter: str, value: int) -> None:
        """Until a counter reaches a value; shared memory has nothing to wait on."""

        def reached() -> bool:
            assert self.process.poll() is None, self.end()
            return self.counters.total()[counter] >= value

        until(reached, f"{counter} {value}")

    def memory(self, what: str) -> int:
        """``VmHWM`` (the most that was ever resident), ``VmRSS``, ``VmSize``, in bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) << 10
        raise AssertionError(f"no {what}: the process has ended")

    def end(self) -> tuple[int, str]:
        """Close the tap; the exit code, and what it wrote on stderr."""
        self.socket.close()
        _, text = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, text
