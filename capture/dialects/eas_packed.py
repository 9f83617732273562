"""Bodies that EAS clients compress without saying so.

A service's ``metadata.rpc.decompressor`` names one of zlib, gzip, snappy, zstd and lz4, and the SDKs send the
compressed bytes with no Content-Encoding (eas-java-sdk README, "SetCompressType"; eas-golang-sdk; Python's
``TorchRequest(flag=True)``: raw snappy). So a coding is found by its first bytes and believed only when all of the body
unpacks and is a message of the dialect. Raw LZ4 blocks (Java's ``LZ4``, as opposed to ``LZ4Frame``) have neither mark
nor length nor checksum: they cannot be told from other bytes, and are counted as bodies that cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Final

from capture.schema.wire import WireError, read_varint
from capture.wire.grpc import DecompressError, decompress

if TYPE_CHECKING:
    from types import ModuleType

#: The first bytes of what each coding writes.
_MAGIC: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x78\x01", "zlib"),
    (b"\x78\x5e", "zlib"),
    (b"\x78\x9c", "zlib"),
    (b"\x78\xda", "zlib"),
)
SNAPPY: Final = "snappy"
#: How much more than its own bytes raw snappy can stand for: a copy of up to 64 bytes takes three
#: (google/snappy format_description.txt, §2.2.2).
_SNAPPY_RATIO: Final = 22
#: The room that unpacking begins with, and by what it grows while the data needs more: what was unpacked in vain is at
#: most a seventh of what is unpacked in the end.
_FIRST_BYTES: Final = 64 << 10
_GROWTH: Final = 8
OVER_THE_BOUND: Final = "over the bound"


def codings(data: bytes) -> tuple[str, ...]:
    """What this may be compressed with, the most telling first; empty for most bodies that are not."""
    found = tuple(name for magic, name in _MAGIC if data.startswith(magic))
    return (*found, SNAPPY) if _snappy_bytes(data) else found


def unpack(coding: str, data: bytes, max_bytes: int) -> bytes:
    """All of ``data``, unpacked. Raises DecompressError for broken or truncated data, for bytes after the end, and
    without unpacking more than ``max_bytes`` where it would be more."""
    if coding == "gzip":
        return decompress(b"gzip", data, max_bytes)
    if coding == "zlib":
        return decompress(b"deflate", data, max_bytes)
    if coding == SNAPPY:
        # Its length stands in front, and the library holds the rest to it.
        size = _snappy_bytes(data)
        if size > max_bytes:
            raise DecompressError(OVER_THE_BOUND)
        return _unpacked(_library().snappy.decompress_raw_into, data, bytearray(size))
    into = _library().zstd.decompress_into if coding == "zstd" else _library().lz4.decompress_into
    size = min(max_bytes, max(_FIRST_BYTES, 4 * len(data)))
    while True:
        try:
            return _unpacked(into, data, bytearray(size))
        except _Full:
            if size == max_bytes:
                raise DecompressError(OVER_THE_BOUND) from None
            size = min(max_bytes, _GROWTH * size)


class _Full(Exception):
    """There is more than room."""


def _unpacked(into: Callable[[bytes, bytearray], int], data: bytes, room: bytearray) -> bytes:
    try:
        size = into(data, room)
    except _library().DecompressionError as error:
        if "whole buffer" in str(error):
            raise _Full from None
        raise DecompressError("broken data") from None
    del room[size:]
    return bytes(room)


def _snappy_bytes(data: bytes) -> int:
    """How long this is unpacked, if it is raw snappy; 0 where it cannot be: the first element behind the length must be
    a literal, there is nothing yet to copy from."""
    try:
        size, at = read_varint(data, 0, min(len(data), 5))
    except WireError:
        return 0
    return size if at < len(data) and not data[at] & 3 and size <= _SNAPPY_RATIO * len(data) else 0


@cache
def _library() -> ModuleType:
    """Loaded when first needed: most services compress nothing."""
    import cramjam

    return cramjam
