"""The executor proper: TensorFlow's C++ session through the compiled shim.

TensorFlow itself is never imported: loading the shim loads the wheel's C++ library, which brings all ops and kernels
with it, in half a second instead of nine.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from replay.executor.api import (
    GRAPH_BUILDS,
    ExecutorError,
    Level,
    RunResult,
    Signature,
    check_directory,
    one_line,
    parse_signature,
)

#: An informational line of absl's log, or its complaint that nobody has set it up.
_GREETING = re.compile(rb"I\d{4} \d\d:|WARNING: All log messages before absl::InitializeLog")


class _Given(ctypes.Structure):
    """``wt_bytes`` on the way in: ctypes keeps the bytes object alive through the pointer's owner."""

    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_size_t))


class _Got(ctypes.Structure):
    """``wt_bytes`` on the way out: a bare address, because the bytes may hold zeros."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Reply(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_int32),
        ("bad_feed", ctypes.c_int32),
        ("seconds", ctypes.c_double),
        ("message", _Got),
        ("count", ctypes.c_size_t),
        ("blobs", ctypes.POINTER(_Got)),
    )


def _text(value: _Got) -> bytes:
    return ctypes.string_at(value.data, value.size) if value.size else b""


def _given(value: bytes) -> _Given:
    return _Given(value, len(value))


def _array(values: Sequence[bytes]) -> ctypes.Array[_Given]:
    return (_Given * len(values))(*[_given(value) for value in values])


@contextmanager
def _without_greetings() -> Iterator[None]:
    """Keeps the lines that TensorFlow's static initialisers write to stderr off it; whatever else was written there
    meanwhile follows afterwards. With TF_CPP_MIN_LOG_LEVEL=0 nothing is held back."""
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0":
        yield
        return
    sys.stderr.flush()
    held = os.memfd_create("stderr", os.MFD_CLOEXEC)
    stderr = os.dup(2)
    os.dup2(held, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        size = os.fstat(held).st_size
        rest = [line for line in os.pread(held, size, 0).splitlines(True) if not _GREETING.match(line)]
        if rest:
            os.write(2, b"".join(rest))
        os.close(held)
        os.close(stderr)


class _Shim:
    """The loaded library with its prototypes. ``CDLL`` releases the interpreter lock during every call."""

    def __init__(self, path: Path) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        try:
            with _without_greetings():
                # Global, so that libraries of custom ops loaded later find TensorFlow's symbols.
                self.library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise ExecutorError(f"{path} does not load: {one_line(str(error))}") from None
        reply, given = ctypes.POINTER(_Reply), ctypes.POINTER(_Given)
        prototypes = {
            "wt_open": (reply, [_Given, given, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)]),
            "wt_run": (
                reply,
                [ctypes.c_void_p, ctypes.c_size_t, given, given, ctypes.c_size_t, given, ctypes.c_int32],
            ),
            "wt_metrics": (reply, [_Given]),
            "wt_load_library": (reply, [ctypes.c_char_p]),
            "wt_version": (ctypes.c_char_p, []),
            "wt_quiet": (None, []),
            "wt_free": (None, [reply]),
            "wt_close": (None, [ctypes.c_void_p]),
        }
        for name, (result, arguments) in prototypes.items():
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments
        if os.environ["TF_CPP_MIN_LOG_LEVEL"] != "0":
            self.library.wt_quiet()

    def call(self, name: str, *arguments: object) -> tuple[RunResult, tuple[bytes, ...]]:
        """One call that returns a ``wt_reply``, copied into Python and freed."""
        pointer = getattr(self.library, name)(*arguments)
        try:
            reply = pointer.contents
            blobs = tuple(_text(reply.blobs[place]) for place in range(reply.count))
            bad = reply.bad_feed if reply.bad_feed >= 0 else None
            message = _text(reply.message).decode("utf-8", "replace")
            return RunResult(reply.code, message, blobs, reply.seconds, bad), blobs
        finally:
            self.library.wt_free(pointer)


class NativeExecutor:
    """See :class:`replay.executor.api.Executor`."""

    level: Level = "executor"
    note: str = ""

    def __init__(
        self, directory: str | os.PathLike[str], *, tags: Sequence[str], shim: Path, libraries: Sequence[str] = ()
    ) -> None:
        path = check_directory(directory)
        self._shim = _Shim(shim)
        for library in libraries:
            result, _ = self._shim.call("wt_load_library", os.fsencode(library))
            if result.code:
                raise ExecutorError(f"{library}: {one_line(result.message)}")
        self.tensorflow_version: str = self._shim.library.wt_version().decode()
        self._session = ctypes.c_void_p()
        encoded = [tag.encode() for tag in tags]
        loaded, blobs = self._shim.call(
            "wt_open", _given(os.fsencode(path)), _array(encoded), len(encoded), ctypes.byref(self._session)
        )
        if loaded.code:
            raise ExecutorError(f"{path}: {one_line(loaded.message)}")
        self.load_seconds: float = loaded.seconds
        self.signature_defs: Mapping[str, Signature] = MappingProxyType(
            {blobs[place].decode(): parse_signature(blobs[place + 1]) for place in range(0, len(blobs), 2)}
        )
        self._running = 0
        self._idle = threading.Condition()
        self._loaded_with = self.counter(GRAPH_BUILDS)

    def run(self, feeds: Sequence[tuple[str, bytes]], fetches: Sequence[str], *, values: bool = True) -> RunResult:
        names = _array([name.encode() for name, _ in feeds])
        protos = _array([proto for _, proto in feeds])
        wanted = _array([name.encode() for name in fetches])
        with self._idle:
            if not self._session:
                raise ExecutorError("the executor is closed")
            self._running += 1
        try:
            result, _ = self._shim.call(
                "wt_run", self._session, len(names), names, protos, len(wanted), wanted, int(values)
            )
            return result
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def metrics(self, only: str = "") -> list[tuple[str, str, int]]:
        """Integer metrics of the process as (name, ``label=value,...``, value); with ``only`` those of one name."""
        _, blobs = self._shim.call("wt_metrics", _given(only.encode()))
        points = (blob.decode("utf-8", "replace").split("\t") for blob in blobs)
        return [(point[0], point[1], int(point[-1])) for point in points]

    def counter(self, name: str) -> int:
        return sum(value for _, _, value in self.metrics(name))

    def builds(self) -> int:
        return self.counter(GRAPH_BUILDS) - self._loaded_with

    def close(self) -> None:
        with self._idle:
            session, self._session = self._session, ctypes.c_void_p()
            self._idle.wait_for(lambda: self._running == 0)
        if session:
            self._shim.library.wt_close(session)
