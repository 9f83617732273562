"""The child of a workbench, when it ends early."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from replay import frames
from replay.executor.api import ExecutorError
from replay.workbench import Workbench


@pytest.mark.server
def test_a_child_that_dies_is_one_line(tmp_path: Path) -> None:
    with Workbench() as bench:
        with pytest.raises(ExecutorError, match="no such directory"):
            bench.open(tmp_path / "nothing")
        bench._child.kill()
        with pytest.raises(ExecutorError, match=r"TensorFlow crashed \(signal 9\)"):
            bench.open(tmp_path)


def test_messages_come_back_as_they_were() -> None:
    stream = io.BytesIO()
    frames.write(stream, {"id": 1, "text": "two\nlines"}, [b"\n\0", b""])
    frames.write(stream, {"id": 2})
    stream.seek(0)
    assert frames.read(stream) == ({"id": 1, "text": "two\nlines"}, [b"\n\0", b""])
    assert frames.read(stream) == ({"id": 2}, [])
    assert frames.read(stream) is None


@pytest.mark.parametrize("size", range(1, 40, 3))
def test_a_message_that_is_cut_short_is_the_end(size: int) -> None:
    stream = io.BytesIO()
    frames.write(stream, {"id": 1}, [b"12345678", b"90"])
    assert frames.read(io.BytesIO(stream.getvalue()[:-size])) is None
