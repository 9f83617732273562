"""The capture worker: a process that reads the tap and writes the store. The composition root of ``capture``.

Started by the supervisor as ``python -m capture.worker --tap-fd N --counters-fd N --config-fd N``. It is never on the
path: when it is killed, stopped or slow, the tap loses bytes and says so. The store is written by a thread of its own,
so that a slow disk does not stop the reading; what the disk cannot take is counted as dropped.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import random
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from typing import Final

import msgspec

from capture.admission import Admission
from capture.config import WORKER_CLOSE_SECONDS, WorkerConfig
from capture.counters import Counters
from capture.dialects.table import BY_NAME
from capture.logline import LineFormatter
from capture.pipeline import Pipeline, drop_requests
from capture.store.base import Batch, Store, StoreError, StoreGone, open_store
from capture.tap import TapError, TapReader

log = logging.getLogger("worker")

#: Seconds between looks at what has grown too old.
EXPIRE_INTERVAL: Final = 300.0
#: Payload bytes that may wait for a store that does not answer; above it they are dropped and counted.
MAX_WAITING_BYTES: Final = 64 << 20
#: Seconds between attempts to write, doubled up to the second number; and between the last ones when the sidecar stops.
RETRY_SECONDS: Final = (0.5, 30.0)
LAST_RETRY_SECONDS: Final = 0.2


def say(level: int, what: str, **fields: object) -> None:
    """One log line. Never a payload, never a credential."""
    log.log(level, what, extra={"fields": fields})


class StoreWriter:
    """Writes batches in a thread, one at a time, again and again until the store takes them."""

    def __init__(self, store: Store, counters: Counters) -> None:
        self._store = store
        self._counters = counters
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        #: When to give up, by the monotonic clock; set before ``_stopping``.
        self._deadline = 0.0
        #: What was handed over and is not written.
        self._pending: deque[Batch] = deque()
        #: What ended the thread: the store is gone, or a mistake of our own. Nothing is written any more.
        self.error: BaseException | None = None
        #: Set while no batch is being written.
        self.idle = threading.Event()
        self.idle.set()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def write(self, batch: Batch) -> None:
        """Hand over a batch. Only while ``idle`` is set, or as the last one."""
        self.idle.clear()
        self._pending.append(batch)
        self._queue.put(batch)

    def stop(self, seconds: float) -> bool:
        """Write what was handed over, then end. After ``seconds`` what is not written is counted as dropped; False."""
        self._deadline = time.monotonic() + seconds
        self._stopping.set()
        self._queue.put(None)
        # A write may hang for longer than this (a lock, a dead disk): the thread is left behind.
        self._thread.join(seconds)
        left = list(self._pending)
        self._counters.add("store_dropped", sum(len(batch.samples) + len(batch.held_out) for batch in left))
        return not left

    def _run(self) -> None:
        try:
            while (batch := self._queue.get()) is not None:
                if not self._write(batch):
                    return
                self._pending.popleft()
                self.idle.set()
            self._store.close()
        except BaseException as error:
            # The worker's own thread raises it: a process that captures and stores nothing must not go on.
            self.error = error
            self.idle.set()

    def _write(self, batch: Batch) -> bool:
        """False if it was given up, because the sidecar stops. Raises StoreGone."""
        wait, longest = RETRY_SECONDS
        while True:
            batch.counters = self._counters.snapshot()
            try:
                self._store.apply(batch)
            except StoreGone:
                self._counters.add("store_failures")
                raise
            except StoreError as error:
                self._counters.add("store_failures")
                if not self._stopping.is_set():
                    say(logging.WARNING, "store failed", retry_seconds=wait, error=error)
                    self._stopping.wait(wait)
                    wait = min(2 * wait, longest)
                    continue
                if time.monotonic() + LAST_RETRY_SECONDS > self._deadline:
                    say(logging.WARNING, "store failed", error=error)
                    return False
                time.sleep(LAST_RETRY_SECONDS)
            else:
                self._counters.add("store_writes")
                return True


class Worker:
    """Reads the tap until it ends."""

    def __init__(self, config: WorkerConfig, tap_socket: socket.socket, counters: Counters, store: Store) -> None:
        limits = config.limits
        self._config = config
        self._socket = tap_socket
        self._counters = counters
        self._reader = TapReader(tap_socket, counters.slots)
        self._admission = Admission(
            signatures_per_version=limits.signatures_per_version,
            new_signatures_per_hour=limits.new_signatures_per_hour,
            store_bytes=limits.store_bytes,
            held_out_requests=limits.held_out_requests,
            held_out_bytes=limits.held_out_bytes,
            held_out_seconds=limits.held_out_seconds,
            refresh_after=config.refresh_after,
        )
        self._admission.load(store.signatures(), store.held_out_index())
        self._pipeline = Pipeline(
            run=config.run,
            name=f"{time.time_ns():x}-{os.getpid():x}",
            listeners=config.listeners,
            admission=self._admission,
            request_bytes=limits.request_bytes,
            open_bytes=limits.open_bytes,
            count=counters.add,
            draw=random.random,
        )
        self._writer = StoreWriter(store, counters)
        self._flushed_at = 0.0
        self._expired_at = time.monotonic()
        self._dirty = False

    def run(self) -> int:
        """Until the relay closes the tap. The exit code: 0, or 1 when the tap could not be read or the store not be
        written. Raises StoreGone: a new process makes a new store, and knows nothing that is not in it."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        status = 0
        say(logging.INFO, "reading", store=self._config.store)
        self._counters.add("worker_ready")
        self._flush()
        while True:
            waiting = self._dirty or not self._writer.idle.is_set() or self._writer.error is not None
            if poll.poll(1000 * self._config.flush_interval if waiting else 10_000):
                try:
                    frames = self._reader.read()
                except TapError as error:
                    say(logging.ERROR, "tap unreadable", error=error)
                    status = 1
                    break
                if frames is None:
                    break
                self._pipeline.feed(frames)
                self._dirty = True
            self._tick()
        self._pipeline.close()
        self._flush()
        if not self._writer.stop(WORKER_CLOSE_SECONDS):
            cause = {} if self._writer.error is None else {"error": self._writer.error}
            say(logging.ERROR, "store not written", store=self._config.store, **cause)
            status = 1
        say(logging.INFO, "stopped", status=status)
        return status

    def _tick(self) -> None:
        if self._writer.error is not None:
            self._flush()
            self._writer.stop(0)  # counts what is dropped
            raise self._writer.error
        now = time.monotonic()
        if now - self._expired_at > EXPIRE_INTERVAL:
            self._expired_at = now
            self._expire(time.time())
        due = now - self._flushed_at >= self._config.flush_interval
        if (due or self._pipeline.urgent) and self._dirty:
            if self._writer.idle.is_set():
                self._flush()
            elif self._pipeline.urgent and self._pipeline.batch.payload_bytes > MAX_WAITING_BYTES:
                self._counters.add("store_dropped", drop_requests(self._pipeline.batch, self._admission))

    def _flush(self) -> None:
        self._flushed_at = time.monotonic()
        self._dirty = False
        self._writer.write(self._pipeline.take())

    def _expire(self, now: float) -> None:
        self._pipeline.release(self._admission.expire(now))
        if self._config.retention:
            self._pipeline.batch.forget_before = now - self._config.retention
            self._admission.forget(now - self._config.retention)
        self._dirty = True


def main(arguments: list[str] | None = None) -> int:
    """The process. Exit codes: 0 the tap ended, 1 the store, the tap or the configuration is unusable."""
    parser = argparse.ArgumentParser(prog="capture.worker", description=__doc__)
    for name in ("tap", "counters", "config"):
        parser.add_argument(f"--{name}-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    with open(options.config_fd, "rb") as file:
        config = msgspec.json.decode(file.read(), type=WorkerConfig)
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("worker"))
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
    # The supervisor ends this process by closing the tap; Ctrl-C in a terminal reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    counters = Counters(options.counters_fd)
    for listener in config.listeners:
        if listener.dialect != "auto" and listener.dialect not in BY_NAME:
            say(logging.ERROR, "unknown dialect", dialect=listener.dialect, known=",".join(BY_NAME))
            return 1
    try:
        store = open_store(config.store, create=True)
        with socket.socket(fileno=options.tap_fd) as tap_socket:
            tap_socket.setblocking(True)
            return Worker(config, tap_socket, counters, store).run()
    except StoreError as error:
        say(logging.ERROR, "store unusable", error=error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
