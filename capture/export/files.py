"""Files that appear whole or not at all: temporary file, fsync, check, rename, fsync of the directory."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

#: Captured requests may hold personal data: nobody else reads them unless the caller says so.
PRIVATE_MODE = 0o600


def write_atomically(
    path: Path, data: bytes, *, check: Callable[[bytes], None], mode: int = PRIVATE_MODE, keep_previous: bool = False
) -> None:
    """Write ``data`` to ``path``. ``check`` gets the bytes as read back from the disk and raises to stop before the
    rename. With ``keep_previous`` what was there stays as ``<path>.prev``. Raises OSError; a failure leaves what was
    there, and no temporary file."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        check(temporary.read_bytes())
        if keep_previous and path.exists():
            previous = path.with_name(path.name + ".prev")
            previous.unlink(missing_ok=True)
            os.link(path, previous)
        temporary.replace(path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
