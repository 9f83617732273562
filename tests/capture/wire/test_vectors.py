"""Every vector is fed whole, byte by byte, and once per two-way split. One file per case: a failure names it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tests.support.wire_feed import bytewise, lines_of, load, two_way_splits

VECTORS = Path(__file__).parents[2] / "vectors"
CASES = sorted(path.relative_to(VECTORS).as_posix() for path in VECTORS.glob("wire/**/*.json"))


def test_there_are_vectors() -> None:
    assert len(CASES) > 50


@pytest.mark.parametrize("case", CASES)
def test_vector(case: str) -> None:
    steps, expected = load(VECTORS / case)
    assert lines_of(steps) == expected
    # A gap and what follows it depend on where chunks begin: HTTP/1.1 resumes at a chunk that begins with a request.
    if any(step[0] == "gap" for step in steps):
        return
    assert lines_of(bytewise(steps)) == expected
    # One recording sends a 16 KiB header to force CONTINUATION, and takes 6 ms to read: there, every 41st place. The
    # hand-made http2/continuation is small and split everywhere.
    stride = 41 if sum(len(step[2]) for step in steps if step[0] == "data") > 8192 else 1
    for split in islice(two_way_splits(steps), 0, None, stride):
        assert lines_of(split) == expected
