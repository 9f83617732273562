"""The tap: how the relay hands a second reference of what it copies to the capture worker, and how the worker reads it.

One stream socket carries frames. A frame is :data:`HEADER` (little endian: kind u8, 3 bytes 0, payload length u32,
flow id u64, offset u64) and its payload::

    HELLO       magic, version u32                 first frame on each socket, flow 0
    TIME        monotonic ns u64, wall ns u64      begins each batch, flow 0
    LOST        flows u64, client bytes u64,       flows that ended without one frame to this worker, and
                server bytes u64                   what they carried, since the last LOST; flow 0
    OPEN        JSON of :class:`FlowOpen`          before any other frame of a flow
    CLIENT      bytes                              offset = bytes of that direction before this payload
    SERVER      bytes                              likewise
    GAP         lost client bytes u64,             bytes missing between the last frame of this flow and the next
                lost server bytes u64
    EOF_CLIENT  empty                              offset = bytes of that direction in all
    EOF_SERVER  empty                              likewise
    CLOSED      reason, UTF-8                      the last frame of a flow; see counters.FLOW_END_REASONS

Bounded and lossy by design; a loss is always announced. With the offsets of OPEN as the start, a data frame's offset
equals start + data + gaps of its direction: a reader may insist on it.

The reader counts the frames it hands out in shared memory; :mod:`capture.tap_writer` says why.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

import msgspec

from capture.counters import SLOT

HELLO: Final = 1
TIME: Final = 2
OPEN: Final = 3
CLIENT: Final = 4
SERVER: Final = 5
EOF_CLIENT: Final = 6
EOF_SERVER: Final = 7
CLOSED: Final = 8
GAP: Final = 9
LOST: Final = 10

HEADER: Final = struct.Struct("<B3xIQQ")
HELLO_PAYLOAD: Final = struct.Struct("<8sI")
TIME_PAYLOAD: Final = struct.Struct("<QQ")
GAP_PAYLOAD: Final = struct.Struct("<QQ")
LOST_PAYLOAD: Final = struct.Struct("<QQQ")
MAGIC: Final = b"warmtap\n"
VERSION: Final = 1

#: Bytes. uvloop reads at most 256,000 at once, asyncio 262,144; a larger chunk is cut into several frames.
MAX_PAYLOAD: Final = 1 << 20
#: Length of the payload where it is fixed.
_FIXED: Final = {HELLO: HELLO_PAYLOAD.size, TIME: 16, GAP: 16, LOST: 24, EOF_CLIENT: 0, EOF_SERVER: 0}

_READ_FRAMES: Final = SLOT["tap_frames"]
_READ_CLIENT: Final = SLOT["tap_client_bytes"]
_READ_SERVER: Final = SLOT["tap_server_bytes"]


class TapError(ValueError):
    """The stream is not a tap of this version, or its framing is broken. Nothing after it can be read."""


class FlowOpen(msgspec.Struct, frozen=True, omit_defaults=True):
    """Payload of OPEN. ``listener`` is the place in the list of listeners, ``peer`` the client as ``host:port``.

    ``client_start`` and ``server_start`` are the bytes that passed before this worker's time, zero for a new flow: a
    worker that was restarted meets flows in the middle. What no worker saw for certain follows as a GAP.
    """

    listener: int
    peer: str
    tls: bool = False
    alpn: str = ""
    client_start: int = 0
    server_start: int = 0


Frame = tuple[int, int, int, bytes]


def check_frame(kind: int, size: int, greeted: bool) -> None:
    """Raises TapError for a frame that cannot be, or not here."""
    if not HELLO <= kind <= LOST or size > MAX_PAYLOAD or size != _FIXED.get(kind, size):
        raise TapError(f"tap: frame of kind {kind} and {size} bytes")
    if greeted == (kind == HELLO):
        raise TapError(f"tap: frame of kind {kind} {'after' if greeted else 'before'} the greeting")


def check_greeting(payload: bytes) -> None:
    """Raises TapError for another version's."""
    if payload != HELLO_PAYLOAD.pack(MAGIC, VERSION):
        raise TapError(f"tap: greeting {payload!r}; relay and worker are of different versions")


class TapReader:
    """The worker's end."""

    def __init__(self, sock: socket.socket, slots: memoryview | None = None) -> None:
        """``slots`` is :attr:`capture.counters.Counters.slots`: where frames and bytes are acknowledged. Without it
        the relay takes everything for unread when this process ends."""
        self._sock = sock
        self._slots = slots
        # Two frames of the largest size: the rest of one is moved to the front at most once per megabyte received.
        self._buffer = bytearray(2 * (HEADER.size + MAX_PAYLOAD))
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._greeted = False

    def read(self) -> list[Frame] | None:
        """One ``recv``, and every frame that is now complete as (kind, flow, offset, payload); None at EOF.

        What is returned counts as read; if the process is killed before, it counts as lost. May
        return an empty list. A frame that EOF cut short (the relay was killed) is dropped. Raises TapError, and
        BlockingIOError or TimeoutError if the socket is set to.
        """
        view = self._view
        if len(view) - self._end < HEADER.size + MAX_PAYLOAD:
            rest = self._end - self._start
            view[:rest] = view[self._start : self._end]
            self._start, self._end = 0, rest
        received = self._sock.recv_into(view[self._end :])
        if not received:
            return None
        self._end += received
        frames: list[Frame] = []
        client = server = 0
        start, end = self._start, self._end
        while end - start >= HEADER.size:
            kind, size, flow, offset = HEADER.unpack_from(self._buffer, start)
            check_frame(kind, size, self._greeted)
            body = start + HEADER.size
            if body + size > end:
                break
            payload = bytes(view[body : body + size])
            if kind == CLIENT:
                client += size
            elif kind == SERVER:
                server += size
            elif kind == HELLO:
                check_greeting(payload)
                self._greeted = True
            frames.append((kind, flow, offset, payload))
            start = body + size
        self._start, self._end = (start, end) if start != end else (0, 0)
        if self._slots is not None:
            self._slots[_READ_CLIENT] += client
            self._slots[_READ_SERVER] += server
            self._slots[_READ_FRAMES] += len(frames)
        return frames
