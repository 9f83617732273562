"""Finding frame borders again."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from capture.wire.events import Side
from capture.wire.http2_frames import _CANDIDATE, CHAIN_FRAMES, HUNT_BYTES, LARGEST_FRAME_BYTES, Hunt, plausible
from tests.support.wire_h2 import data, frame, headers

LENGTHS = st.one_of(st.sampled_from([0, 1, 4, 5, 6, 8, 12, 300, 16384]), st.integers(0, LARGEST_FRAME_BYTES))


@given(LENGTHS, st.integers(0, 11), st.integers(0, 255), st.one_of(st.integers(0, 9), st.integers(0, 2**31)))
def test_the_pattern_lets_every_plausible_header_through(length: int, kind: int, flags: int, stream: int) -> None:
    header = length.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    for side in Side:
        if plausible(header, side, LARGEST_FRAME_BYTES, 2**31 - 1):
            assert _CANDIDATE.match(header)


def _hunt(raw: bytes, size: int) -> tuple[int, bytes] | None:
    hunt = Hunt(Side.CLIENT, LARGEST_FRAME_BYTES)
    hunt.max_stream = 1000
    for at in range(0, len(raw), size):
        found = hunt.feed(raw[at : at + size])
        assert hunt.held_bytes() < 2 * HUNT_BYTES
        if found is not None:
            return found[0], found[1] + raw[at + size :]
    return None


def test_a_shorter_chain_is_not_believed() -> None:
    frames = data(1, b"abc") * (CHAIN_FRAMES - 1)
    for size in (1, 7, 1000):
        assert _hunt(b"zz" + frames + b"no frame at all, and nothing behind it", size) is None
        found = _hunt(b"zz" + frames + b"\xff" * 20 + data(3, b"true") * CHAIN_FRAMES, size)
        assert found == (2 + len(frames) + 20, data(3, b"true") * CHAIN_FRAMES)


def test_a_chain_of_large_frames_is_followed_by_arithmetic() -> None:
    """Frames longer than what is kept: reading starts at the last frame of the chain."""
    big = data(1, b"\xff" * 300_000)
    raw = b"zzz" + big * (CHAIN_FRAMES - 1) + data(1, b"end", True)
    for size in (1000, 65536):
        assert _hunt(raw, size) == (3 + len(big) * (CHAIN_FRAMES - 1), data(1, b"end", True))


def test_tensors_are_not_taken_for_frames() -> None:
    dice = random.Random(1)
    integers = b"".join(dice.randrange(2000).to_bytes(8, "little") for _ in range(20_000))
    for raw in (bytes(100_000), integers, dice.randbytes(200_000), b"\x00\x00\x80\x3f" * 30_000):
        assert _hunt(raw, 4096) is None


def test_a_block_must_be_continued() -> None:
    opened = headers(1, b"\x83", end_headers=False)
    assert _hunt(opened + data(1, b"x") * 2 + frame(6, 0, 0, bytes(8)) * 1, 1000) is None
