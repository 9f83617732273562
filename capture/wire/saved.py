"""What an observer needs to read on in another process, as plain values (msgspec structs, encoded by position).

Exchanges that are open are not part of it, nor a header block that is not complete: their bytes may be secret. Of the
header tables only values are kept that somebody reads; any other is replaced by as many asterisks, since its length
decides what the table forgets.
"""

from __future__ import annotations

from typing import Final

import msgspec

#: Headers whose values are kept: what routes, frames and judges an exchange. Never what a client proves itself with.
KEPT_VALUES: Final = frozenset(
    b":method :scheme :path :authority :status host content-type content-length content-encoding transfer-encoding te "
    b"grpc-encoding grpc-accept-encoding grpc-status grpc-message grpc-timeout accept-encoding user-agent".split()
)
_REDACTED: Final = b"*"
#: What is known of a table's entry.
DOUBTFUL: Final = 0
MOVED: Final = 1
CERTAIN: Final = 2


def kept(name: bytes, value: bytes) -> bytes:
    """The value as it may be kept: itself, or a text of the same length. A path's query may hold a token."""
    if name == b":path":
        path, mark, query = value.partition(b"?")
        return path + mark + _REDACTED * len(query)
    return value if name in KEPT_VALUES else _REDACTED * len(value)


class SavedTable(msgspec.Struct, frozen=True, array_like=True):
    """An HPACK table, or what was inserted since the last one was saved (``whole`` is False). ``entries``: newest
    first; name, value, and one of ``CERTAIN``, ``MOVED`` (right, but its place is not certain) and ``DOUBTFUL`` (its
    name may be another's, so the value may be a secret)."""

    whole: bool
    limit: int
    complete: bool
    entries: list[tuple[bytes, bytes, int]]


class SavedDirection(msgspec.Struct, frozen=True, array_like=True):
    """One direction of an HTTP/2 flow. ``cut``: a header block has begun whose bytes are not kept; ``open_block``: it
    will be continued. ``table`` is None where it did not change."""

    state: int
    kind: int
    flags: int
    stream: int
    left: int
    padding: int
    buf: bytes
    max_frame: int
    offset: int
    realignments: int
    gapped: bool
    hunting: bool
    closed: bool
    cut: bool
    open_block: bool
    table: SavedTable | None


class SavedHttp2(msgspec.Struct, frozen=True, array_like=True):
    """An HTTP/2 flow."""

    dead: bool
    highest: int
    mentioned: int
    joined: bool
    count_missed: bool
    unread: int
    client: SavedDirection
    server: SavedDirection


class SavedHttp1(msgspec.Struct, frozen=True, array_like=True):
    """An HTTP/1 flow. ``between``: no message is open in either direction."""

    dead: bool
    between: bool
    pipelined: bool


class SavedFlow(msgspec.Struct, frozen=True, array_like=True):
    """A flow. ``protocol`` is empty while undecided; ``first`` and ``early`` are what client and server said so far.
    ``joined``: it is not known where in the flow this is."""

    protocol: str
    dead: bool = False
    joined: bool = False
    first: bytes = b""
    early: bytes = b""
    http1: SavedHttp1 | None = None
    http2: SavedHttp2 | None = None
