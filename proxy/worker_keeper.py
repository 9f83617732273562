"""One capture worker after the other: started here or connected from elsewhere.

The tap outlives a worker that died: the next one reads on (:mod:`proxy.worker_tap`). When the relay ends or detaches,
the worker meets EOF, ends too, and its successor gets a new tap; so does one that connects from elsewhere long after
the last one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from capture.config import WORKER_CLOSE_SECONDS
from capture.counters import Counters
from capture.status_board import StatusBoard
from proxy import control as said
from proxy.child import Child
from proxy.keeping import Orders, inherited, keep
from proxy.logs import LineSink
from proxy.relay_keeper import RelayKeeper
from proxy.sidecar import WorkerState
from proxy.worker_socket import WorkerSocket
from proxy.worker_tap import WorkerTap

log = logging.getLogger("supervisor")

WORKER_COMMAND: Final = (sys.executable, "-P", "-m", "capture.worker")
#: Seconds that a worker may take for what it has read after its tap ended: it gives up by itself before.
WORKER_GRACE: Final = WORKER_CLOSE_SECONDS + 4.0
WORKER_NICE: Final = 10
#: Seconds without reading what waits, after which a worker is called stuck, and killed. The slowest thing that it does
#: for one read is well below a second; a machine without CPU to spare may stop it for longer.
STUCK_SECONDS: Final = 5.0
KILL_SECONDS: Final = 60.0
LOOK_LATE_SECONDS: Final = 4.0
#: Seconds that the tap of a worker elsewhere waits for the next one, filling up to its bound; a container that starts
#: anew takes less. Then it is given up, and what it holds is counted as lost.
HOLD_SECONDS: Final = 60.0


class WorkerKeeper:
    """Keeps a capture worker reading until ``orders.stop``."""

    def __init__(
        self,
        number: int,
        *,
        relay: RelayKeeper,
        orders: Orders,
        counters: Counters,
        sink: LineSink,
        changed: Callable[[], None],
        command: Sequence[str] = WORKER_COMMAND,
        elsewhere: WorkerSocket | None = None,
        board: StatusBoard | None = None,
    ) -> None:
        """``number`` of the pair, ``relay`` the other half of it. ``board``: where it learns what model servers say of
        their versions. ``elsewhere``: where workers connect that are not
        started here."""
        self._number = number
        self._which = orders.which(number)
        self._relay = relay
        self._orders = orders
        self._counters = counters
        self._sink = sink
        self._changed = changed
        self._command = command
        self._elsewhere = elsewhere
        self._board = board
        self._child: Child | None = None
        self._link: socket.socket | None = None
        #: The tap that one worker after the other reads.
        self._held: WorkerTap | None = None
        #: The relay's end of the tap, while there is no relay to send it to.
        self._tap: socket.socket | None = None
        #: ``worker_ready`` when the worker was started: above it, this one reads.
        self._ready_before = 0
        self._resumed = asyncio.Event()
        self._resumed.set()
        #: Frames that it had read at the last look, and when that was another number, or nothing waited.
        self._frames = -1
        self._moved_at = 0.0
        self._looked_at = 0.0
        self._stuck = False

    @property
    def pid(self) -> int:
        """0 where there is none, or it runs elsewhere."""
        return 0 if self._child is None else self._child.pid

    @property
    def begun(self) -> bool:
        """There is one, reading or about to, or none is to be started here."""
        return self._child is not None or self._elsewhere is not None

    @property
    def reading(self) -> bool:
        """It has begun to read."""
        present = self._child is not None or self._link is not None
        return present and self._counters.snapshot()["worker_ready"] > self._ready_before

    @property
    def state(self) -> WorkerState:
        """For health and API."""
        if self._elsewhere is not None and self._link is None:
            return "waiting"
        if self._stuck:
            return "stuck"
        if self._elsewhere is not None:
            return "external"
        return "reading" if self.reading else "none" if self._child is None else "starting"

    def look(self, now: float) -> None:
        """To be called every second or so: is it stuck? One that was started here is killed in the end; the next one
        reads on."""
        counts = self._counters.snapshot()
        waits = any(
            counts[f"{side}_bytes"] > counts[f"tap_{side}_bytes"] + counts[f"tap_lost_{side}_bytes"]
            for side in ("client", "server")
        )
        # Much later than a second: it is this process that was stopped.
        late = now - self._looked_at > LOOK_LATE_SECONDS
        self._looked_at = now
        if counts["tap_frames"] != self._frames or not waits or not self.reading or late:
            self._frames, self._moved_at, self._stuck = counts["tap_frames"], now, False
            return
        still = now - self._moved_at
        if still > STUCK_SECONDS and not self._stuck:
            self._stuck = True
            log.error("worker does not read what waits for it", extra={"fields": {"pid": self.pid, **self._which}})
        if still > KILL_SECONDS and self._child is not None:
            log.error("worker is stuck; it is killed", extra={"fields": {"pid": self.pid, **self._which}})
            self._child.signal_kill()
            self._moved_at = now

    def restart(self) -> None:
        """The present worker writes what it has and ends; while capture is paused none follows."""
        self._drop_tap()
        self._relay.say(said.DETACH)

    def pause(self) -> None:
        """Detach the tap; flows go on."""
        self._resumed.clear()
        self.restart()

    def resume(self) -> None:
        """Start a worker again."""
        self._resumed.set()

    def relay_died(self) -> None:
        """The worker meets EOF and ends; one that does not (stopped, stuck) is killed."""
        self._drop_tap()
        if self._child is not None:
            asyncio.get_running_loop().call_later(WORKER_GRACE, self._child.signal_kill)

    def send_tap(self) -> None:
        """Give the tap to a relay that is ready, if there is one that it has not got."""
        if self._tap is not None and self._relay.say(said.TAP, self._tap.fileno()):
            self._drop_tap()

    def kill(self) -> None:
        """SIGKILL, if it was started here and runs."""
        if self._child is not None:
            self._child.signal_kill()

    async def run(self) -> None:
        """Until it has ended after a stop."""
        await keep(self._orders.stop, self._run)
        self._end_held()

    async def _run(self, _: int) -> None:
        """Have one worker with a tap of its own, and return when it has ended."""
        if not self._resumed.is_set():
            loop = asyncio.get_running_loop()
            resumed = loop.create_task(self._resumed.wait())
            stop = loop.create_task(self._orders.stop.wait())
            await asyncio.wait({resumed, stop}, return_when=asyncio.FIRST_COMPLETED)
            resumed.cancel()
            stop.cancel()
        elif self._elsewhere is not None:
            await self._run_elsewhere(self._elsewhere)
        else:
            await self._run_here()

    def _config(self) -> int:
        config = self._orders.worker
        return inherited(msgspec.json.encode(msgspec.structs.replace(config, run=f"{config.run}-{self._number}")))

    def _shared(self) -> dict[str, int]:
        """Memory that outlives a worker."""
        return {"counters": self._counters.fd, **({} if self._board is None else {"status": self._board.fd})}

    async def _run_here(self) -> None:
        loop = asyncio.get_running_loop()
        self._judge_held()
        held, fresh = self._tap_to_lend()
        fds = {**held.worker_fds(), **self._shared(), "config": self._config()}
        try:
            child = await Child.start(
                (
                    *self._command,
                    *(f"--{name}-fd={fd}" for name, fd in fds.items()),
                    *("--pair", str(self._number)),
                ),
                fds=list(fds.values()),
                put_line=self._sink.put,
                nice=WORKER_NICE,
            )
        except OSError as error:
            if fresh:
                held.relay_end.close()
                held.close()
            log.error("worker cannot start", extra={"fields": {"error": error}})
            return
        finally:
            os.close(fds["config"])
        self._held = held
        self._child = child
        self._counters.add("worker_starts")
        log.info("worker started", extra={"fields": {"pid": child.pid, **self._which}})
        if fresh:
            self._begin_tap(held.relay_end)
        else:
            self._changed()
        ended = loop.create_task(child.wait())
        if not await self._until_stopped(ended):
            log.error("worker does not stop", extra={"fields": {"pid": child.pid}})
            child.signal_kill()
        status = await ended
        self._child = None
        level = logging.INFO if status == 0 else logging.ERROR
        log.log(
            level,
            "worker ended",
            extra={"fields": {"pid": child.pid, "status": status, **self._which}},
        )
        self._changed()

    async def _next_link(self, elsewhere: WorkerSocket) -> socket.socket | None:
        """A worker that has connected; None: a stop came first. The tap of the last one waits for it, but not for
        ever."""
        loop = asyncio.get_running_loop()
        arrival = loop.create_task(elsewhere.next())
        stop = loop.create_task(self._orders.stop.wait())
        waiting: set[asyncio.Task[socket.socket] | asyncio.Task[bool]] = {arrival, stop}
        timeout = None if self._held is None else HOLD_SECONDS
        done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            log.warning("no worker came to read on; the tap is given up", extra={"fields": self._which})
            self._end_held()
            self._relay.say(said.DETACH)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not arrival.done():
            arrival.cancel()
            return None
        return arrival.result()

    async def _run_elsewhere(self, elsewhere: WorkerSocket) -> None:
        """One worker that connected, for as long as its connection stays."""
        loop = asyncio.get_running_loop()
        self._judge_held()
        link = await self._next_link(elsewhere)
        if link is None:
            return
        held, fresh = self._tap_to_lend()
        config_fd = self._config()
        try:
            elsewhere.hand_over(link, self._number, {**held.worker_fds(), **self._shared(), "config": config_fd})
        except OSError as error:
            if fresh:
                held.relay_end.close()
                held.close()
            link.close()
            log.error("worker that connected is gone", extra={"fields": {"error": error}})
            return
        finally:
            os.close(config_fd)
        self._held = held
        with link:
            self._link = link
            self._counters.add("worker_starts")
            log.info("worker connected", extra={"fields": self._which})
            if fresh:
                self._begin_tap(held.relay_end)
            else:
                self._changed()
            ended = loop.create_task(elsewhere.end_of(link))
            if not await self._until_stopped(ended):
                log.error("worker that connected does not stop", extra={"fields": self._which})
                ended.cancel()
            self._link = None
        log.info("worker disconnected", extra={"fields": self._which})
        self._changed()

    def _judge_held(self) -> None:
        """To be called once when a worker has ended: its tap is given up where the next one cannot read on."""
        counts = self._counters.snapshot()
        began = counts["worker_ready"] > self._ready_before
        if self._held is not None and not self._held.serves_another(counts["tap_frames"], began):
            self._end_held()

    def _tap_to_lend(self) -> tuple[WorkerTap, bool]:
        """The tap that the next worker gets, and whether it is a new one, of which the relay must hear."""
        counts = self._counters.snapshot()
        self._ready_before = counts["worker_ready"]
        if self._held is not None and self._held.ended:
            self._end_held()
        return (WorkerTap(counts["tap_frames"]), True) if self._held is None else (self._held, False)

    def _end_held(self) -> None:
        if self._held is not None:
            self._drop_tap()
            self._held.close()
            self._held = None

    def _begin_tap(self, ours: socket.socket) -> None:
        self._drop_tap()
        self._tap = ours
        if self._orders.paused:
            self._drop_tap()
        self.send_tap()
        self._changed()

    async def _until_stopped(self, ended: asyncio.Task[int] | asyncio.Task[None]) -> bool:
        """Until the worker has ended, of itself or after a stop. False: it has not, in the time that it was given."""
        stop = asyncio.get_running_loop().create_task(self._orders.stop.wait())
        waiting: set[asyncio.Task[int] | asyncio.Task[None] | asyncio.Task[bool]] = {ended, stop}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not ended.done():
            # The relay goes first: the tap then ends, and the worker writes what it has.
            while self._relay.pid and not ended.done():
                await asyncio.wait({ended}, timeout=0.02)
            self._drop_tap()
            await asyncio.wait({ended}, timeout=WORKER_GRACE)
        return ended.done()

    def _drop_tap(self) -> None:
        if self._tap is not None:
            self._tap.close()
            self._tap = None
