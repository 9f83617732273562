"""What supervisor and capture worker tell each other of model versions: anonymous memory with a page for each.

The supervisor asks model servers for their status, the worker knows which models are in the traffic and waits for what
the polls say; both go on whether the other one answers, hangs or dies. So neither sends the other anything: each writes
its whole knowledge to a page of its own whenever that changes, and looks at the other's when it likes. A page is one
message with its number, length and checksum; one that is being written is read the next time. The memory outlives a
worker, whose successor finds there what was asked for. A worker in another container gets the descriptor as it gets the
counters'.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from typing import Final, TypeVar

import msgspec

from capture.status_messages import Answers, Asks

#: Bytes of the two pages. Memory is taken for what was written only.
ASKS_BYTES: Final = 1 << 20
ANSWERS_BYTES: Final = 8 << 20
T = TypeVar("T")
_HEAD: Final = struct.Struct("<QII")


class _Page:
    """One writer, any readers."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._number = _HEAD.unpack_from(memory)[0]
        self._seen = 0

    @property
    def room(self) -> int:
        """Bytes of a message."""
        return len(self._memory) - _HEAD.size

    def write(self, message: bytes) -> None:
        """Raises ValueError where there is no room."""
        if len(message) > self.room:
            raise ValueError(f"{len(message)} bytes on a page for {self.room}")
        self._number += 1
        self._memory[_HEAD.size : _HEAD.size + len(message)] = message
        _HEAD.pack_into(self._memory, 0, self._number, len(message), zlib.crc32(message))

    def read(self) -> bytes | None:
        """The message; None where it was read before, there is none, or it is being written."""
        number, size, checksum = _HEAD.unpack_from(self._memory)
        if number == self._seen or size > self.room:
            return None
        message = bytes(self._memory[_HEAD.size : _HEAD.size + size])
        if zlib.crc32(message) != checksum:
            return None
        self._seen = number
        return message


class StatusBoard:
    """Both pages, in one process."""

    def __init__(self, fd: int) -> None:
        """Map an existing descriptor. Raises ValueError if it holds no board of this version."""
        if os.fstat(fd).st_size != ASKS_BYTES + ANSWERS_BYTES:
            raise ValueError(f"status: descriptor {fd} holds no board of this version")
        self.fd = fd
        pages = memoryview(mmap.mmap(fd, ASKS_BYTES + ANSWERS_BYTES))
        self._asks = _Page(pages[:ASKS_BYTES])
        self._answers = _Page(pages[ASKS_BYTES:])

    @classmethod
    def create(cls) -> StatusBoard:
        """An empty one; the descriptor is inheritable only through ``pass_fds``."""
        fd = os.memfd_create("warmtap-status", os.MFD_CLOEXEC)
        os.ftruncate(fd, ASKS_BYTES + ANSWERS_BYTES)
        return cls(fd)

    def ask(self, asks: Asks) -> None:
        """Write the worker's page. Raises ValueError where there is no room."""
        self._asks.write(msgspec.msgpack.encode(asks))

    def asked(self) -> Asks | None:
        """The worker's page; None where there is nothing new."""
        return _decoded(self._asks.read(), Asks)

    def answer(self, answers: Answers) -> None:
        """Write the supervisor's page; metadata for which there is no room comes another time."""
        room = self._answers.room - len(msgspec.msgpack.encode(Answers(answers.said))) - 1024
        fitting = []
        for one in answers.metadata:
            room -= len(msgspec.msgpack.encode(one))
            if room >= 0:
                fitting.append(one)
        self._answers.write(msgspec.msgpack.encode(Answers(answers.said, tuple(fitting))))

    def answered(self) -> Answers | None:
        """The supervisor's page; None where there is nothing new."""
        return _decoded(self._answers.read(), Answers)


def _decoded(message: bytes | None, kind: type[T]) -> T | None:
    """None for what is no such message: the other process may be of another version."""
    if message is None:
        return None
    try:
        return msgspec.msgpack.decode(message, type=kind)
    except msgspec.MsgspecError:
        return None
