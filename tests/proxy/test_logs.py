"""Log lines: one line each, and a reader that does not read stops nobody."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading

from capture.logline import LineFormatter, value
from proxy.logs import LineSink, PipeHandler
from tests.support.waiting import until


def record(text: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("relay", logging.INFO, __file__, 1, text, (), None)
    made.fields = fields
    return made


def test_a_line() -> None:
    line = LineFormatter("relay").format(record("relay started", pid=7, path='a "b"\nc'))
    assert re.fullmatch(r'time=\S+Z level=info process=relay msg="relay started" pid=7 path="a \\"b\\"\\nc"', line)
    assert value("") == '""'


def test_a_full_pipe_drops_lines_and_counts_them() -> None:
    """Logging blocks: with stderr an unread pipe a relay stopped for good after 64 lines of 1 KB."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    dropped = memoryview(bytearray(8)).cast("Q")
    handler = PipeHandler(write, dropped, per_second=1_000_000)
    handler.setFormatter(LineFormatter("relay"))
    for _ in range(200):
        handler.emit(record("x" * 1000))
    assert 100 < dropped[0] < 200
    os.close(read)
    handler.emit(record("nobody is there"))
    os.close(write)


def test_lines_over_the_rate_are_dropped() -> None:
    read, write = os.pipe()
    dropped = memoryview(bytearray(8)).cast("Q")
    handler = PipeHandler(write, dropped, per_second=5)
    for _ in range(100):
        handler.emit(record("again"))
    assert 90 <= dropped[0] <= 95
    os.close(read)
    os.close(write)


def test_a_sink_that_nobody_reads_waits_in_its_thread_only() -> None:
    read, write = os.pipe()
    sink = LineSink(write, lines=10)
    for _ in range(1000):
        sink.put(b"x" * 1000)
    assert sink.dropped > 0
    before = threading.active_count()
    sink.flush(0.01)
    os.set_blocking(read, False)

    def emptied() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(read, 1 << 20)
        return not sink.pending

    until(emptied)
    assert threading.active_count() == before
    os.close(read)
    os.close(write)
