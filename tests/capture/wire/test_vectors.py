"""Every vector is fed whole, byte by byte, and once per two-way split. One file per case: a failure names it."""

from __future__ import annotations

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
    for split in two_way_splits(steps):
        assert lines_of(split) == expected
