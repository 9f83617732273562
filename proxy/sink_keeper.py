"""Keeps what answers mirrored traffic running, and has the kernel refuse copies while it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec

from proxy import sink_main
from proxy.address import Address
from proxy.child import Child
from proxy.keeping import QUICK_SECONDS, inherited, keep
from proxy.listening import Listening
from proxy.logs import LineSink
from proxy.relay import BACKLOG
from proxy.settings import Settings
from proxy.sink import SinkConfig

log = logging.getLogger("supervisor")

SINK_COMMAND: Final = (sys.executable, "-P", "-m", "proxy.sink_main")
#: Seconds that it has to become ready, and to end.
SINK_GRACE: Final = 10.0


def sink_config(settings: Settings) -> SinkConfig:
    """What the process is told."""
    sink, limits = settings.sink, settings.capture.limits
    return SinkConfig(sink.max_connections, limits.request_bytes, sink.request_timeout, settings.log_level)


class SinkKeeper:
    """Keeps it running until ``stop``. The relays connect to ``address``, on loopback: a stranger there meets a server
    that says 200 and keeps nothing."""

    def __init__(self, settings: Settings, sink: LineSink, *, command: Sequence[str] = SINK_COMMAND) -> None:
        """Binds the socket, if a listener is of mode sink; otherwise there is nothing to keep. Raises OSError."""
        self.config = sink_config(settings)
        self._heartbeat_timeout = settings.relay.heartbeat_timeout
        self._lines = sink
        self._command = command
        needed = any(listener.mode == "sink" for listener in settings.listeners)
        self._listening = _bind() if needed else None
        self.address = "" if self._listening is None else self._listening.name
        self._stop = asyncio.Event()
        self._restarting = asyncio.Event()
        self._child: Child | None = None

    def reload(self, settings: Settings) -> None:
        """The settings have changed: the process is started anew, and copies wait for it, if they are other."""
        self._heartbeat_timeout = settings.relay.heartbeat_timeout
        fresh = sink_config(settings)
        if fresh != self.config:
            self.config = fresh
            self._restarting.set()

    def stop(self) -> None:
        """End it: no relay is left."""
        self._stop.set()
        self._restarting.set()

    def kill(self) -> None:
        """SIGKILL, if it runs; and the socket is closed."""
        if self._child is not None:
            self._child.signal_kill()
        if self._listening is not None:
            self._listening.close(remove=True)

    async def run(self) -> None:
        """Until it has ended after a stop."""
        if self._listening is None:
            await self._stop.wait()
        else:
            await keep(self._stop, partial(self._run, self._listening))

    async def _run(self, listening: Listening, _: int) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._restarting.clear()
        if self._stop.is_set():
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.setblocking(False)
            child = await self._start(theirs, listening.sock.fileno())
            if child is None:
                listening.refuse()
                return
            self._child = child
            ended = loop.create_task(child.wait())
            asked = loop.create_task(self._restarting.wait())
            heart = loop.create_task(self._watch_heart(ours, child, listening))
            await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
            asked_to_end = asked.done()
            heart.cancel()
            asked.cancel()
        # Closed: it ends, if it has not.
        if not ended.done():
            await asyncio.wait({ended}, timeout=SINK_GRACE)
            child.signal_kill()
        status = await ended
        self._child = None
        fields = {"pid": child.pid, "status": status}
        if asked_to_end:
            log.info("sink ended", extra={"fields": fields})
            return
        log.error("sink died: mirrored connections were reset", extra={"fields": fields})
        if loop.time() - began < QUICK_SECONDS:
            # The next one may die as well: whoever mirrors is told so, and does not wait.
            listening.refuse()

    async def _start(self, theirs: socket.socket, listen_fd: int) -> Child | None:
        config_fd = inherited(msgspec.json.encode(self.config))
        try:
            return await Child.start(
                (
                    *self._command,
                    *("--config-fd", str(config_fd)),
                    *("--control-fd", str(theirs.fileno())),
                    *("--listen-fd", str(listen_fd)),
                ),
                fds=[config_fd, theirs.fileno(), listen_fd],
                put_line=self._lines.put,
            )
        except OSError as error:
            log.error("sink cannot start", extra={"fields": {"error": error}})
            return None
        finally:
            os.close(config_fd)
            theirs.close()

    async def _watch_heart(self, control: socket.socket, child: Child, listening: Listening) -> None:
        """Until it is cancelled. One that is silent for too long is killed."""
        loop = asyncio.get_running_loop()
        patience = SINK_GRACE
        with contextlib.suppress(OSError):
            while True:
                try:
                    async with asyncio.timeout(patience or None):
                        message = await loop.sock_recv(control, 64)
                except TimeoutError:
                    log.error("sink is stuck: no heartbeat; it is killed", extra={"fields": {"pid": child.pid}})
                    child.signal_kill()
                    return
                if not message:
                    return
                if message == sink_main.READY:
                    listening.accept()
                    log.info("sink started", extra={"fields": {"pid": child.pid}})
                patience = self._heartbeat_timeout


def _bind() -> Listening:
    """A free port of loopback that can be refused and come back. The kernel gives a port that it chose itself away when
    the socket stops to listen; one that was asked for stays, so it is asked for once more."""
    with socket.socket() as chosen:
        chosen.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        chosen.bind(("127.0.0.1", 0))
        where = Address(*chosen.getsockname())
        sock = socket.socket()
        # Both are bound at a time, and none listens: nobody else can take it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((where.host, where.port))
    sock.listen(BACKLOG)
    return Listening(where, sock)
