"""What HTTP itself says of a body's coding: Content-Encoding (RFC 9110 §8.4)."""

from __future__ import annotations

from typing import Final

from capture.dialects.base import Opaque, Unreadable
from capture.dialects.eas_packed import OVER_THE_BOUND
from capture.wire.grpc import DecompressError, decompress

IDENTITY: Final = "identity"
#: Codings that are undone; ``x-gzip`` is gzip (§8.4.1.3).
_UNDONE: Final = {"gzip": b"gzip", "x-gzip": b"gzip", "deflate": b"deflate"}
#: Others that are counted by their name: those that are registered (IANA, HTTP Content Coding Registry), and what
#: clients of EAS compress with. Any other name is the client's own text.
_NAMED: Final = frozenset({"br", "compress", "x-compress", "zstd", "dcb", "dcz", "zlib", "snappy", "lz4"})


def undone(coding: str, sent: bytes, max_bytes: int) -> bytes:
    """The body that was coded so: ``sent`` itself for ``identity``, else at most ``max_bytes``. Raises Unreadable for
    what is not so coded, Opaque for other codings and beyond the bound."""
    names = [name for word in coding.lower().split(",") if (name := word.strip()) not in ("", IDENTITY)]
    if not names:
        return sent
    if len(names) > 1:
        raise Opaque("content-encoding: several")
    (name,) = names
    if name not in _UNDONE:
        raise Opaque(f"content-encoding {name}" if name in _NAMED else "content-encoding: another")
    try:
        return decompress(_UNDONE[name], sent, max_bytes)
    except DecompressError as error:
        kind = Opaque if str(error) == OVER_THE_BOUND else Unreadable
        raise kind(f"content-encoding {name}: {error}") from None
