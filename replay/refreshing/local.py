"""Versions in directories of a local (POSIX) file system, as TF Serving polls them.

A staged version becomes visible by one rename of its directory: the server sees it with its warm-up file, or not yet.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from capture.errors import UserError
from capture.export.files import sync_directory, write_atomically
from capture.export.manifest import MANIFEST_SUFFIX, own_files
from capture.export.tfrecord import WARMUP_PATH, read_records
from replay.refreshing.place import PREVIOUS, WARMUP, Files, Version

#: A temporary file that is older belongs to a run that was killed: writing one takes seconds.
STALE_SECONDS: Final = 3600.0
SAVED_MODEL: Final = "saved_model.pb"


class LocalPlace:
    """``base`` is what the server polls; ``staging`` holds staged versions under their numbers, None for none.
    ``complete_when`` names the file that says that a staged version is complete."""

    def __init__(self, base: Path, staging: Path | None = None, complete_when: str = SAVED_MODEL) -> None:
        self.name = str(base)
        self._base = base
        self._staging = staging
        self._complete_when = complete_when

    def served(self) -> list[Version]:
        """Raises UserError where there is no such directory."""
        if not self._base.is_dir():
            raise UserError(f"{self._base}: no such directory; give the one that holds the version directories")
        return [_looked_at(self._base / name, False, SAVED_MODEL) for name in _names(self._base)]

    def staged(self) -> list[Version]:
        """Raises UserError where the directory is not there, or is another file system's."""
        if self._staging is None:
            return []
        if not self._staging.is_dir():
            raise UserError(f"{self._staging}: no such directory; create it: staged versions are looked for in it")
        if self._staging.stat().st_dev != self._base.stat().st_dev:
            raise UserError(
                f"{self._staging}: is not on the file system of {self._base}: a version cannot be renamed into it;"
                f" stage below {self._base}, under a name that is no number"
            )
        return [_looked_at(self._staging / name, True, self._complete_when) for name in _names(self._staging)]

    @contextmanager
    def model(self, version: Version) -> Iterator[Path]:
        """The directory itself."""
        yield self._directory(version)

    def tags(self, version: Version) -> dict[str, str]:
        directory = self._directory(version)
        found = {}
        for place, _, names in os.walk(directory):
            for name in names:
                path = Path(place) / name
                if (below := str(path.relative_to(directory))) not in WARMUP:
                    status = path.lstat()
                    found[below] = f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"
        return found

    def read(self, version: Version) -> Files:
        """The manifest that a kill left behind, too; other remains of one are removed."""
        file = self._directory(version) / WARMUP_PATH
        _remove_stale(file)
        manifest = file.with_name(file.name + MANIFEST_SUFFIX)
        manifests = [_read(manifest), _read(manifest.with_name(manifest.name + PREVIOUS))]
        return Files(_read(file), tuple(one for one in manifests if one is not None))

    def write(self, version: Version, warmup: bytes, manifest: bytes) -> None:
        """As readable as the model is: the server reads it as the user that reads the model."""
        directory = self._directory(version)
        path = directory / WARMUP_PATH
        mode = os.stat(directory / SAVED_MODEL).st_mode & 0o666
        if not path.parent.exists():
            path.parent.mkdir()
            path.parent.chmod(stat.S_IMODE(directory.stat().st_mode))
            sync_directory(directory)
        described = path.with_name(path.name + MANIFEST_SUFFIX)
        # The manifest first: a version is done once it has its file, and then nothing may be missing. One that a killed
        # run left does not replace the one of the file that is there.
        write_atomically(
            described, manifest, check=lambda _: None, mode=mode, keep_previous=is_of(_read(described), _read(path))
        )
        write_atomically(path, warmup, check=lambda data: _check(data), mode=mode, keep_previous=True)

    def promote(self, version: Version) -> None:
        """Raises UserError where the base has that version already."""
        assert self._staging is not None
        source, target = self._staging / version.name, self._base / version.name
        if target.exists():
            raise taken(target)
        try:
            source.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise taken(target) from None
            raise
        sync_directory(self._base)
        sync_directory(self._staging)

    def _directory(self, version: Version) -> Path:
        base = self._staging if version.staged else self._base
        assert base is not None
        return base / version.name


def taken(target: Path) -> UserError:
    """A staged version whose number is in use."""
    return UserError(f"{target}: is there already; stage it under another number, or remove the staged one")


def _names(directory: Path) -> list[str]:
    try:
        names = os.listdir(directory)
        # As the server reads names: digits, and only those of ASCII.
        found = [name for name in names if name.isascii() and name.isdigit() and (directory / name).is_dir()]
    except OSError as error:
        raise UserError(f"{directory}: {error.strerror}") from None
    return sorted(found, key=int)


def _looked_at(path: Path, staged: bool, complete_when: str) -> Version:
    if staged and path.is_symlink():
        # A relative one would lead elsewhere once it is moved, and what it leads to may be somebody else's.
        return Version(path.name, staged, fault=f"{path}: is a symbolic link; stage the directory itself")
    try:
        missing = next((name for name in (complete_when, SAVED_MODEL) if not _exists(path / name)), "")
        return Version(path.name, staged, missing, _exists(path / WARMUP_PATH))
    except OSError as error:
        return Version(path.name, staged, fault=f"{error.filename or path}: {error.strerror}")


def _exists(path: Path) -> bool:
    """Raises OSError where it cannot be told."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def is_of(manifest: bytes | None, file: bytes | None) -> bool:
    """Whether this manifest is this file's."""
    if manifest is None or file is None:
        return False
    return hashlib.sha256(file).hexdigest() in (own_files(manifest) or {}).values()


def _check(data: bytes) -> None:
    """Raises TFRecordError."""
    for _ in read_records(data):
        pass


def _remove_stale(path: Path) -> None:
    """Remove what killed runs left beside the warm-up file ``path``."""
    for temporary in path.parent.glob(f".{path.name}*.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - temporary.stat().st_mtime > STALE_SECONDS:
                temporary.unlink()
