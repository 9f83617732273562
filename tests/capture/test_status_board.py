from __future__ import annotations

import mmap
import os

import msgspec
import pytest

from capture.serving import Span
from capture.status_board import ANSWERS_BYTES, ASKS_BYTES, StatusBoard
from capture.status_messages import Answers, Ask, Asks, Metadata, Said

ASKS = Asks((Ask("http://s:1", "m", ("canary",)),), ("1",))
ANSWERS = Answers((Said("http://s:1", "m", "", True, (Span(1.0, 2.0, "3"),)),), (Metadata("1", "m", "3", 5.0, b"{}"),))


def test_each_reads_what_the_other_wrote_once() -> None:
    supervisor = StatusBoard.create()
    worker = StatusBoard(supervisor.fd)
    assert worker.answered() is None
    assert supervisor.asked() is None
    worker.ask(ASKS)
    supervisor.answer(ANSWERS)
    assert supervisor.asked() == ASKS
    assert worker.answered() == ANSWERS
    assert worker.answered() is None
    supervisor.answer(Answers())
    assert worker.answered() == Answers()


def test_a_worker_finds_what_the_one_before_has_asked_for_and_writes_on() -> None:
    supervisor = StatusBoard.create()
    StatusBoard(supervisor.fd).ask(ASKS)
    supervisor.answer(ANSWERS)
    assert supervisor.asked() == ASKS
    worker = StatusBoard(supervisor.fd)
    assert (worker.asked(), worker.answered()) == (ASKS, ANSWERS)
    worker.ask(Asks())
    assert supervisor.asked() == Asks()


@pytest.mark.parametrize("broken", [16, 24], ids=["its head", "its message"])
def test_a_page_that_is_being_written_is_read_later(broken: int) -> None:
    board = StatusBoard.create()
    board.ask(ASKS)
    page = mmap.mmap(board.fd, ASKS_BYTES)
    right = page[broken - 4]
    page[broken - 4] = right ^ 0xFF
    assert board.asked() is None
    page[broken - 4] = right
    assert board.asked() == ASKS


def test_a_length_beyond_the_page_is_none() -> None:
    board = StatusBoard.create()
    mmap.mmap(board.fd, ASKS_BYTES)[:16] = b"\xff" * 16
    assert board.asked() is None


def test_metadata_that_has_no_room_comes_another_time() -> None:
    board = StatusBoard.create()
    large = [Metadata(str(number), "m", str(number), 5.0, bytes(ANSWERS_BYTES // 3)) for number in range(4)]
    board.answer(Answers(ANSWERS.said, tuple(large)))
    found = board.answered()
    assert found is not None
    assert [one.id for one in found.metadata] == ["0", "1"]
    board.answer(Answers(ANSWERS.said, tuple(large[2:])))
    found = board.answered()
    assert found is not None
    assert [one.id for one in found.metadata] == ["2", "3"]


def test_more_than_a_page_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^\d+ bytes on a page for \d+$"):
        StatusBoard.create().ask(Asks((), ("x" * ASKS_BYTES,)))


def test_a_message_of_another_version_is_none() -> None:
    board = StatusBoard.create()
    board._asks.write(msgspec.msgpack.encode({"other": 1}))
    assert board.asked() is None


def test_memory_of_another_size_is_refused() -> None:
    fd = os.memfd_create("other")
    with pytest.raises(ValueError, match="holds no board of this version"):
        StatusBoard(fd)
    os.close(fd)
