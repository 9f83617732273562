"""The capture worker: a process that reads the tap and writes the store. The composition root of ``capture``.

Started by the supervisor as ``python -m capture.worker --tap-fd N --counters-fd N --config-fd N --pair N --state-fd N
--status-fd N``. It is never on the path: when it is stopped or slow, the tap loses bytes and says so; when it is killed
the next one reads on (:mod:`capture.held_tap`). While it is behind it sheds exchanges at random
(:mod:`capture.shedding`), so that it need not come to that.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from capture.admission import Admission
from capture.admission_told import drop_requests, learn
from capture.attribution import settle
from capture.config import WORKER_CLOSE_SECONDS, WorkerConfig
from capture.counters import TABLE, Counters
from capture.dialects.table import BY_NAME
from capture.errors import UserError
from capture.export.scrub_rules import Rules
from capture.flow_state import FlowState, StateError
from capture.held_tap import HeldTap
from capture.levels import Levels
from capture.logline import LineFormatter
from capture.pipeline import Pipeline
from capture.rule_files import capture_rules
from capture.shedding import Start, shed_share
from capture.status_board import StatusBoard
from capture.store.base import Store, StoreError, open_store, shown_store
from capture.store_pace import StorePace, bounds_of
from capture.store_writer import StoreWriter
from capture.tap import Frame, TapError, TapReader
from capture.worker_memory import (
    limit_address_space,
    offer_to_the_oom_killer,
    one_arena,
    resident_bytes,
    seldom_collect,
    trim,
)
from capture.worker_rest import Rest

log = logging.getLogger("worker")

#: Exit codes: the tap ended; store, tap or configuration are unusable; memory ran out.
DONE, UNUSABLE, OUT_OF_MEMORY = 0, 1, 3
#: Seconds between looks at what has grown too old.
EXPIRE_INTERVAL: Final = 300.0
#: Seconds between two updates of the gauges.
GAUGE_INTERVAL: Final = 1.0
#: Seconds that a worker goes on reading what has arrived, once it was told to stop.
STOP_SECONDS: Final = 1.0
#: Payload bytes that may wait for a store that does not answer; above it they are dropped and counted.
MAX_WAITING_BYTES: Final = 64 << 20
#: The share of ``memory_bytes`` that may be resident; above it the worker writes what it has and ends.
MEMORY_SHARE: Final = 0.8
#: Set free when memory runs out, so that there is some to say so. Bytes.
RESERVE_BYTES: Final = 1 << 20


def say(level: int, what: str, **fields: object) -> None:
    """One log line. Never a payload, never a credential."""
    log.log(level, what, extra={"fields": fields})


#: Frames between two looks at the clock.
SLICE_FRAMES = 64


class Worker:
    """Reads the tap until it ends."""

    def __init__(
        self,
        config: WorkerConfig,
        tap_socket: socket.socket,
        counters: Counters,
        store: Store,
        state: FlowState | None = None,
        board: StatusBoard | None = None,
        scrub: Rules | None = None,
    ) -> None:
        """``state``: the tap goes on without this worker, and the next one reads on where it stood. ``board``: what
        the supervisor knows of model versions. ``scrub``: keep no values, by these rules.
        Raises StateError if the state is broken."""
        limits = config.limits
        self._config = config
        self._socket = tap_socket
        self._counters = counters
        self._held = HeldTap(tap_socket, state, counters.slots) if state is not None else None
        self._reader = self._held or TapReader(tap_socket, counters.slots)
        self._admission = Admission(
            signatures_per_version=limits.signatures_per_version,
            new_signatures_per_hour=limits.new_signatures_per_hour,
            store_bytes=limits.store_bytes,
            held_out_requests=limits.held_out_requests,
            held_out_bytes=limits.held_out_bytes,
            held_out_seconds=limits.held_out_seconds,
            refresh_after=config.refresh_after,
        )
        # A fleet's store tells by itself what is wrong of what is proposed to it, and may be away now.
        if not store.shared:
            self._admission.load(store.signatures(), store.held_out_index())
        self._pipeline = Pipeline(
            run=config.run,
            name=f"{time.time_ns():x}-{secrets.token_hex(4)}",
            listeners=config.listeners,
            admission=self._admission,
            request_bytes=limits.request_bytes,
            open_bytes=limits.open_bytes,
            count=self._held.count if self._held else counters.add,
            draw=random.random,
            levels=Levels(config.level, config.levels),
            scrub=scrub,
        )
        if self._held:
            self._held.resume(self._pipeline)
        self._board = board
        if board is not None:
            self._pipeline.attribution.begin(board.asked())
        self._writer = StoreWriter(store, counters)
        self._bounds = bounds_of(config.limits, config.refresh_after) if store.shared else None
        self._due = StorePace(config, shared=store.shared, chance=random.random)
        self._expired_at = time.monotonic()
        self._gauged_at = 0.0
        self._lag = 0.0
        self._start = Start(time.monotonic())
        self._dirty = False
        #: More is resident than may be.
        self._full = False

    def run(self, stop: Sequence[int] = ()) -> int:
        """Until the relay closes the tap, or one of the descriptors ``stop`` can be read: then what has arrived is
        read still. The exit code: 0, or 1 when the tap could not be read or the store not be written. Raises StoreGone:
        a new process makes a new store, and knows nothing that is not in it."""
        tap = self._socket.fileno()
        poll, rest = select.poll(), Rest(tap, stop)
        for fd in (tap, *stop):
            poll.register(fd, select.POLLIN)
        status = DONE
        ended = False
        stop_at = 0.0
        # First: who hears the line may stop this process at once, and must find it ready.
        self._counters.add("worker_ready")
        say(logging.INFO, "reading", store=shown_store(self._config.store))
        self._flush()
        while not self._full:
            waiting = self._dirty or not self._writer.idle.is_set() or self._writer.error is not None
            seconds = min(self._config.flush_interval, GAUGE_INTERVAL) if waiting else GAUGE_INTERVAL
            ready = {fd for fd, _ in poll.poll(1000 * seconds)}
            if ready - {tap}:
                stop_at = stop_at or time.monotonic() + STOP_SECONDS
            if tap in ready:
                try:
                    frames = self._reader.read()
                    if frames is not None:
                        self._feed(frames)
                        if self._held:
                            self._held.commit(self._pipeline)
                except TapError as error:
                    say(logging.ERROR, "tap unreadable", error=error)
                    status = UNUSABLE
                    break
                if frames is None:
                    ended = True
                    break
                self._dirty = True
            if stop_at and (tap not in ready or time.monotonic() > stop_at):
                break
            self._tick(caught_up=tap not in ready)
            if tap in ready and not stop_at and rest.due(*self._counters.tapped(), time.monotonic()):
                if not rest.anything():
                    self._lag = self._pipeline.shed = 0.0
                rest.take()
        if ended or self._held is None:
            # Otherwise the next worker reads on, and judges what is open now as lost.
            self._pipeline.close()
        if self._held:
            self._held.flush()
        return self._close(status)

    def _feed(self, frames: list[Frame]) -> None:
        """One piece, looking in between at how far behind this falls: a piece may be hundreds of requests."""
        for at in range(0, len(frames), SLICE_FRAMES):
            if at:
                self._pace(time.monotonic())
            self._pipeline.feed(frames[at : at + SLICE_FRAMES])

    def _pace(self, now: float) -> None:
        self._lag = max(0.0, now - (self._pipeline.monotonic or now))
        most = self._config.shed_lag
        fill = self._counters.tap_fill(self._config.tap_bytes, self._config.tap_frames)
        self._pipeline.shed = shed_share(self._start.counted(self._lag, most, now), most, fill)

    def _close(self, status: int) -> int:
        self._flush()
        if not self._writer.stop(WORKER_CLOSE_SECONDS):
            cause = {} if self._writer.error is None else {"error": self._writer.error}
            say(logging.ERROR, "store not written", store=shown_store(self._config.store), **cause)
            status = UNUSABLE
        for row in TABLE:
            if row.owner == "worker" and row.kind != "count":
                self._counters.put(row.name, 0)
        say(logging.INFO, "stopped", status=status)
        return status

    def _tick(self, *, caught_up: bool) -> None:
        if self._writer.error is not None:
            self._flush()
            self._writer.stop(0)  # counts what is dropped
            raise self._writer.error
        now = time.monotonic()
        self._pace(now)
        if caught_up:  # nothing to read means that all was
            self._lag = self._pipeline.shed = 0.0
        if now - self._gauged_at > GAUGE_INTERVAL or caught_up:
            self._gauged_at = now
            self._gauge()
        if now - self._expired_at > EXPIRE_INTERVAL:
            self._expired_at = now
            self._expire(time.time())
        self._look_at_board()
        while self._writer.told:
            told = self._writer.told.popleft()
            self._due.hear(told)
            turned_away = learn(self._admission, told, self._pipeline.now)
            self._counters.add("signatures_turned_away", turned_away)
        # Nothing is looked through for each piece unless there is a new signature, or the store is slow.
        look = self._pipeline.urgent or not self._writer.idle.is_set()
        payload = self._pipeline.batch.payload_bytes if look else 0
        if self._dirty and self._due.due(now, self._pipeline.urgent, payload):
            if self._writer.idle.is_set():
                self._flush()
            elif payload > MAX_WAITING_BYTES:
                self._counters.add("store_dropped", drop_requests(self._pipeline.batch, self._admission))

    def _look_at_board(self) -> None:
        """Take up what the supervisor has learned of model versions, and say what is to be asked for."""
        if self._board is None:
            return
        attribution = self._pipeline.attribution
        if (answers := self._board.answered()) is not None:
            attribution.learn(answers)
            self._dirty = self._dirty or attribution.waits
        if attribution.asks_changed:
            self._board.ask(attribution.asks())

    def _gauge(self) -> None:
        put, config = self._counters.put, self._config
        put("worker_lag_us", round(self._lag * 1e6))
        put("worker_open_flows", self._pipeline.open_flows)
        put("worker_open_bytes", self._pipeline.open_bytes)
        self._writer.gauge(self._pipeline.batch)
        resident = resident_bytes()
        allowed = MEMORY_SHARE * config.memory_bytes
        if allowed and resident > allowed:
            trim()
            resident = resident_bytes()
            if resident > allowed:
                self._full = True
                self._counters.add("worker_limit_restarts")
                say(logging.WARNING, "memory limit near, ending", resident=resident, limit=config.memory_bytes)
        put("worker_memory_bytes", resident)

    def _flush(self) -> None:
        self._due.wrote(time.monotonic())
        self._dirty = False
        batch = self._pipeline.take()
        batch.bounds = self._bounds
        self._writer.write(batch)
        if settle(self._pipeline.attribution, self._admission, self._pipeline.batch, time.monotonic()):
            self._dirty = True

    def _expire(self, now: float) -> None:
        self._pipeline.release(self._admission.expire(now))
        if self._config.retention:
            self._pipeline.batch.forget_before = now - self._config.retention
            self._admission.forget(now - self._config.retention)
        self._dirty = True


class Handed(NamedTuple):
    """What a worker is given: descriptors, which it owns from then on, and the number of its pair."""

    tap: int
    counters: int
    config: int
    pair: int = 0
    #: -1: the tap ends with this worker.
    state: int = -1
    #: -1: the supervisor tells nothing of model versions.
    status: int = -1


def work(handed: Handed, *, store: str = "", memory_bytes: int = 0, stop: Sequence[int] = ()) -> int:
    """Be the worker of these descriptors until the tap ends or a descriptor of ``stop`` can be read. Whatever goes
    wrong is one log line; the exit code. ``store`` and ``memory_bytes`` override what is configured."""
    reserve = bytearray(RESERVE_BYTES)
    with socket.socket(fileno=handed.tap) as tap_socket:
        tap_socket.setblocking(True)
        try:
            with open(handed.config, "rb") as file:
                config = msgspec.json.decode(file.read(), type=WorkerConfig)
            counters = Counters(handed.counters, handed.pair)
            state = None if handed.state < 0 else FlowState(handed.state)
            board = None if handed.status < 0 else StatusBoard(handed.status)
        except (msgspec.MsgspecError, ValueError) as error:
            # They can be of different versions where each has its own container.
            say(logging.ERROR, "sidecar and worker do not fit together: run one version of both", error=error)
            return UNUSABLE
        finally:
            os.close(handed.counters)  # the mapping has one of its own
            for fd in (handed.state, handed.status):
                if fd >= 0:
                    os.close(fd)
        logging.getLogger().setLevel(config.log_level.upper())
        for listener in config.listeners:
            if listener.dialect != "auto" and listener.dialect not in BY_NAME:
                say(logging.ERROR, "unknown dialect", dialect=listener.dialect, known=",".join(BY_NAME))
                return UNUSABLE
        if store:
            config = msgspec.structs.replace(config, store=store)
        if memory_bytes:
            config = msgspec.structs.replace(config, memory_bytes=memory_bytes)
        if config.memory_bytes:
            limit_address_space(config.memory_bytes)
        try:
            opened = open_store(config.store, create=True, allow_shared=config.allow_shared_store)
            scrub = capture_rules(config, opened)
            worker = Worker(config, tap_socket, counters, opened, state, board, scrub)
            seldom_collect()
            return worker.run(stop)
        except StateError as error:
            say(logging.ERROR, "cannot read on where the worker before was", error=error)
            return UNUSABLE
        except UserError as error:
            say(logging.ERROR, "store unusable" if isinstance(error, StoreError) else "cannot scrub", error=error)
            return UNUSABLE
        except MemoryError:
            # What is not written is lost, and nothing wrong is written: a batch is stored whole or not at all.
            del reserve
            say(logging.ERROR, "out of memory", limit=config.memory_bytes)
            return OUT_OF_MEMORY


def begin_log() -> None:
    """Log lines of this process go to stderr from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("worker"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def prepare() -> int:
    """Make this process a worker: its log, its memory, its signals. A descriptor that can be read once SIGTERM came,
    never where the parent has it ignored: a supervisor decides by itself when its worker ends, and an init system
    signals the whole group."""
    begin_log()
    one_arena()
    offer_to_the_oom_killer()
    # The supervisor ends this process by closing the tap; Ctrl-C in a terminal reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told, tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(tell)
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, lambda *_: None)
    return told


def main(arguments: list[str] | None = None) -> int:
    """The process. Exit codes: 0 the tap ended, 1 the store, the tap or the configuration is unusable, 3 memory ran
    out."""
    parser = argparse.ArgumentParser(prog="capture.worker", description=__doc__)
    for name in ("tap", "counters", "config"):
        parser.add_argument(f"--{name}-fd", type=int, required=True)
    parser.add_argument("--pair", type=int, default=0)
    parser.add_argument("--state-fd", type=int, default=-1)
    parser.add_argument("--status-fd", type=int, default=-1)
    options = parser.parse_args(arguments)
    handed = Handed(
        options.tap_fd, options.counters_fd, options.config_fd, options.pair, options.state_fd, options.status_fd
    )
    return work(handed, stop=[prepare()])


if __name__ == "__main__":
    sys.exit(main())
