"""The supervisor: owns listening sockets and counters, starts relay and worker, replaces either when it dies.

    supervisor ── control (SOCK_SEQPACKET) ──▶ relay ──▶ model server
        │                                        │ tap (a fresh socketpair for each worker)
        └──────────── starts ──────────────▶ worker

It is never on the path. A tap belongs to one worker: when the worker ends the next one gets a new pair, whose other end
travels to the relay. When the relay ends the worker meets EOF, ends too, and its successor gets a pair with the new
relay. Listeners are never closed in between: clients wait in the backlog.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from capture.config import WORKER_CLOSE_SECONDS, WorkerConfig
from capture.counters import Counters
from proxy.address import Address
from proxy.child import Child
from proxy.control import DRAIN, READY, TAP
from proxy.logs import LineSink
from proxy.relay import BACKLOG
from proxy.relay_main import RelayConfig, RelayListener
from proxy.watch import CaptureWatch, Line, summary

log = logging.getLogger("supervisor")

RELAY_COMMAND: Final = (sys.executable, "-P", "-m", "proxy.relay_main")
WORKER_COMMAND: Final = (sys.executable, "-P", "-m", "capture.worker")
#: A child that lived for less than this many seconds died quickly.
QUICK_SECONDS: Final = 10.0
#: Seconds before a restart after quick deaths: at once, then this, doubling up to the limit.
BACKOFF_FIRST: Final = 0.5
BACKOFF_LIMIT: Final = 30.0
#: Seconds that a worker may take for what it has read after its tap ended: it gives up by itself before.
WORKER_GRACE: Final = WORKER_CLOSE_SECONDS + 4.0
#: Seconds beyond shutdown_timeout that the relay may take to stop, and a starting relay to say ready.
RELAY_GRACE: Final = 5.0
WORKER_NICE: Final = 10
#: Seconds between looks at the counters.
WATCH_INTERVAL: Final = 1.0


class Backoff:
    """How long to wait before the next start: 0 after a long life or a first quick death, then 0.5 s doubling to 30."""

    def __init__(self) -> None:
        self._quick = 0

    def after(self, lived: float) -> float:
        """Seconds to wait, for a child that lived so many seconds."""
        self._quick = 0 if lived >= QUICK_SECONDS else self._quick + 1
        return 0.0 if self._quick <= 1 else min(BACKOFF_LIMIT, BACKOFF_FIRST * 2.0 ** (self._quick - 2))


def bind(address: Address) -> socket.socket:
    """A bound and listening socket. Raises OSError."""
    family, kind, protocol, _, where = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def bound_name(sock: socket.socket) -> str:
    """``host:port`` that the kernel gave."""
    return str(Address(*sock.getsockname()[:2]))


def inherited(data: bytes) -> int:
    """A descriptor that reads ``data``: for what must not stand in an argument, where ``ps`` shows it."""
    fd = os.memfd_create("warmtap-config", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


class Supervisor:
    """Runs until SIGTERM or SIGINT. ``sockets`` are bound already, ``upstreams`` belong to them by place."""

    def __init__(
        self,
        *,
        sockets: Sequence[socket.socket],
        upstreams: Sequence[str],
        relay: RelayConfig,
        worker: WorkerConfig,
        counters: Counters,
        sink: LineSink,
        relay_command: Sequence[str] = RELAY_COMMAND,
        worker_command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        """``relay`` is completed with generation and descriptors at each start."""
        self._sockets = sockets
        self._upstreams = upstreams
        self._relay_config = relay
        self._worker_config = msgspec.json.encode(worker)
        self._counters = counters
        self._sink = sink
        self._relay_command = relay_command
        self._worker_command = worker_command
        self._stop = asyncio.Event()
        self._relay: Child | None = None
        self._worker: Child | None = None
        self._control: socket.socket | None = None
        #: The relay's end of the tap, while there is no relay to send it to.
        self._tap: socket.socket | None = None
        self._told_ready = False
        #: ``worker_ready`` when the worker was started: above it, this one reads.
        self._ready_before = 0

    async def run(self) -> int:
        """0 after a clean stop."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop.set)
        relay = loop.create_task(self._keep_relay())
        worker = loop.create_task(self._keep_worker())
        watch = loop.create_task(self._watch())
        stop = loop.create_task(self._stop.wait())
        try:
            # The keepers end only when told to, or by a mistake of ours.
            await asyncio.wait({relay, worker, watch, stop}, return_when=asyncio.FIRST_COMPLETED)
            self._stop.set()
            log.info("stopping")
            await relay
            await worker
            await watch
        finally:
            for task in (relay, worker, watch, stop):
                task.cancel()
            for child in (self._relay, self._worker):
                if child is not None:
                    child.signal_kill()
        self._say(summary(self._counters.snapshot()))
        log.info("stopped", extra={"fields": {"log_lines_dropped": self._sink.dropped}})
        return 0

    # -- relay

    async def _keep_relay(self) -> None:
        loop = asyncio.get_running_loop()
        backoff, generation = Backoff(), 0
        while not self._stop.is_set():
            began = loop.time()
            await self._run_relay(generation)
            generation += 1
            if not self._stop.is_set():
                await self._pause(backoff.after(loop.time() - began))

    async def _run_relay(self, generation: int) -> None:
        """Start one relay, serve it, and return when it has ended."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = [sock.fileno() for sock in self._sockets]
        config = msgspec.structs.replace(
            self._relay_config,
            generation=generation,
            listeners=tuple(RelayListener(fd, upstream) for fd, upstream in zip(fds, self._upstreams, strict=True)),
        )
        config_fd = inherited(msgspec.json.encode(config))
        try:
            child = await Child.start(
                (
                    *self._relay_command,
                    *("--config-fd", str(config_fd)),
                    *("--control-fd", str(theirs.fileno())),
                    *("--counters-fd", str(self._counters.fd)),
                ),
                fds=[*fds, config_fd, theirs.fileno(), self._counters.fd],
                put_line=self._sink.put,
            )
        except OSError as error:
            ours.close()
            log.error("relay cannot start", extra={"fields": {"error": error}})
            return
        finally:
            os.close(config_fd)
            theirs.close()
        self._relay = child
        self._counters.add("relay_starts")
        log.info("relay started", extra={"fields": {"pid": child.pid, "generation": generation}})
        ended = loop.create_task(child.wait())
        stop = loop.create_task(self._stop.wait())
        with ours:
            ours.setblocking(False)
            hello = loop.create_task(loop.sock_recv(ours, 64))
            await asyncio.wait({ended, stop, hello}, timeout=RELAY_GRACE, return_when=asyncio.FIRST_COMPLETED)
            if hello.done() and not hello.cancelled() and hello.exception() is None and hello.result() == READY:
                self._control = ours
                self._send_tap()
                self._tell_ready()
                await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
            elif not stop.done():
                if not hello.done() and not ended.done():
                    log.error("relay is not ready in time", extra={"fields": {"seconds": RELAY_GRACE}})
                    child.signal_kill()
                # Otherwise it closed its end: it is about to end by itself.
                await asyncio.wait({ended, stop}, timeout=RELAY_GRACE, return_when=asyncio.FIRST_COMPLETED)
                if not ended.done() and not stop.done():
                    child.signal_kill()
            hello.cancel()
            if stop.done() and not ended.done():
                await self._stop_relay(ours, child, ended)
            status = await ended
            self._control = None
        stop.cancel()
        self._relay = None
        fields = {"pid": child.pid, "status": status}
        if self._stop.is_set():
            log.info("relay ended", extra={"fields": fields})
        else:
            log.error("relay died", extra={"fields": fields})
            # Its worker meets EOF and ends; one that does not (stopped, stuck) is killed.
            self._drop_tap()
            if self._worker is not None:
                loop.call_later(WORKER_GRACE, self._worker.signal_kill)

    async def _stop_relay(self, control: socket.socket, child: Child, ended: asyncio.Task[int]) -> None:
        try:
            control.send(DRAIN)
        except OSError:
            child.signal_kill()
        await asyncio.wait({ended}, timeout=self._relay_config.shutdown_timeout + RELAY_GRACE)
        if not ended.done():
            child.signal_kill()

    # -- worker

    async def _keep_worker(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        while not self._stop.is_set():
            began = loop.time()
            await self._run_worker()
            if not self._stop.is_set():
                await self._pause(backoff.after(loop.time() - began))

    async def _run_worker(self) -> None:
        """Start one worker with a tap of its own, and return when it has ended."""
        loop = asyncio.get_running_loop()
        self._ready_before = self._counters.snapshot()["worker_ready"]
        ours, theirs = socket.socketpair()
        config_fd = inherited(self._worker_config)
        try:
            child = await Child.start(
                (
                    *self._worker_command,
                    *("--tap-fd", str(theirs.fileno())),
                    *("--counters-fd", str(self._counters.fd)),
                    *("--config-fd", str(config_fd)),
                ),
                fds=[theirs.fileno(), self._counters.fd, config_fd],
                put_line=self._sink.put,
                nice=WORKER_NICE,
            )
        except OSError as error:
            ours.close()
            log.error("worker cannot start", extra={"fields": {"error": error}})
            return
        finally:
            os.close(config_fd)
            theirs.close()
        self._worker = child
        self._counters.add("worker_starts")
        log.info("worker started", extra={"fields": {"pid": child.pid}})
        self._drop_tap()
        self._tap = ours
        self._send_tap()
        self._tell_ready()
        ended = loop.create_task(child.wait())
        stop = loop.create_task(self._stop.wait())
        await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            # The relay goes first: the tap then ends, and the worker writes what it has.
            while self._relay is not None and not ended.done():
                await asyncio.wait({ended}, timeout=0.02)
            self._drop_tap()
            await asyncio.wait({ended}, timeout=WORKER_GRACE)
            if not ended.done():
                log.error("worker does not stop", extra={"fields": {"pid": child.pid}})
                child.signal_kill()
        status = await ended
        stop.cancel()
        self._worker = None
        level = logging.INFO if status == 0 else logging.ERROR
        log.log(level, "worker ended", extra={"fields": {"pid": child.pid, "status": status}})

    def _send_tap(self) -> None:
        if self._tap is None or self._control is None:
            return
        try:
            socket.send_fds(self._control, [TAP], [self._tap.fileno()])
        except OSError:
            return  # the relay is ending; the next one gets it
        self._drop_tap()

    def _drop_tap(self) -> None:
        if self._tap is not None:
            self._tap.close()
            self._tap = None

    # -- both

    def _reading(self) -> bool:
        """Whether there is a worker that has begun to read."""
        return self._worker is not None and self._counters.snapshot()["worker_ready"] > self._ready_before

    async def _watch(self) -> None:
        """Say what the capture does not: a worker that cannot start, losses that the store does not hear of."""
        clock = asyncio.get_running_loop().time
        watch = CaptureWatch(clock())
        while not self._stop.is_set():
            for line in watch.look(clock(), self._reading(), self._counters.snapshot()):
                self._say(line)
            await self._pause(WATCH_INTERVAL)

    @staticmethod
    def _say(line: Line) -> None:
        log.log(line.level, line.message, extra={"fields": line.fields})

    async def _pause(self, seconds: float) -> None:
        if seconds:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stop.wait()

    def _tell_ready(self) -> None:
        if self._told_ready or self._control is None or self._worker is None:
            return
        self._told_ready = True
        listeners = ",".join(bound_name(sock) for sock in self._sockets)
        # Traffic does not wait for the capture; its worker says "reading" when it does.
        capture = "reading" if self._reading() else "starting"
        log.info("ready", extra={"fields": {"listeners": listeners, "capture": capture}})
