"""A version of an object store on the local disk, to be run: one at a time, and gone afterwards."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from capture.errors import UserError
from replay.publishing.target import Found, Target

_PREFIX: Final = "warmtap-version-"
_LOCK: Final = "lock"
#: Of the disk's free bytes that much stays free: others write there, too.
RESERVE_BYTES: Final = 256 << 20


class Scratch:
    """At most one version on the disk: the last that was asked for, fetched anew when any of its files is another. It
    goes with :meth:`close`, and at the latest when the process ends."""

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._remove: Callable[[], object] = _nothing
        self._held: tuple[str, tuple[Found, ...]] = ("", ())

    def version(self, target: Target, begin: str, files: Sequence[Found]) -> Path:
        """The directory of these files, whose paths begin with ``begin``. Raises UserError where the disk is too small;
        OSError."""
        wanted = (begin, tuple(files))
        if self._directory is None or self._held != wanted:
            self.close()
            directory = self._made()
            _check_room(directory, sum(one.size for one in files))
            for one in files:
                path = directory / one.path.removeprefix(begin)
                path.parent.mkdir(parents=True, exist_ok=True)
                target.get(one.path, path)
            self._directory, self._held = directory, wanted
        return self._directory

    def _made(self) -> Path:
        remove_left_behind()
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self._remove = weakref.finalize(self, _remove, directory, lock)
        version = directory / "version"
        version.mkdir()
        return version

    def close(self) -> None:
        """Remove what is there."""
        self._directory, self._held = None, ("", ())
        self._remove()


def _nothing() -> None:
    """Nothing is there yet."""


def _remove(directory: Path, lock: int) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    os.close(lock)


def _check_room(directory: Path, size: int) -> None:
    free = shutil.disk_usage(directory).free
    if size > free - RESERVE_BYTES:
        raise UserError(
            f"{directory.parent.parent}: {free >> 20} MiB free, and the version has {size >> 20} MiB and wants"
            f" {RESERVE_BYTES >> 20} MiB to spare; set TMPDIR to a directory on a larger disk"
        )


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
