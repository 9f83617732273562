"""Versions of an object store on the local disk, to be run: few at a time, and gone afterwards."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from capture.errors import UserError
from replay.publishing.target import Found, Target

_PREFIX: Final = "warmtap-version-"
_LOCK: Final = "lock"
#: Of the disk's free bytes that much stays free: others write there, too.
RESERVE_BYTES: Final = 256 << 20


#: Versions that are kept, the last ones: the job asks for all served versions again and again.
KEPT: Final = 3


class _Copy(NamedTuple):
    files: tuple[Found, ...]
    directory: Path
    remove: Callable[[], object]


class Scratch:
    """A few versions on the disk: the last that were asked for, each fetched anew when any of its files is another.
    All go when the process ends, at the latest."""

    def __init__(self) -> None:
        #: By the begin of their paths, the one that was asked for last at the end.
        self._copies: dict[str, _Copy] = {}

    def version(self, target: Target, begin: str, files: Sequence[Found]) -> Path:
        """The directory of these files, whose paths begin with ``begin``. Raises UserError where the disk is too small;
        OSError."""
        held = self._copies.pop(begin, None)
        if held is not None and held.files != tuple(files):
            held.remove()
            held = None
        if held is None:
            while len(self._copies) >= KEPT:
                self.forget(next(iter(self._copies)))
            held = self._fetched(target, begin, tuple(files))
        self._copies[begin] = held
        return held.directory

    def _fetched(self, target: Target, begin: str, files: tuple[Found, ...]) -> _Copy:
        remove_left_behind()
        size = sum(one.size for one in files)
        while not _has_room(size) and self._copies:
            self.forget(next(iter(self._copies)))
        if not _has_room(size):
            raise UserError(
                f"{tempfile.gettempdir()}: {_free() >> 20} MiB free, and the version has {size >> 20} MiB and wants"
                f" {RESERVE_BYTES >> 20} MiB to spare; set TMPDIR to a directory on a larger disk"
            )
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove = weakref.finalize(self, _remove, directory, lock)
        try:
            for one in files:
                path = directory / "version" / one.path.removeprefix(begin)
                path.parent.mkdir(parents=True, exist_ok=True)
                target.get(one.path, path)
        except BaseException:
            remove()
            raise
        return _Copy(files, directory / "version", remove)

    def forget(self, begin: str) -> None:
        """Remove a version, if it is there."""
        if (copy := self._copies.pop(begin, None)) is not None:
            copy.remove()


def _remove(directory: Path, lock: int) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    os.close(lock)


def _free() -> int:
    return shutil.disk_usage(tempfile.gettempdir()).free


def _has_room(size: int) -> bool:
    return size <= _free() - RESERVE_BYTES


def remove_left_behind() -> None:
    """Remove what killed runs left: nobody holds its lock any more."""
    for directory in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        with suppress(OSError):
            descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory)
            finally:
                os.close(descriptor)
