"""The worker's end of a tap that outlives the worker: killed at any instant, it leaves its successor nothing to guess.

A piece of the stream is looked at (MSG_PEEK), worked off, recorded with its effects in :mod:`capture.flow_state`, and
only then taken out of the socket. Whether a worker that died had taken it the kernel knows: SO_PEEK_OFF counts what was
looked at and not taken. It is the socket's, so it is there for the next worker.

A piece is never the whole stream: of a data frame that has not arrived in full the part that is there is handed out,
with its offset; of any other frame the part is recorded.
"""

from __future__ import annotations

import socket
from typing import Final

import msgspec

from capture.counters import SLOT
from capture.flow_saves import FlowSave
from capture.flow_state import FlowState, StateError
from capture.pipeline import Pipeline
from capture.tap import CLIENT, HEADER, HELLO, MAX_PAYLOAD, SERVER, Frame, TapError, check_frame, check_greeting

#: <asm-generic/socket.h>; Linux 3.4, for stream sockets 4.1.
SO_PEEK_OFF: Final = 42
#: Bytes of one piece, and of one read to take it out.
PIECE_BYTES: Final = 1 << 20
TAKE_BYTES: Final = 256 << 10

_READ: Final = tuple(SLOT[name] for name in ("tap_frames", "tap_client_bytes", "tap_server_bytes"))


def can_hold(sock: socket.socket) -> bool:
    """Whether the kernel counts what was looked at (not every sandbox does)."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        return sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) == 0
    except OSError:
        return False


class _Place(msgspec.Struct, array_like=True):
    """Where in the stream. ``rest``: the beginning of a frame; ``left``: bytes to come of an open data frame."""

    greeted: bool = False
    rest: bytes = b""
    kind: int = 0
    flow: int = 0
    offset: int = 0
    left: int = 0


class _Record(msgspec.Struct, array_like=True):
    place: _Place
    #: The counters of frames and bytes read.
    read: tuple[int, int, int]
    now: float
    monotonic: float
    flows: list[FlowSave]


class HeldTap:
    """Reads like :class:`capture.tap.TapReader`; what was read is acknowledged by :meth:`commit`."""

    def __init__(self, sock: socket.socket, state: FlowState, slots: memoryview) -> None:
        """``slots`` is :attr:`capture.counters.Counters.slots`."""
        self._sock = sock
        self._state = state
        self._slots = slots
        self._buffer = bytearray(HEADER.size + MAX_PAYLOAD + PIECE_BYTES)
        self._view = memoryview(self._buffer)
        self._scratch = memoryview(bytearray(TAKE_BYTES))
        self._place = _Place()
        self._peeked = 0
        self._read = [0, 0, 0]
        self._counts: dict[str, int] = {}
        self._encode = msgspec.msgpack.Encoder().encode

    def resume(self, pipeline: Pipeline) -> None:
        """Read on where the worker before was. Raises StateError and OSError."""
        saves: list[FlowSave] = []
        now = monotonic = 0.0
        decoder = msgspec.msgpack.Decoder(_Record)
        try:
            for raw in self._state.records():
                record = decoder.decode(raw)
                saves += record.flows
                self._place, now, monotonic = record.place, record.now, record.monotonic
                for slot, value in zip(_READ, record.read, strict=True):
                    self._slots[slot] = max(self._slots[slot], value)
        except msgspec.MsgspecError as error:
            raise StateError(f"flow state: {error}") from None
        if self._state.taking:
            # Since the record nothing else was looked at: what is counted is what the last piece has left.
            self._take(self._sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF))
        self._sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        self._state.resume()
        if self._state.recorded:
            pipeline.restore(saves, now, monotonic)
            # At once, or the next worker would count again what this one lost.
            self.commit(pipeline, whole=True)

    def count(self, name: str, n: int = 1) -> None:
        """Add to a counter when the piece is recorded: a piece that is read anew must not count twice."""
        self._counts[name] = self._counts.get(name, 0) + n

    def read(self) -> list[Frame] | None:
        """One piece, and what it holds as (kind, flow, offset, payload); None at EOF. A data frame may come in parts.
        Raises TapError. :meth:`commit` must follow."""
        place, view = self._place, self._view
        at, end = 0, len(place.rest)
        view[:end] = place.rest
        peeked = self._peeked = self._sock.recv_into(view[end:], PIECE_BYTES, socket.MSG_PEEK)
        if not peeked:
            return None
        self._state.begin()
        end += peeked
        frames: list[Frame] = []
        read = self._read = [0, 0, 0]
        if place.left:
            at = self._part(frames, at, end)
        buffer, header, unpack = self._buffer, HEADER.size, HEADER.unpack_from
        while end - at >= header:
            kind, size, flow, offset = unpack(buffer, at)
            body = at + header
            if CLIENT <= kind <= SERVER:
                if size > MAX_PAYLOAD or not place.greeted:
                    check_frame(kind, size, place.greeted)
                if body + size > end:
                    place.kind, place.flow, place.offset, place.left = kind, flow, offset, size
                    at = self._part(frames, body, end)
                    break
                read[kind - CLIENT + 1] += size
                frames.append((kind, flow, offset, bytes(view[body : body + size])))
                read[0] += 1
                at = body + size
                continue
            check_frame(kind, size, place.greeted)
            if body + size > end:
                break
            payload = bytes(view[body : body + size])
            if kind == HELLO:
                check_greeting(payload)
                place.greeted = True
            frames.append((kind, flow, offset, payload))
            read[0] += 1
            at = body + size
        place.rest = bytes(view[at:end])
        return frames

    def _part(self, frames: list[Frame], at: int, end: int) -> int:
        """Hand out what has arrived of the open data frame; where it ends."""
        place = self._place
        part = bytes(self._view[at : min(end, at + place.left)])
        if part:
            frames.append((place.kind, place.flow, place.offset, part))
            place.offset += len(part)
            place.left -= len(part)
            self._read[place.kind - CLIENT + 1] += len(part)
            self._read[0] += not place.left
        return at + len(part)

    def commit(self, pipeline: Pipeline, *, whole: bool = False) -> None:
        """What :meth:`read` returned is worked off. ``whole`` saves all flows. Raises TapError if there is no room."""
        read = tuple(self._slots[slot] + more for slot, more in zip(_READ, self._read, strict=True))
        whole = whole or self._state.full
        done = False
        while not done:
            flows = pipeline.changes(whole, self._state.room(whole))
            record = self._encode([self._place, read, pipeline.now, pipeline.monotonic, flows])
            done = self._state.record(record, whole=whole)
            if not done and whole:
                raise TapError("tap: no room for the state of all flows")
            whole = True
        for slot, value in zip(_READ, read, strict=True):
            self._slots[slot] = value
        self.flush()
        self._take(self._peeked)
        self._peeked = 0
        self._read = [0, 0, 0]
        self._state.taken()

    def flush(self) -> None:
        """Add what was counted."""
        for name, n in self._counts.items():
            self._slots[SLOT[name]] += n
        self._counts.clear()

    def _take(self, size: int) -> None:
        while size:
            size -= self._sock.recv_into(self._scratch, min(size, TAKE_BYTES))
