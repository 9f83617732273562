"""When each signature was last seen, for longer than the store remembers: a file's record is not retired because the
store's retention came first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from capture.export.files import write_atomically
from capture.store.base import StoredSignature

NAME: Final = "ages.json"
#: Written down again when a signature was seen so much later, in seconds: a pass a minute writes nothing most times.
COARSE: Final = 3600.0


class Ages:
    """By digest, seconds since the epoch; kept in a directory."""

    def __init__(self, state: Path) -> None:
        self._path = state / NAME

    def known(self) -> dict[str, float]:
        """What was written down; nothing where it cannot be read as such. Raises OSError."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, float])
        except (FileNotFoundError, msgspec.MsgspecError):
            return {}

    def update(self, rows: Iterable[StoredSignature], forget_before: float) -> Mapping[str, float]:
        """Add what the store knows now; what was not seen since ``forget_before`` is dropped. Raises OSError."""
        before = self.known()
        now = dict(before)
        for row in rows:
            now[row.key.digest] = max(row.last_seen, now.get(row.key.digest, 0.0))
        kept = {digest: seen for digest, seen in now.items() if seen >= forget_before}
        if kept.keys() != before.keys() or any(seen - before[digest] > COARSE for digest, seen in kept.items()):
            write_atomically(self._path, msgspec.json.encode(kept), check=lambda _: None)
        return now
