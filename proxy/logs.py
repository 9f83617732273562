"""Log lines that never make anybody wait: ``time=... level=... process=... msg=... key=value``, one line each.

The relay and the worker write into a pipe of the supervisor's. The relay's end does not block and drops what the pipe
does not take. The supervisor hands every line to a thread that writes to stderr: if nobody reads stderr, the thread
waits, the queue fills, and lines are dropped and counted.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from typing import Final

#: Lines that wait for a slow stderr.
QUEUE_LINES: Final = 1000
#: Lines per second that the relay may write, and as many at once.
RELAY_LINES_PER_SECOND: Final = 20


class PipeHandler(logging.Handler):
    """Writes whole lines to a descriptor that does not block; over the rate or with the pipe full a line is dropped."""

    def __init__(self, fd: int, dropped: memoryview, *, per_second: float = RELAY_LINES_PER_SECOND) -> None:
        """``dropped`` is a view of one counter slot."""
        super().__init__()
        self._fd = fd
        self._dropped = dropped
        self._per_second = per_second
        self._tokens = per_second
        self._refilled = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        self._tokens = min(self._per_second, self._tokens + (now - self._refilled) * self._per_second)
        self._refilled = now
        if self._tokens < 1:
            self._dropped[0] += 1
            return
        self._tokens -= 1
        # At most PIPE_BUF bytes: a longer write to a pipe is not atomic.
        line = self.format(record).encode()[:4095] + b"\n"
        try:
            os.write(self._fd, line)
        except (BlockingIOError, BrokenPipeError):
            self._dropped[0] += 1


class LineSink:
    """The supervisor's stderr, written by a thread of its own."""

    def __init__(self, fd: int = 2, *, lines: int = QUEUE_LINES) -> None:
        self._fd = fd
        self._queue: queue.Queue[bytes] = queue.Queue(lines)
        self.dropped = 0
        # A daemon: a stderr that nobody reads must not keep the process from ending.
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Queue one line (without its end), or drop it."""
        try:
            self._queue.put_nowait(line + b"\n")
        except queue.Full:
            self.dropped += 1

    @property
    def pending(self) -> int:
        """Lines that are not written yet."""
        return self._queue.unfinished_tasks

    def flush(self, seconds: float) -> None:
        """Wait until everything is written, but no longer than this."""
        deadline = time.monotonic() + seconds
        while self.pending and time.monotonic() < deadline:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            line = self._queue.get()
            try:
                while line:
                    line = line[os.write(self._fd, line) :]
            except OSError:
                self.dropped += 1
            self._queue.task_done()


class SinkHandler(logging.Handler):
    """The supervisor's own lines."""

    def __init__(self, sink: LineSink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        self._sink.put(self.format(record).encode())
