"""One relay after the other: started with the listening sockets, watched, replaced when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from capture.counters import Counters
from proxy import control as said
from proxy.child import Child
from proxy.keeping import Orders, inherited, keep
from proxy.logs import LineSink

log = logging.getLogger("supervisor")

RELAY_COMMAND: Final = (sys.executable, "-P", "-m", "proxy.relay_main")
#: Seconds beyond shutdown_timeout that the relay may take to stop, and a starting relay to say ready.
RELAY_GRACE: Final = 5.0
#: Seconds between looks at a relay's heartbeat. Later than twice this, it is the supervisor that was stopped.
HEARTBEAT_LOOK: Final = 1.0


class RelayKeeper:
    """Keeps a relay running until ``orders.stop``."""

    def __init__(
        self,
        number: int,
        *,
        sockets: Sequence[socket.socket],
        orders: Orders,
        counters: Counters,
        sink: LineSink,
        on_ready: Callable[[], None],
        on_death: Callable[[], None],
        changed: Callable[[], None],
        command: Sequence[str] = RELAY_COMMAND,
    ) -> None:
        """``number`` of the pair. ``on_death``: it ended and was not told to."""
        self._number = number
        self._which = orders.which(number)
        self._sockets = sockets
        self._orders = orders
        self._counters = counters
        self._sink = sink
        self._on_ready = on_ready
        self._on_death = on_death
        self._changed = changed
        self._command = command
        self._child: Child | None = None
        self._control: socket.socket | None = None
        #: Listeners that it has stopped to accept on.
        self.refusing: set[int] = set()

    @property
    def pid(self) -> int:
        """0 where there is none."""
        return 0 if self._child is None else self._child.pid

    @property
    def accepting(self) -> bool:
        """It is ready, and can be told."""
        return self._control is not None

    def say(self, message: bytes, fd: int | None = None) -> bool:
        """Tell it; False if there is none, or it is ending: the next one is started with what is true then."""
        if self._control is None:
            return False
        try:
            if fd is None:
                self._control.send(message)
            else:
                socket.send_fds(self._control, [message], [fd])
        except OSError:
            return False
        return True

    def reload(self) -> None:
        """Its configuration has changed."""
        fd = inherited(msgspec.json.encode(self._orders.relay))
        try:
            self.say(said.RELOAD, fd)
        finally:
            os.close(fd)

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self._child is not None:
            self._child.signal_kill()

    async def run(self) -> None:
        """Until it has ended after a stop."""
        await keep(self._orders.stop, self._run)

    async def _run(self, generation: int) -> None:
        """Start one relay, serve it, and return when it has ended."""
        loop, stop_event = asyncio.get_running_loop(), self._orders.stop
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = await self._start(generation, theirs)
        if child is None:
            ours.close()
            return
        self._child = child
        self._counters.add("relay_starts")
        log.info(
            "relay started",
            extra={"fields": {"pid": child.pid, "generation": generation, **self._which}},
        )
        self._changed()
        ended = loop.create_task(child.wait())
        stop = loop.create_task(stop_event.wait())
        with ours:
            ours.setblocking(False)
            hello = loop.create_task(loop.sock_recv(ours, said.MAX_MESSAGE))
            await asyncio.wait({ended, stop, hello}, timeout=RELAY_GRACE, return_when=asyncio.FIRST_COMPLETED)
            if hello.done() and not hello.cancelled() and hello.exception() is None and hello.result() == said.READY:
                self._control = ours
                await self._serve(child, ended, stop)
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
                await self._stop(ours, child, ended)
            status = await ended
            self._control = None
        stop.cancel()
        self._child = None
        self.refusing.clear()
        fields = {"pid": child.pid, "status": status, **self._which}
        if stop_event.is_set():
            log.info("relay ended", extra={"fields": fields})
        else:
            log.error("relay died", extra={"fields": fields})
            self._on_death()
        self._changed()

    async def _start(self, generation: int, theirs: socket.socket) -> Child | None:
        fds = [sock.fileno() for sock in self._sockets]
        config = self._orders.relay
        config = msgspec.structs.replace(
            config,
            generation=generation,
            listeners=tuple(
                msgspec.structs.replace(listener, fd=fd) for listener, fd in zip(config.listeners, fds, strict=True)
            ),
        )
        config_fd = inherited(msgspec.json.encode(config))
        try:
            return await Child.start(
                (
                    *self._command,
                    *("--config-fd", str(config_fd)),
                    *("--control-fd", str(theirs.fileno())),
                    *("--counters-fd", str(self._counters.fd)),
                    *("--pair", str(self._number)),
                ),
                fds=[*fds, config_fd, theirs.fileno(), self._counters.fd],
                put_line=self._sink.put,
            )
        except OSError as error:
            log.error("relay cannot start", extra={"fields": {"error": error}})
            return None
        finally:
            os.close(config_fd)
            theirs.close()

    async def _serve(self, child: Child, ended: asyncio.Task[int], stop: asyncio.Task[bool]) -> None:
        """While it is ready: hand it the tap, hear it, and look for its heartbeat."""
        loop = asyncio.get_running_loop()
        control = self._control
        assert control is not None
        for number in self._orders.refused:
            self.say(said.numbered(said.REFUSE, number))
        self._on_ready()
        self._changed()
        hear = loop.create_task(self._hear(control))
        heart = loop.create_task(self._watch_heart(child))
        try:
            await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hear.cancel()
            heart.cancel()
            await asyncio.wait({hear, heart})

    async def _hear(self, control: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while message := await loop.sock_recv(control, said.MAX_MESSAGE):
                word, number = said.parse(message)
                if word == said.REFUSING:
                    self.refusing.add(number)
                    self._changed()

    async def _watch_heart(self, child: Child) -> None:
        clock = asyncio.get_running_loop().time
        beats, since, looked = -1, clock(), clock()
        while True:
            await asyncio.sleep(HEARTBEAT_LOOK)
            now, count = clock(), self._counters.snapshot()["relay_beats"]
            if count != beats or now - looked > 2 * HEARTBEAT_LOOK:
                beats, since = count, now
            looked = now
            timeout = self._orders.heartbeat_timeout
            if timeout and now - since > timeout:
                log.error(
                    "relay is stuck: no heartbeat; it is killed",
                    extra={
                        "fields": {
                            "pid": child.pid,
                            "seconds": round(now - since, 1),
                            **self._which,
                        }
                    },
                )
                child.signal_kill()
                since = now

    async def _stop(self, control: socket.socket, child: Child, ended: asyncio.Task[int]) -> None:
        try:
            control.send(said.DRAIN)
        except OSError:
            child.signal_kill()
        await asyncio.wait({ended}, timeout=self._orders.relay.shutdown_timeout + RELAY_GRACE)
        if not ended.done():
            child.signal_kill()
