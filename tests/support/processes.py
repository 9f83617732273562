"""The project's own processes: those that serve until they are told to stop, and those that run to their end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.support.tf_fork import run_forked
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


class NotReady(AssertionError):
    """The process ended before it was ready. ``error`` is what it wrote to standard error."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(f"exit status {status}: {error}")
        self.status = status
        self.error = error


class Process:
    """``python -m MODULE ...`` that serves until a signal, with what it writes at hand as it comes.

    As a context manager it is stopped with SIGTERM at the end, and must then end with 0.
    """

    def __init__(self, module: str, *arguments: str, cwd: Path = ROOT, stderr: int = subprocess.PIPE) -> None:
        """``stderr`` may be a descriptor; what goes there is not read."""
        self.lines: list[str] = []
        self._error: list[str] = []
        self._changed = threading.Condition()
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        self._streams = [stream for stream in (self.process.stdout, self.process.stderr) if stream is not None]
        self._open = len(self._streams)
        self._readers = [threading.Thread(target=self._read, args=(stream,)) for stream in self._streams]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                if stream is self.process.stderr:
                    self._error.append(line)
                self._changed.notify_all()
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    @property
    def error(self) -> str:
        """Everything on standard error so far."""
        return "".join(self._error)

    def wait_for(self, pattern: str, times: int = 1) -> re.Match[str]:
        """The last of so many lines that match. Raises NotReady if it ends before, AssertionError if nothing comes."""
        found: list[re.Match[str]] = []

        def enough() -> bool:
            found[:] = [match for line in self.lines if (match := re.search(pattern, line))]
            return len(found) >= times

        with self._changed:
            self._changed.wait_for(lambda: enough() or not self._open, PATIENCE)
            ended = not self._open
        if len(found) >= times:
            return found[times - 1]
        status = self.stop()
        if ended:
            raise NotReady(status, self.error)
        raise AssertionError(f"no {pattern!r} in:\n" + "\n".join(self.lines))

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Signal, wait; the exit status."""
        self.process.send_signal(signum)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._end()
        return status

    def _end(self) -> None:
        for reader in self._readers:
            reader.join()
        for stream in self._streams:
            stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            status = self.stop()
            assert kind is not None or status == 0, "\n".join(self.lines)
        else:
            self._end()


def run(arguments: Sequence[str], *, stdin: str = "", ok: Sequence[int] = (0,)) -> str:
    """Run a command to its end; its standard output. AssertionError with all output on another exit status."""
    done = subprocess.run(arguments, cwd=ROOT, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode not in ok:
        raise AssertionError(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def capture(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command ``capture``, run to its end with any exit status."""
    command = [sys.executable, "-m", "capture", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def run_tensorflow(program: str, *arguments: str, env: dict[str, str] | None = None) -> Any:
    """The JSON in the last line of a Python program that imports TensorFlow, which this process does not. With ``env``
    it is a process that has loaded nothing."""
    if env is None:
        done = run_forked(["-c", program, *arguments], cwd=ROOT)
    else:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=ROOT,
            env={**env, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
