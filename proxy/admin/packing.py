"""Files as a tar, a piece at a time: an export may be as large as the store, and the supervisor shares its container's
memory with the relay."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: Bytes of a piece at most.
PIECE: Final = 256 << 10


def packed(directory: Path) -> Iterator[bytes]:
    """The regular files below ``directory``, by name, for their owner alone. Raises OSError."""
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        entry = tarfile.TarInfo(str(path.relative_to(directory)))
        found = path.stat()
        entry.size, entry.mtime, entry.mode = found.st_size, int(found.st_mtime), 0o600
        yield entry.tobuf()
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
        if filling := -entry.size % tarfile.BLOCKSIZE:
            yield bytes(filling)
    yield bytes(2 * tarfile.BLOCKSIZE)
