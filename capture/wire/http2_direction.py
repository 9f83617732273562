"""Where one direction of an HTTP/2 flow stands, and how another process takes that up."""

from __future__ import annotations

from capture.wire.events import Side
from capture.wire.hpack_table import HpackTable
from capture.wire.http2_frames import (
    CONTINUATION,
    DEFAULT_FRAME_BYTES,
    END_HEADERS,
    HEADERS,
    LARGEST_FRAME_BYTES,
    PUSH_PROMISE,
    Hunt,
)
from capture.wire.saved import SavedDirection

STATE_PREFACE, STATE_HEADER, STATE_PAD_LENGTH, STATE_DATA, STATE_SKIP, STATE_COLLECT = range(6)


class Direction:
    """Where one direction stands."""

    __slots__ = (
        "block",
        "block_flags",
        "block_stream",
        "buf",
        "closed",
        "continuations",
        "cut",
        "flags",
        "gapped",
        "hunt",
        "kind",
        "left",
        "max_frame",
        "offset",
        "padding",
        "realignments",
        "side",
        "start",
        "state",
        "stream",
        "table",
    )

    def __init__(self, side: Side, joined: bool) -> None:
        self.side = side
        self.state = STATE_HEADER if side or joined else STATE_PREFACE
        self.buf = bytearray()  # an incomplete frame header, preface or collected payload
        self.kind = self.flags = self.stream = 0
        self.left = 0  # payload bytes to come, without padding
        self.padding = 0
        self.block = bytearray()  # a header block that awaits its CONTINUATION
        self.block_stream = 0  # 0: none is open; -1: the open one's beginning was missed
        self.block_flags = 0
        self.continuations = 0
        self.table = HpackTable(joined)
        self.max_frame = LARGEST_FRAME_BYTES if joined else DEFAULT_FRAME_BYTES
        self.offset = 0  # bytes of this direction before the current chunk
        self.start = 0  # offset of the current frame
        self.gapped = joined
        self.cut = False  # loaded from a save inside a header block
        self.hunt: Hunt | None = Hunt(side, LARGEST_FRAME_BYTES) if joined else None
        self.realignments = 0
        self.closed = False

    def save(self, whole: bool) -> SavedDirection:
        """Where this direction stands: between two calls of ``feed``."""
        state, left = self.state, self.left
        in_block = state == STATE_COLLECT and self.kind in (HEADERS, PUSH_PROMISE, CONTINUATION)
        if in_block:  # a part of the frame is here, and may hold a secret: its rest will be skipped
            state, left = STATE_SKIP, left - len(self.buf)
        open_block = not self.flags & END_HEADERS if in_block else self.block_stream != 0
        return SavedDirection(
            state,
            self.kind,
            self.flags,
            self.stream,
            left,
            self.padding,
            b"" if in_block else bytes(self.buf),
            self.max_frame,
            self.offset,
            self.realignments,
            self.gapped,
            self.hunt is not None,
            self.closed,
            in_block or open_block,
            open_block,
            self.table.save(whole),
        )

    def load(self, saved: SavedDirection) -> None:
        """Stand where ``saved`` stood. Of a flow's saves each is loaded, in order."""
        self.state, self.kind, self.flags, self.stream = saved.state, saved.kind, saved.flags, saved.stream
        self.left, self.padding, self.max_frame = saved.left, saved.padding, saved.max_frame
        self.offset, self.realignments = saved.offset, saved.realignments
        self.buf[:] = saved.buf
        self.gapped, self.closed, self.cut = saved.gapped, saved.closed, saved.cut
        self.hunt = Hunt(self.side, LARGEST_FRAME_BYTES) if saved.hunting else None
        self.block_stream = -1 if saved.open_block else 0
        if saved.table is not None:
            self.table.load(saved.table)

    def resume(self) -> bool:
        """Read on from what was loaded. True if a header block is missing."""
        if not self.cut:
            return False
        self.cut = False
        self.gapped = True
        self.table.distrust()
        return True
