"""What the next capture worker needs to read on, in memory that outlives the worker.

An anonymous file (``memfd_create``) belongs to one tap. The supervisor creates it with the tap's socket, keeps both
open, and hands both to each worker in turn. It dies with the supervisor; so do the flows.

The worker appends one record for each piece of the tap that it has worked off: where it stands in the stream, and what
changed in the flows that the piece touched. Only then does it take that piece out of the socket. So a worker that is
killed leaves each byte in one of two places: its effect in here, or itself in the socket.

Layout, unsigned 64-bit words, little endian::

    0   magic
    1   end of the records << 2 | half << 1 | taking    one store switches from the state before to the state after
    2   pieces begun          3   pieces recorded       a worker that dies between the two may have died of the piece
    4   a worker has begun to use this

and from :data:`_HEADER` on two halves of :data:`HALF_BYTES`. Records (u32 length, bytes) are appended to one half; when
that has grown to a multiple of what a whole record takes, one is written to the other half, and the halves change.
Pages that hold nothing any more go back to the kernel.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from typing import Final

_MAGIC: Final = 0x31_70_61_74_6D_72_61_77  # "warmtap1"
_HEADER: Final = mmap.PAGESIZE
#: Bytes. A flow takes some 150, with two header tables some 1,500: room for 10,000 gRPC channels, 100,000 others.
HALF_BYTES: Final = 16 << 20
#: A whole record is due when the records are longer than this, and than so many times the last whole one.
REWRITE_BYTES: Final = 1 << 20
REWRITE_FACTOR: Final = 4
_LENGTH: Final = struct.Struct("<I")
_MAGIC_WORD, _POSITION, _BEGUN, _RECORDED, _USED = range(5)


class StateError(ValueError):
    """The descriptor holds no state of this version."""


class FlowState:
    """One tap's. Written by one process at a time, the worker."""

    def __init__(self, fd: int) -> None:
        """Map an existing descriptor, which stays the caller's. Raises StateError."""
        size = os.fstat(fd).st_size
        if size != _HEADER + 2 * HALF_BYTES:
            raise StateError(f"flow state: descriptor {fd} holds {size} bytes, not {_HEADER + 2 * HALF_BYTES}")
        self.fd = fd
        self._map = mmap.mmap(fd, size)
        self._view = memoryview(self._map)
        self._words = self._view[:_HEADER].cast("Q")
        if self._words[_MAGIC_WORD] != _MAGIC:
            raise StateError("flow state: of another version")
        position = self._words[_POSITION]
        self._end, self._half = position >> 2, position >> 1 & 1
        self._rewrite_at = max(REWRITE_BYTES, self._end)

    @classmethod
    def create(cls) -> FlowState:
        """An empty one; the descriptor is inheritable only through ``pass_fds``."""
        fd = os.memfd_create("warmtap-flows", os.MFD_CLOEXEC)
        os.ftruncate(fd, _HEADER + 2 * HALF_BYTES)
        os.pwrite(fd, _MAGIC.to_bytes(8, "little"), 0)
        return cls(fd)

    def close(self) -> None:
        """Unmap; the descriptor stays open."""
        self._words.release()
        self._view.release()
        self._map.close()

    @property
    def taking(self) -> bool:
        """The piece of the last record was being taken out of the socket."""
        return bool(self._words[_POSITION] & 1)

    @property
    def interrupted(self) -> bool:
        """A piece was begun and not recorded."""
        return bool(self._words[_BEGUN] != self._words[_RECORDED])

    @property
    def used(self) -> bool:
        """A worker reads by the rules of this file."""
        return bool(self._words[_USED])

    @property
    def recorded(self) -> int:
        """Pieces recorded so far."""
        return int(self._words[_RECORDED])

    @property
    def used_bytes(self) -> int:
        """Of the half in use."""
        return self._end

    @property
    def full(self) -> bool:
        """A whole record is due."""
        return self._end >= self._rewrite_at

    def room(self, whole: bool) -> int:
        """Bytes that a record may take."""
        return HALF_BYTES - _LENGTH.size - (0 if whole else self._end)

    def records(self) -> list[bytes]:
        """From the last whole one on. Raises StateError where they are not of a piece."""
        start = _HEADER + self._half * HALF_BYTES
        at, end, found = start, start + self._end, []
        while at < end:
            (size,) = _LENGTH.unpack_from(self._view, at)
            at += _LENGTH.size
            if at + size > end:
                raise StateError("flow state: broken")
            found.append(bytes(self._view[at : at + size]))
            at += size
        return found

    def resume(self) -> None:
        """A new worker begins: whatever the one before began is begun anew."""
        self._words[_BEGUN] = self._words[_RECORDED]
        self._words[_USED] = 1

    def begin(self) -> None:
        """The next piece is about to be worked off."""
        self._words[_BEGUN] += 1

    def record(self, record: bytes, *, whole: bool) -> bool:
        """The piece that was begun is worked off; until :meth:`taken`, :attr:`taking` is True. ``whole``: the records
        before are not needed any more. False, and nothing is done, where there is no room."""
        half, end = (1 - self._half, 0) if whole else (self._half, self._end)
        after = end + _LENGTH.size + len(record)
        if after > HALF_BYTES:
            return False
        at = _HEADER + half * HALF_BYTES + end
        _LENGTH.pack_into(self._view, at, len(record))
        self._view[at + _LENGTH.size : at + _LENGTH.size + len(record)] = record
        # Aligned, of eight bytes: done or not done, never half.
        self._words[_POSITION] = after << 2 | half << 1 | 1
        self._words[_RECORDED] = self._words[_BEGUN]
        if whole:
            with contextlib.suppress(OSError):  # a kernel that cannot: the pages stay
                self._map.madvise(mmap.MADV_REMOVE, _HEADER + self._half * HALF_BYTES, HALF_BYTES)
            self._rewrite_at = max(REWRITE_BYTES, REWRITE_FACTOR * after)
        self._half, self._end = half, after
        return True

    def taken(self) -> None:
        """The piece of the last record is out of the socket."""
        self._words[_POSITION] = self._end << 2 | self._half << 1
