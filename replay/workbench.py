"""Executors in a child process, of this interpreter or of another one that has the server's TensorFlow.

What the server makes of a request is decided here; the child only loads models and runs textual names. So an
environment needs no more than TensorFlow, and a kernel that fails a CHECK ends the child, not the verification.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from replay import frames
from replay.executor.api import ExecutorError, Level, RunResult, Signature, parse_signature


class Workbench:
    """The child. As a context manager it is ended at the end, whatever it does."""

    def __init__(self, python: str = "", libraries: Sequence[Path] = (), *, silent: bool = False) -> None:
        """``python`` is the interpreter, empty for this one; ``libraries`` are shared objects with custom ops;
        ``silent``: what TensorFlow writes to standard error is thrown away. Raises ExecutorError."""
        self._silent = silent
        self._libraries = [os.fspath(path.resolve()) for path in libraries]
        self._python = python or sys.executable
        self._packages = _packages()
        path = os.pathsep.join(filter(None, [self._packages.name, os.environ.get("PYTHONPATH")]))
        try:
            self._child = subprocess.Popen(
                # -P: a folder named tensorflow in the current directory is not the one that is meant.
                [self._python, "-P", "-m", "replay.workbench_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if silent else None,
                env={**os.environ, "PYTHONPATH": path},
            )
        except OSError as error:
            self._packages.cleanup()
            raise ExecutorError(f"--python {self._python}: {error.strerror}") from None
        self._writing = threading.Lock()
        self._changed = threading.Condition()
        self._answers: dict[int, tuple[dict[str, Any], list[bytes]]] = {}
        self._ended = False
        self._last = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def open(self, directory: Path, level: Level | None = None) -> RemoteExecutor:
        """Load a SavedModel as :func:`replay.executor.session.open_executor` does. Raises ExecutorError."""
        return RemoteExecutor(
            self, *self.ask(op="open", directory=os.fspath(directory), level=level, libraries=self._libraries)
        )

    def ask(self, blobs: Sequence[bytes] = (), **head: Any) -> tuple[dict[str, Any], list[bytes]]:
        """One question and its answer; questions may overlap. Raises ExecutorError with the child's text, or where it
        died."""
        with self._writing, suppress(BrokenPipeError):
            self._last += 1
            number = self._last
            assert self._child.stdin is not None
            frames.write(self._child.stdin, {"id": number, **head}, blobs)
        with self._changed:
            self._changed.wait_for(lambda: number in self._answers or self._ended)
            if number not in self._answers:
                raise ExecutorError(self._death())
            answer, found = self._answers.pop(number)
        if "error" in answer:
            raise ExecutorError(answer["error"])
        return answer, found

    def _read(self) -> None:
        assert self._child.stdout is not None
        while (message := frames.read(self._child.stdout)) is not None:
            with self._changed:
                self._answers[message[0]["id"]] = message
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _death(self) -> str:
        status = self._child.wait()
        if status > 0:
            return f"{self._python} ended with exit status {status}: it must be Python 3.11 or newer with TensorFlow"
        where = "are withheld (--scrub)" if self._silent else "stand above"
        return f"TensorFlow crashed (signal {-status}) while it ran a request; its own lines {where}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # Nobody waits for a run, which may take minutes, when it ends early.
        self._child.kill()
        self._child.wait()
        self._reader.join()
        for stream in (self._child.stdin, self._child.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()
        self._packages.cleanup()


class RemoteExecutor:
    """See :class:`replay.executor.api.Executor`."""

    def __init__(self, bench: Workbench, told: Mapping[str, Any], definitions: Sequence[bytes]) -> None:
        self._bench = bench
        self._number: int = told["id"]
        self.level: Level = told["level"]
        self.note: str = told["note"]
        self.tensorflow_version: str = told["tensorflow"]
        self.load_seconds: float = told["load_seconds"]
        self.signature_defs: Mapping[str, Signature] = MappingProxyType(
            {name: parse_signature(one) for name, one in zip(told["signatures"], definitions, strict=True)}
        )

    def run(self, feeds: Sequence[tuple[str, bytes]], fetches: Sequence[str], *, values: bool = True) -> RunResult:
        told, outputs = self._bench.ask(
            [proto for _, proto in feeds],
            op="run",
            executor=self._number,
            feeds=[name for name, _ in feeds],
            fetches=list(fetches),
            values=values,
        )
        return RunResult(told["code"], told["message"], tuple(outputs), told["seconds"], told["bad_feed"])

    def builds(self) -> int | None:
        told, _ = self._bench.ask(op="builds", executor=self._number)
        found: int | None = told["value"]
        return found

    def counter(self, name: str) -> int | None:
        told, _ = self._bench.ask(op="counter", executor=self._number, name=name)
        found: int | None = told["value"]
        return found

    def close(self) -> None:
        self._bench.ask(op="close", executor=self._number)


def _packages() -> tempfile.TemporaryDirectory[str]:
    """A directory with these two packages and nothing that is installed beside them: on the path of another
    interpreter, that would come before its own TensorFlow."""
    directory = tempfile.TemporaryDirectory(prefix="warmtap-")
    for name in ("capture", "replay"):
        spec = find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        (Path(directory.name) / name).symlink_to(Path(spec.submodule_search_locations[0]).resolve())
    return directory
