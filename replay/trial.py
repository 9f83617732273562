"""Running every record on the target version before it is published, each able to crash only a child process.

One bad record stops a model from loading, and a kernel that fails a CHECK ends the process it runs in. So requests go
to a child, one at a time; when the child dies, the request it had is to blame and a new child goes on with the next.

The child is ``python -m replay.trial DIR FAMILY``: on its standard input for each request a length (u32, big endian),
and behind it that many bytes: the method, a zero byte, the body; on its standard output one line of JSON for each,
after a first line with the executor's level.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Self

import msgspec

from capture.errors import UserError
from replay.tf_protos import wheel_directory

_DISCREET: Final = "--discreet"
#: Children that may die before the model itself is blamed.
MAX_CRASHES: Final = 20
#: Seconds that a record may take, and a load. A cold graph of XLA takes minutes; what takes longer hangs, and with it
#: whoever waits for the job.
RECORD_SECONDS: Final = 600.0
LOAD_SECONDS: Final = 3600.0


class TrialError(UserError):
    """The target version cannot be run at all."""


class Request(NamedTuple):
    """A stored request: its method and its body. ``discreet``: nothing that TensorFlow says of it may be repeated
    (:mod:`replay.discretion`)."""

    method: str
    body: bytes
    discreet: bool = False


class Ready(msgspec.Struct):
    """The child's first line. ``error`` is set where the model does not load."""

    level: str = ""
    tensorflow: str = ""
    error: str = ""


class Tried(msgspec.Struct):
    """One request that was run: ``error`` is empty on success, ``seconds`` its first call's wall time, ``builds`` None
    where they cannot be counted."""

    error: str
    seconds: float = 0.0
    builds: int | None = None


@dataclass(slots=True)
class Trial:
    """What came of all requests, place by place."""

    level: str
    tensorflow: str
    results: list[Tried]


def run_trial(
    saved_model: Path,
    family: str,
    requests: Sequence[Request],
    *,
    record_seconds: float = RECORD_SECONDS,
    load_seconds: float = LOAD_SECONDS,
) -> Trial:
    """Run each request once on the model, for that many seconds at most. Raises TrialError if the model cannot be
    loaded, or keeps crashing, TensorFlowMissing."""
    # Here and not in the child: to a parent all deaths of a child look alike.
    wheel_directory()
    results: list[Tried] = []
    ready = Ready()
    discreet = any(request.discreet for request in requests)
    crashes = 0
    while len(results) < len(requests) or not ready.level:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "replay.trial", os.fspath(saved_model), family, *[_DISCREET][:discreet]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A kernel that fails a CHECK says there what it failed on.
            stderr=subprocess.DEVNULL if discreet else None,
        )
        with child, _killed_on_error(child):
            assert child.stdin is not None
            assert child.stdout is not None
            with _Patience(child, load_seconds) as patience:
                ready = _ready(child.stdout, saved_model, patience)
            for request in requests[len(results) :]:
                with _Patience(child, record_seconds) as patience:
                    tried = _try(child.stdin, child.stdout, request)
                if tried is not None:
                    results.append(tried)
                if tried is None or patience.over:
                    break
            else:
                child.stdin.close()
                continue
            child.kill()
        if tried is not None:
            # Its answer came as its time ended.
            continue
        crashes += 1
        if crashes > MAX_CRASHES:
            raise TrialError(f"{saved_model}: TensorFlow crashed on {crashes} records; nothing was published")
        crashed = f"TensorFlow crashed on it (exit {child.returncode})"
        results.append(Tried(patience.text if patience.over else crashed))
    return Trial(ready.level, ready.tensorflow, results)


class _Patience:
    """Kills a child that takes longer than ``seconds`` for what is done inside; ``over`` says whether it did."""

    def __init__(self, child: subprocess.Popen[bytes], seconds: float) -> None:
        self.over = False
        self.text = f"did not end within {seconds:g} s, and TensorFlow was stopped"
        self._child = child
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def _end(self) -> None:
        self.over = True
        self._child.kill()

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        # It either killed the child, or never will.
        self._timer.join()


@contextmanager
def _killed_on_error(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Nobody waits for the child's current request, which may take minutes, when the trial ends early."""
    try:
        yield
    except BaseException:
        child.kill()
        if child.stdin is not None:
            with suppress(BrokenPipeError):
                child.stdin.close()
        raise


def _ready(stdout: IO[bytes], saved_model: Path, patience: _Patience) -> Ready:
    line = stdout.readline()
    if not line and patience.over:
        raise TrialError(f"{saved_model}: {patience.text}; nothing was published")
    if not line:
        raise TrialError(f"{saved_model}: TensorFlow crashed while loading it")
    ready = msgspec.json.decode(line, type=Ready)
    if ready.error:
        raise TrialError(ready.error)
    return ready


def _try(stdin: IO[bytes], stdout: IO[bytes], request: Request) -> Tried | None:
    """One request; None when the child died of it."""
    head = request.method.encode() + b"\0"
    try:
        stdin.write((len(head) + len(request.body)).to_bytes(4, "big") + head)
        stdin.write(request.body)
        stdin.flush()
    except BrokenPipeError:
        # Closed here, or the bytes that are left over fail once more when the child is put away.
        with suppress(BrokenPipeError):
            stdin.close()
        return None
    line = stdout.readline()
    return msgspec.json.decode(line, type=Tried) if line.endswith(b"\n") else None


def child(saved_model: Path, family: str, stdin: IO[bytes], out: IO[bytes], *, discreet: bool = False) -> None:
    """The child's work, until its input ends."""
    from replay.calls import CALLERS, run_counted
    from replay.discretion import DiscreetExecutor
    from replay.executor.api import ExecutorError
    from replay.executor.session import open_executor

    def say(message: Any) -> None:
        out.write(msgspec.json.encode(message) + b"\n")
        out.flush()

    try:
        executor = open_executor(saved_model)
    except ExecutorError as error:
        say(Ready(error=str(error)))
        return
    if discreet:
        executor = DiscreetExecutor(executor, saved_model)
    caller = CALLERS[family](executor)
    say(Ready(executor.level, executor.tensorflow_version))
    while len(size := stdin.read(4)) == 4:
        method, _, body = stdin.read(int.from_bytes(size, "big")).partition(b"\0")
        ran = run_counted(executor, caller, body, method.decode())
        say(Tried(ran.message, ran.seconds, ran.builds))
    executor.close()


def _main() -> None:
    # Ctrl-C reaches the parent too, which says what there is to say; a parent that is gone wants no answer.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # TensorFlow writes to standard output as it likes: the protocol gets a descriptor of its own.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    child(Path(sys.argv[1]), sys.argv[2], sys.stdin.buffer, out, discreet=_DISCREET in sys.argv[3:])


if __name__ == "__main__":
    _main()
