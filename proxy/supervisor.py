"""The supervisor: owns listening sockets and counters, keeps pairs of relay and capture worker, stops and hands over.

    supervisor ── control (SOCK_SEQPACKET) ──▶ relay ──▶ model server
        │                                        │ tap (a fresh socketpair for each worker)
        └──────────── starts ──────────────▶ worker

It is never on the path. SIGTERM: not ready for ``drain_delay`` while clients are still accepted, then the relays drain.
SIGINT, or a second SIGTERM, skips the delay. SIGHUP reads the settings again. SIGUSR1 pauses the capture, SIGUSR2
resumes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from capture.counters import Counters
from capture.settings_errors import SettingsError
from capture.status_board import StatusBoard
from proxy.address import parse
from proxy.certificates import watch_certificates
from proxy.configs import check_certificates, relay_config, worker_config
from proxy.following import Following
from proxy.keeping import Orders
from proxy.listening import Listening
from proxy.logs import LineSink
from proxy.pair import Pair
from proxy.relay_keeper import RELAY_COMMAND
from proxy.reload import kept, needing_restart
from proxy.settings import DEFAULT_ADMIN, Settings
from proxy.settings import Admin as AdminSettings
from proxy.sidecar import ListenerState, PairState, Sidecar
from proxy.sink_keeper import SinkKeeper
from proxy.status_poll import StatusPoller
from proxy.takeover import Predecessor, TakeOverError, TakeOverSocket
from proxy.upstream_watch import Probe
from proxy.watch import CaptureWatch, Line, summary
from proxy.worker_keeper import WORKER_COMMAND
from proxy.worker_socket import WorkerSocket

log = logging.getLogger("supervisor")

#: Seconds between looks at the counters.
WATCH_INTERVAL: Final = 1.0


class Admin(Protocol):
    """Health, metrics and API: see :class:`proxy.admin.app.Admin`."""

    def serve(self, sidecar: Sidecar) -> AbstractAsyncContextManager[None]:
        """Listen while the context lasts. Raises OSError."""

    def reload(self, settings: AdminSettings) -> None:
        """Read the token again. Raises SettingsError."""


class Supervisor:
    """Implements :class:`proxy.sidecar.Sidecar`. Runs until SIGTERM or SIGINT, or until a successor has taken over."""

    def __init__(
        self,
        settings: Settings,
        *,
        listening: Sequence[Listening],
        counters: Counters,
        sink: LineSink,
        run: str,
        load: Callable[[], Settings] | None = None,
        predecessor: Predecessor | None = None,
        elsewhere: WorkerSocket | None = None,
        admin: Admin | None = None,
        relay_command: Sequence[str] = RELAY_COMMAND,
        worker_command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        """``listening`` are bound already, in the order of the settings; ``run`` names this run in the store. ``load``
        reads the settings file again (raises SettingsError), None where there is none."""
        self.settings = settings
        self.counters = counters
        self.started_at = time.time()
        self.draining = False
        self._listening = listening
        self._sink = sink
        self._run_name = run
        self._load = load
        self._predecessor = predecessor
        self._elsewhere = elsewhere
        self._admin = admin
        self._handed_over = False
        self._asked_to_stop = asyncio.Event()
        self._at_once = asyncio.Event()
        self._told_ready = False
        self._ready = asyncio.Event()
        self._mirrored = SinkKeeper(settings, sink)
        self._orders = Orders(
            relay_config(settings, self._mirrored.address),
            worker_config(settings, run),
            pairs=settings.workers,
            heartbeat_timeout=settings.relay.heartbeat_timeout,
        )
        boards = [StatusBoard.create() for _ in range(settings.workers)]
        self._poller = StatusPoller(lambda: self.settings, boards, counters)
        self._pairs = [
            Pair(
                number,
                sockets=[one.sock for one in listening],
                orders=self._orders,
                counters=counters.of(number),
                sink=sink,
                changed=self._on_change,
                relay_command=relay_command,
                worker_command=worker_command,
                elsewhere=elsewhere,
                board=boards[number],
            )
            for number in range(settings.workers)
        ]
        #: By the place of the listener. Who mirrors needs no answer, so a sink is always ready.
        self._probes = {n: Probe(parse(one.upstream)) for n, one in enumerate(settings.listeners) if one.upstream}
        self._following = Following(
            [n for n, one in enumerate(settings.listeners) if one.follow_upstream],
            listening=listening,
            probes=self._probes,
            orders=self._orders,
            relays=[pair.relay for pair in self._pairs],
        )

    # -- what others may know and say: proxy.sidecar

    @property
    def paused(self) -> bool:
        return self._orders.paused

    def listeners(self) -> list[ListenerState]:
        open_now = any(pair.relay.accepting for pair in self._pairs)
        return [
            ListenerState(
                listener.name or listener.listen,
                one.name,
                listener.upstream,
                listener.mode,
                listener.dialect,
                listener.tls is not None,
                listener.upstream_tls is not None,
                "refusing" if number in self._orders.refused else "accepting" if open_now else "closed",
            )
            for number, (listener, one) in enumerate(zip(self.settings.listeners, self._listening, strict=True))
        ]

    def pairs(self) -> list[PairState]:
        return [pair.state() for pair in self._pairs]

    async def unready(self) -> list[str]:
        why = ["stopping"] if self.draining else []
        if not any(pair.relay.accepting for pair in self._pairs):
            why.append("no relay accepts connections")
        probes = self._probes.values()
        failures = await asyncio.gather(*(probe.failure() for probe in probes))
        for probe, failure in zip(probes, failures, strict=True):
            if failure:
                why.append(f"model server {probe.address} does not accept a connection: {failure}")
        return why

    def pause(self) -> None:
        if not self._orders.paused:
            self._orders.paused = True
            log.warning("capture is paused: the taps are detached, connections go on")
            for pair in self._pairs:
                pair.worker.pause()

    def resume(self) -> None:
        if self._orders.paused:
            self._orders.paused = False
            log.info("capture is resumed")
            for pair in self._pairs:
                pair.worker.resume()

    # -- the run

    async def run(self) -> int:
        """0 after a clean stop or a take-over, 1 if the predecessor could not be replaced."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_stop, False)
        loop.add_signal_handler(signal.SIGINT, self._on_stop, True)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        loop.add_signal_handler(signal.SIGUSR1, self.pause)
        loop.add_signal_handler(signal.SIGUSR2, self.resume)
        status = 0
        keepers = [loop.create_task(pair.run()) for pair in self._pairs]
        sink = loop.create_task(self._mirrored.run())
        beside = [
            loop.create_task(self._watch()),
            loop.create_task(self._following.run()),
            loop.create_task(self._poller.run()),
            loop.create_task(watch_certificates(lambda: self.settings, self._reload_relays)),
        ]
        succession = loop.create_task(self._succeed())
        stop = loop.create_task(self._stopping())
        try:
            # All but the stop end only by a mistake of ours.
            await asyncio.wait({*keepers, sink, *beside, succession, stop}, return_when=asyncio.FIRST_COMPLETED)
            if succession.done() and not stop.done():
                status = succession.result()
                self._on_stop(True)
            await self._halt(keepers)
            self._mirrored.stop()
            await sink
        finally:
            for task in (*keepers, sink, *beside, succession, stop):
                task.cancel()
            self._mirrored.kill()
            for pair in self._pairs:
                pair.kill()
            await asyncio.gather(*beside, succession, stop, return_exceptions=True)
        if self._elsewhere is None:
            self.counters.settle()
        self._say(summary(self.counters.total(), len(self._pairs)))
        log.info("stopped", extra={"fields": {"log_lines_dropped": self._sink.dropped}})
        return status

    def _on_stop(self, at_once: bool) -> None:
        if at_once or self._asked_to_stop.is_set():
            self._at_once.set()
        self._asked_to_stop.set()

    async def _stopping(self) -> None:
        """Until it is time to stop accepting."""
        await self._asked_to_stop.wait()
        self.draining = True
        delay = self.settings.relay.drain_delay
        log.info("stopping", extra={"fields": {} if self._at_once.is_set() else {"accepting_for_seconds": delay}})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._at_once.wait()

    async def _halt(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        self.draining = True
        self._orders.stop.set()
        # The relays hold the sockets until they have accepted what waits there; then the kernel refuses.
        for one in self._listening:
            one.close(remove=not self._handed_over)
        await asyncio.gather(*keepers)

    async def _succeed(self) -> int:
        """Begin: become ready, take over, serve admin. Ends when a successor has taken over (0), or this one could not
        (1)."""
        await self._ready.wait()
        if self._predecessor is not None:
            try:
                await self._predecessor.taken()
            except TakeOverError as error:
                log.error("not taken over", extra={"fields": {"error": error}})
                return 1
            for one in self._listening:
                one.borrowed = False
            log.info("taken over")
            self._listen_for_workers()
        async with contextlib.AsyncExitStack() as stack:
            if self._admin is not None and not await self._serve_admin(stack, self._admin):
                return 1
            path = self.settings.takeover_socket
            if not path:
                await asyncio.Event().wait()
            try:
                takeover = TakeOverSocket(path)
            except OSError as error:
                log.error("takeover_socket cannot be used", extra={"fields": {"path": path, "error": error}})
                await asyncio.Event().wait()
            stack.callback(takeover.close)

            async def let_go() -> None:
                self._handed_over = True
                await stack.aclose()

            await takeover.serve(self._offered, let_go)
            log.info("a successor has taken over")
            return 0
        raise AssertionError("unreachable")

    def _listen_for_workers(self) -> None:
        """The predecessor's workers stay with it until it ends."""
        if self._elsewhere is not None:
            try:
                self._elsewhere.listen()
            except OSError as error:
                log.error("capture.worker_socket cannot be used", extra={"fields": {"error": error}})

    async def _serve_admin(self, stack: contextlib.AsyncExitStack, admin: Admin) -> bool:
        """False where it cannot listen and was asked to: a start without it is a mistake. A successor has the clients
        by now, and goes on."""
        try:
            await stack.enter_async_context(admin.serve(self))
        except OSError as error:
            asked = self.settings.admin.listen != DEFAULT_ADMIN and self._predecessor is None
            fields = {"listen": self.settings.admin.listen, "error": error.strerror or error}
            log.log(logging.ERROR if asked else logging.WARNING, "admin cannot listen", extra={"fields": fields})
            return not asked
        return True

    def _offered(self) -> Sequence[Listening]:
        """Everything accepts before it is handed over: the successor follows its model servers by itself."""
        for number in list(self._orders.refused):
            self._following.accept(number)
        return self._listening

    # -- signals

    def reload(self) -> None:
        """Read the settings again; what can take effect does, the rest is named."""
        if self._load is None:
            log.warning("nothing to reload: the sidecar was started without --config")
            return
        try:
            fresh = self._load()
            check_certificates(fresh)
            if self._admin is not None:
                self._admin.reload(fresh.admin)
        except SettingsError as error:
            log.error("settings not reloaded", extra={"fields": {"error": error}})
            return
        rest = needing_restart(self.settings, fresh)
        if len(fresh.listeners) != len(self.settings.listeners):
            log.error(
                "settings not reloaded",
                extra={"fields": {"error": "another number of listeners needs a restart or --take-over"}},
            )
            return
        fresh = kept(self.settings, fresh)
        worker, relay = worker_config(fresh, self._run_name), relay_config(fresh, self._mirrored.address)
        restart_workers = worker != self._orders.worker
        self.settings = fresh
        self._orders.heartbeat_timeout = fresh.relay.heartbeat_timeout
        self._orders.relay, self._orders.worker = relay, worker
        logging.getLogger().setLevel(fresh.log_level.upper())
        self._mirrored.reload(fresh)
        self._reload_relays()
        if restart_workers:
            for pair in self._pairs:
                pair.worker.restart()
        log.info("settings reloaded", extra={"fields": {"need_a_restart": ",".join(rest)} if rest else {}})

    def _reload_relays(self) -> None:
        for pair in self._pairs:
            pair.relay.reload()

    # -- what is said

    async def _watch(self) -> None:
        """Say what the capture does not: a worker that cannot start, losses that the store does not hear of."""
        clock = asyncio.get_running_loop().time
        watch = CaptureWatch(clock(), len(self._pairs))
        while True:
            for pair in self._pairs:
                pair.worker.look(clock())
            reading = self.paused or all(pair.worker.reading for pair in self._pairs)
            for line in watch.look(clock(), reading, self.counters.total()):
                self._say(line)
            await asyncio.sleep(WATCH_INTERVAL)

    @staticmethod
    def _say(line: Line) -> None:
        log.log(line.level, line.message, extra={"fields": line.fields})

    def _on_change(self) -> None:
        self._following.settle()
        if self._told_ready or not all(pair.relay.accepting and pair.worker.begun for pair in self._pairs):
            return
        self._told_ready = True
        self._ready.set()
        listeners = ",".join(one.name for one in self._listening)
        # Traffic does not wait for the capture; its worker says "reading" when it does.
        capture = "reading" if all(pair.worker.reading for pair in self._pairs) else "starting"
        log.info("ready", extra={"fields": {"listeners": listeners, "capture": capture}})
