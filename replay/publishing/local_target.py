"""A local directory as a place of files."""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from capture.errors import UserError
from capture.export.files import sync_directory, write_atomically
from replay.publishing.target import Found

#: As a trainer's files are made, less what the umask takes: the model server may be another user.
_MODE: Final = 0o666


#: Names of temporary files, as :mod:`capture.export.files` makes them.
_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")


class LocalTarget:
    """A directory. Files appear by rename; temporary files that a kill left behind are none of its files, and go when
    their file is written or removed again."""

    def __init__(self, base: Path) -> None:
        self.url = str(base)
        self._base = base

    def local(self, path: str) -> Path:
        """Where a file is."""
        return self._base / path

    def children(self, below: str = "") -> list[str]:
        directory = self._base / below
        try:
            return sorted(entry.name for entry in os.scandir(directory) if entry.is_dir())
        except FileNotFoundError:
            return []

    def files(self, below: str) -> list[Found]:
        return sorted(self._walk(self._base / below), key=lambda one: one.path)

    def _walk(self, directory: Path) -> Iterator[Found]:
        for place, _, names in os.walk(directory):
            for name in names:
                if _TEMPORARY.fullmatch(name):
                    continue
                if found := self.find(str((Path(place) / name).relative_to(self._base))):
                    yield found

    def find(self, path: str) -> Found | None:
        try:
            status = (self._base / path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISDIR(status.st_mode):
            return None
        return Found(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}")

    def read(self, path: str) -> bytes | None:
        try:
            return (self._base / path).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, path: str, data: bytes) -> None:
        target = self._ready(path)

        def check(read: bytes) -> None:
            if read != data:
                raise UserError(f"{target}: does not read back as written; nothing was replaced")

        write_atomically(target, data, check=check, mode=_MODE & ~_umask())

    def _ready(self, path: str) -> Path:
        """Where a file is to be written."""
        target = self._base / path
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear(target)
        return target

    def put(self, path: str, source: Path) -> Found:
        target = self._ready(path)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
        try:
            shutil.copyfile(source, temporary)
            descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if temporary.stat().st_size != source.stat().st_size:
                raise UserError(f"{target}: {source} changed while it was copied; try again")
            temporary.replace(target)
            sync_directory(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
        found = self.find(path)
        if found is None:
            raise UserError(f"{target}: was removed while it was written; try again")
        return found

    def get(self, path: str, destination: Path) -> None:
        shutil.copyfile(self._base / path, destination)

    def copy(self, source: str, destination: str) -> Found:
        return self.put(destination, self._base / source)

    def remove(self, path: str) -> None:
        target = self._base / path
        target.unlink(missing_ok=True)
        _clear(target)
        # Directories that are empty now are nothing in an object store, so they are nothing here.
        for parent in target.parents:
            if parent == self._base or not parent.is_relative_to(self._base):
                return
            try:
                parent.rmdir()
            except OSError:
                return


def _clear(target: Path) -> None:
    """Remove what killed runs left beside a file."""
    for temporary in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        if _TEMPORARY.fullmatch(temporary.name):
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    """The process's; there is no way to read it alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
