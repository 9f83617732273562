"""HTTP/2 frame headers (RFC 9113 §4.1, §6), and finding them again after bytes were missed."""

from __future__ import annotations

import re

from capture.wire.events import Side

HEADER_BYTES = 9
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY_FLAG = 0x01, 0x01, 0x04, 0x08, 0x20

# SETTINGS_MAX_FRAME_SIZE: where it starts and the highest that can be chosen, in bytes (RFC 9113 §6.5.2).
DEFAULT_FRAME_BYTES, LARGEST_FRAME_BYTES = 1 << 14, (1 << 24) - 1

# Frames whose headers must follow one another before an alignment is believed. Real gRPC traffic with gaps at random
# places: four found the true alignment 1,200 of 1,200 times.
CHAIN_FRAMES = 4
# Bytes kept while looking, so that the frames of the chain themselves can still be read. A chain of larger frames is
# followed by arithmetic, and reading then starts at its last frame.
HUNT_BYTES = 128 * 1024
# Alignments followed at a time. Random bytes offer one in some 10,000 positions.
MAX_CANDIDATES = 64

_VALID_FLAGS = (0x09, 0x2D, 0, 0, 0x01, 0x0C, 0x01, 0, 0, 0x04)
_ODD = b"[" + b"".join(re.escape(bytes([value])) for value in range(1, 256, 2)) + b"]"
# The same rules as `plausible`, in a form that skips a megabyte of tensor in milliseconds.
_FLAGS_1 = b"[" + b"".join(re.escape(bytes([f])) for f in range(0x2E) if not f & ~0x2D) + b"]"
# The same rules as `plausible`, in a form that skips a megabyte of tensor in some 100 ms.
_CANDIDATE = re.compile(
    rb"(?=...(?:\x00[\x00\x01\x08\x09]|\x01"
    + _FLAGS_1
    + rb"|\x05[\x00\x04\x08\x0c]|\x09[\x00\x04])[\x00-\x7f].."
    + _ODD
    + rb")|"
    rb"(?=\x00\x00(?:\x05\x02|\x04\x03)\x00[\x00-\x7f].." + _ODD + rb")|"
    rb"(?=\x00..\x04[\x00\x01]\x00{4}|\x00\x00\x08\x06[\x00\x01]\x00{4}|\x00..\x07\x00\x00{4}"
    rb"|\x00\x00\x04\x08\x00[\x00-\x7f]...)",
    re.DOTALL,
)


def plausible(header: bytes, side: Side, max_frame: int, max_stream: int) -> bool:
    """Whether nine bytes can be a frame header that ``side`` sends: a known type, a length that the type allows, no
    undefined flag, a stream number of the right parity up to ``max_stream``. Stricter than the RFC: for looking only.
    """
    length = int.from_bytes(header[:3], "big")
    kind, flags = header[3], header[4]
    stream = int.from_bytes(header[5:], "big")
    if kind > CONTINUATION or flags & ~_VALID_FLAGS[kind] or length > max_frame or stream > max_stream:
        return False
    if kind == SETTINGS:
        return stream == 0 and (length == 0 if flags else length % 6 == 0 and length <= 600)
    if kind == PING:
        return stream == 0 and length == 8
    if kind == GOAWAY:
        return stream == 0 and 8 <= length <= DEFAULT_FRAME_BYTES
    if kind == WINDOW_UPDATE:
        return length == 4 and (stream == 0 or stream % 2 == 1)
    if stream % 2 == 0:  # pushed streams have even numbers: nobody pushes any more
        return False
    if kind == DATA:
        # An empty DATA frame that ends nothing is legal, useless, and what small integers in a tensor look like.
        return length > 0 or flags & END_STREAM != 0
    if kind == PRIORITY:
        return length == 5
    if kind == RST_STREAM:
        return length == 4
    if kind == PUSH_PROMISE:
        return side == Side.SERVER and length > 4
    return length > 0


class Hunt:
    """Looks for a frame border in one direction. Offsets count from the first byte after the gap.

    Known limit: a body that itself holds whole chained frames can be taken for traffic if a gap ends inside it. Whoever
    can send such a body can send such requests, but perhaps not with the server's leave.
    """

    __slots__ = ("_buf", "_candidates", "_max_frame", "_origin", "_scanned", "_side", "max_stream")

    def __init__(self, side: Side, max_frame: int) -> None:
        """``max_frame``: the longest payload in bytes."""
        self._side = side
        self._max_frame = max_frame
        self.max_stream = 0  # the highest stream number to believe; it grows with the bytes not understood
        self._buf = bytearray()
        self._origin = 0  # offset of the buffer's first byte
        self._scanned = 0  # offset of the first position not yet tried
        self._candidates: list[tuple[int, int, int, int]] = []  # (next header, frames seen, start, open block's stream)

    def held_bytes(self) -> int:
        """In bytes."""
        return len(self._buf) + MAX_CANDIDATES * 120

    def feed(self, data: bytes) -> tuple[int, bytes] | None:
        """More bytes. Once a chain stands: (bytes skipped, bytes from the frame border on)."""
        buf = self._buf
        buf += data
        end = self._origin + len(buf)
        best = self._advance(end)
        if best is None and len(buf) >= HEADER_BYTES:
            best = self._scan(end)
        if best is not None:
            rest = bytes(buf[best - self._origin :])
            buf.clear()
            return best, rest
        if len(buf) > HUNT_BYTES:
            # Half, so that trimming costs little per byte however small the chunks are.
            cut = len(buf) - HUNT_BYTES // 2
            del buf[:cut]
            self._origin += cut
        return None

    def _scan(self, end: int) -> int | None:
        """Tries each position not tried before."""
        origin, buf = self._origin, self._buf
        for match in _CANDIDATE.finditer(buf, max(0, self._scanned - origin)):
            start = match.start() + origin
            found = self._follow(start, 0, start, 0, end)
            if found is not None:
                return found
        self._scanned = end - HEADER_BYTES + 1
        return None

    def _advance(self, end: int) -> int | None:
        """Follows the candidates whose next header has arrived."""
        waiting, self._candidates = self._candidates, []
        for following, frames, start, block in waiting:
            found = self._follow(following, frames, start, block, end)
            if found is not None:
                return found
        return None

    def _follow(self, at: int, frames: int, start: int, block: int, end: int) -> int | None:
        """Walks a chain; returns where to read on once it is long enough, and keeps it if it reaches beyond ``end``."""
        buf, origin = self._buf, self._origin
        while at + HEADER_BYTES <= end:
            header = bytes(buf[at - origin : at - origin + HEADER_BYTES])
            if not plausible(header, self._side, self._max_frame, self.max_stream):
                return None
            kind, stream = header[3], int.from_bytes(header[5:], "big")
            # A header block is followed by its continuation and nothing else (§6.10). The chain's first frame may be
            # a continuation whose beginning was missed.
            if (kind == CONTINUATION) != (block != 0) and frames:
                return None
            if kind == CONTINUATION and block and stream != block:
                return None
            in_block = kind in (HEADERS, PUSH_PROMISE, CONTINUATION) and not header[4] & END_HEADERS
            block = stream if in_block else 0
            frames += 1
            if frames >= CHAIN_FRAMES:
                return start if start >= origin else at
            at += HEADER_BYTES + int.from_bytes(header[:3], "big")
        if len(self._candidates) >= MAX_CANDIDATES:
            # The one that waits longest for its next header is the least likely to be true.
            self._candidates.sort()
            if self._candidates[-1][0] <= at:
                return None
            self._candidates.pop()
        self._candidates.append((at, frames, start, block))
        return None
