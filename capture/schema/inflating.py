"""A response that is compressed, looked through while it passes."""

from __future__ import annotations

import zlib
from typing import Final

from capture.schema.wire import FieldProbe

#: Unpacked at a time; nothing of it is kept.
_STEP_BYTES: Final = 64 << 10
#: zlib's word for "a gzip header".
_GZIP_WBITS: Final = 16 + zlib.MAX_WBITS


class GzipProbe:
    """Feeds a probe with what gzip unpacks to, as it comes, ``max_bytes`` at most: then it gives up."""

    __slots__ = ("_inflater", "_left", "_probe", "failed")

    def __init__(self, probe: FieldProbe, max_bytes: int) -> None:
        self._probe = probe
        self._left = max_bytes
        self._inflater = zlib.decompressobj(_GZIP_WBITS)
        self.failed = False

    def feed(self, data: bytes) -> None:
        """The next piece of the compressed message."""
        while data and not self.failed:
            try:
                part = self._inflater.decompress(data, _STEP_BYTES)
            except zlib.error:
                self.failed = True
                return
            self._left -= len(part)
            self._probe.feed(part)
            data = self._inflater.unconsumed_tail
            # Another member behind the first: nobody was seen to send that.
            self.failed = self._left < 0 or self._probe.failed or bool(self._inflater.unused_data)
            if self._inflater.eof:
                return

    @property
    def value(self) -> bytes | None:
        """As :attr:`capture.schema.wire.FieldProbe.value`."""
        return self._probe.value if self.whole else None

    @property
    def whole(self) -> bool:
        """Whether the message was fed to its end, and unpacked to its end."""
        return not self.failed and self._inflater.eof and self._probe.whole
