"""Processes that say ``ready key=value ...`` on standard output or standard error, and are ended with SIGTERM."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

ROOT = Path(__file__).resolve().parents[2]
#: Seconds until a process that is neither ready nor gone is given up. Far above what any needs.
PATIENCE = 120.0


class NotReady(AssertionError):
    """The process ended, or said nothing, before it was ready. The text holds what it wrote."""


class Process:
    """A running ``python -m MODULE ...`` with its ready line as ``fields``."""

    def __init__(self, module: str, *arguments: str, cwd: Path = ROOT, python: str = sys.executable) -> None:
        self.process = subprocess.Popen(
            [python, "-m", module, *arguments],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.output: list[str] = []
        self._ready: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()
        self.fields: dict[str, str] = dict(word.split("=", 1) for word in self._wait_ready().split() if "=" in word)

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.output.append(line)
            if "ready " in line:
                self._ready.put(line)
        self._ready.put(None)

    def _wait_ready(self) -> str:
        ended = 0
        while ended < len(self._readers):
            try:
                line = self._ready.get(timeout=PATIENCE)
            except queue.Empty:
                break
            if line is not None:
                return line.split("ready ", 1)[1]
            ended += 1
        self.process.kill()
        raise NotReady(f"exit {self.process.wait()}: {''.join(self.output)}")

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.terminate()
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.stop()


def run(arguments: Sequence[str], *, stdin: str = "", cwd: Path = ROOT, ok: Sequence[int] = (0,)) -> str:
    """Run to the end and return standard output; AssertionError with all output on another exit status."""
    done = subprocess.run(arguments, cwd=cwd, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode not in ok:
        raise AssertionError(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout
