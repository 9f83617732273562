"""The thread that writes the store, so that a slow disk does not stop the reading of the tap."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections import deque
from typing import Final

from capture.counters import Counters
from capture.store.base import Batch, Store, StoreError, StoreGone, Told
from capture.store_pace import retry_waits

log = logging.getLogger("worker")

#: Seconds between the last attempts to write, when the sidecar stops; before that see :func:`retry_waits`.
LAST_RETRY_SECONDS: Final = 0.2
#: Seconds that a batch may be on its way before what waits for it is told; and between two times that it is.
LATE_SECONDS: Final = 1.0
#: Counters of this thread: as they are when a batch is written; all others as they were when it was handed over.
OWN: Final = ("store_writes", "store_failures")


class StoreWriter:
    """Writes batches in a thread, one at a time, again and again until the store takes them."""

    def __init__(self, store: Store, counters: Counters) -> None:
        self._store = store
        self._counters = counters
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._handed_at = 0.0
        #: When to give up, by the monotonic clock; set before ``_stopping``.
        self._deadline = 0.0
        #: What was handed over and is not written.
        self._pending: deque[Batch] = deque()
        #: What a store that many write said of batches, to be taken up by the worker's own thread.
        self.told: deque[Told] = deque()
        #: What ended the thread: the store is gone, or a mistake of our own. Nothing is written any more.
        self.error: BaseException | None = None
        #: Set while no batch is being written.
        self.idle = threading.Event()
        self.idle.set()
        self._gauged_at = 0.0
        #: Calls and bytes of requests of the batch on its way.
        self._on_its_way = (0, 0)
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def write(self, batch: Batch) -> None:
        """Hand over a batch. Only while ``idle`` is set, or as the last one. What it says that the run counted is of
        now, not of when it is written: it is what is stored of the run."""
        batch.counters = self._counters.snapshot()
        if not batch.seen:
            # Where nothing passes the traffic's clock stands still: the run would look like one that ended long ago.
            batch.updated_at = max(batch.updated_at, time.time())
        self._on_its_way = (_calls(batch), batch.payload_bytes)
        self.idle.clear()
        self._handed_at = time.monotonic()
        self._pending.append(batch)
        self._queue.put(batch)

    @property
    def delay(self) -> float:
        """Seconds since a batch was handed over that is not written yet; 0 where all are."""
        return 0.0 if self.idle.is_set() else time.monotonic() - self._handed_at

    def gauge(self, coming: Batch) -> None:
        """Tell how late the store is, and what waits for it: the batch on its way and the one that is coming."""
        now, delay = time.monotonic(), self.delay
        self._counters.put("store_delay_us", round(delay * 1e6))
        if delay and now - self._gauged_at < LATE_SECONDS:
            return
        self._gauged_at = now
        calls = payload = 0
        if delay > LATE_SECONDS:
            calls, payload = self._on_its_way
            calls, payload = calls + _calls(coming), payload + coming.payload_bytes
        self._counters.put("store_waiting_calls", calls)
        self._counters.put("store_waiting_bytes", payload)

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
        waits = retry_waits(random.random)
        while True:
            counted = self._counters.snapshot()
            batch.counters.update((name, counted[name]) for name in OWN)
            try:
                told = self._store.apply(batch)
            except StoreGone:
                self._counters.add("store_failures")
                raise
            except StoreError as error:
                self._counters.add("store_failures")
                if not self._stopping.is_set():
                    wait = next(waits)
                    _failed(error, retry_seconds=round(wait, 2))
                    self._stopping.wait(wait)
                    continue
                if time.monotonic() + LAST_RETRY_SECONDS > self._deadline:
                    _failed(error)
                    return False
                time.sleep(LAST_RETRY_SECONDS)
            else:
                self._counters.add("store_writes")
                if told is not None:
                    self.told.append(told)
                    for warning in told.warnings:
                        log.warning("store", extra={"fields": {"warning": warning}})
                return True


def _calls(batch: Batch) -> int:
    return sum(delta.proven + delta.unproven for delta in batch.seen.values())


def _failed(error: StoreError, **fields: object) -> None:
    log.warning("store failed", extra={"fields": {**fields, "error": error}})
