"""The relay process. Started by the supervisor with inherited descriptors: configuration (JSON), control, counters.

What the two say to each other afterwards is in :mod:`proxy.control`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import socket
import ssl
import sys
from typing import Any, Literal

import msgspec

from capture.counters import SLOT, Counters
from capture.logline import LineFormatter
from capture.tap_writer import TapWriter
from proxy import address
from proxy import control as said
from proxy.deadlines import Deadlines, KeepAlive
from proxy.logs import PipeHandler
from proxy.relay import Relay, raise_descriptor_limit
from proxy.tls_contexts import RelayTls, RelayUpstreamTls, TlsError, UpstreamContexts, listen_context
from proxy.upstream import Upstream

log = logging.getLogger("relay")

#: Flow ids of one relay process; the generation stands above.
GENERATION_BITS = 40
#: Seconds that the last frames may take to reach a worker that reads.
TAP_DRAIN_SECONDS = 1.0


class RelayListener(msgspec.Struct, frozen=True):
    """A bound socket that the process inherits, and where its flows go."""

    fd: int
    upstream: str
    tls: RelayTls | None = None
    upstream_tls: RelayUpstreamTls | None = None

    def contexts(self) -> tuple[ssl.SSLContext | None, UpstreamContexts | None]:
        """Towards clients, and towards the model server. Raises TlsError."""
        to = self.upstream_tls
        return (
            None if self.tls is None else listen_context(self.tls),
            None
            if to is None
            else UpstreamContexts(to, address.parse(self.upstream), self.tls.alpn if self.tls else ()),
        )


class RelayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of one relay process, in seconds, bytes or counts. ``max_connections`` 0: what descriptors allow."""

    generation: int
    listeners: tuple[RelayListener, ...]
    max_connections: int = 0
    connect_timeout: float = Deadlines().connect
    first_byte_timeout: float = Deadlines().first_byte
    half_closed_timeout: float = Deadlines().half_closed
    closing_timeout: float = Deadlines().closing
    keepalive_idle: int = KeepAlive().idle
    keepalive_interval: int = KeepAlive().interval
    tcp_user_timeout: float = KeepAlive().user_timeout
    resolve_interval: float = 30.0
    tls_handshake_timeout: float = Deadlines().tls_handshake
    idle_timeout: float = Deadlines().idle
    drain_quiet: float = 1.0
    shutdown_timeout: float = 10.0
    tap_bytes: int = 64 << 20
    tap_frames: int = 16384
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop; plain asyncio is for development and says so."""
    try:
        import uvloop
    except ImportError:
        log.warning("uvloop is missing: plain asyncio is for development only")
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


async def run(config: RelayConfig, control: socket.socket, counters: Counters) -> None:
    """Relay until told to stop, or until the supervisor is gone."""
    loop = asyncio.get_running_loop()
    # A callback's exception goes the way of all log lines: asyncio's own handler would write to a blocking stderr.
    loop.set_exception_handler(_log_failure)
    tap = TapWriter(
        loop,
        counters.slots,
        first_flow=(config.generation << GENERATION_BITS) | 1,
        max_bytes=config.tap_bytes,
        max_frames=config.tap_frames,
    )
    relay = Relay(
        loop,
        tap,
        counters.slots,
        max_connections=_connections(config),
        deadlines=_deadlines(config),
        keep_alive=_keep_alive(config),
    )
    told = _Told(loop, control, relay, tap, config)
    for listener in config.listeners:
        tls, upstream_tls = listener.contexts()
        upstream = Upstream(
            address.parse(listener.upstream), resolve_interval=config.resolve_interval, tls=upstream_tls
        )
        await relay.listen(socket.socket(fileno=listener.fd), upstream, tls)
    relay.beat()
    told.begin()
    # What lives now lives for good; the rest is collected rarely, since a full collection is a pause for all flows.
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    await told.stopping.wait()
    await relay.stop(told.config.shutdown_timeout, told.config.drain_quiet)
    await tap.drain(TAP_DRAIN_SECONDS)
    tap.close()
    relay.still()


class _Told:
    """What the supervisor says, done."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        control: socket.socket,
        relay: Relay,
        tap: TapWriter,
        config: RelayConfig,
    ) -> None:
        self._loop = loop
        self._control = control
        self._relay = relay
        self._tap = tap
        self.config = config
        self.stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """Say ready, and listen."""
        self._control.setblocking(False)
        self._loop.add_reader(self._control, self._receive)
        self._say(said.READY)

    def _say(self, message: bytes) -> None:
        try:
            self._control.send(message)
        except OSError:  # the supervisor is gone, or does not listen: EOF or its heartbeat decides what follows
            log.error("the supervisor does not hear", extra={"fields": {"message": message.decode()}})

    def _receive(self) -> None:
        try:
            message, fds, _, _ = socket.recv_fds(self._control, said.MAX_MESSAGE, 4)
        except BlockingIOError:
            return
        except ConnectionError:  # the supervisor was killed with something unread
            message, fds = b"", []
        word, number = said.parse(message)
        if word in (said.DRAIN, b""):
            self._loop.remove_reader(self._control)
            self.stopping.set()
        elif word == said.TAP and fds:
            self._tap.attach(socket.socket(fileno=fds.pop()))
        elif word == said.DETACH:
            self._tap.detach()
        elif word == said.REFUSE and 0 <= number < len(self.config.listeners):
            self._relay.refuse(number)
            # The descriptor is closed when the loop has gone round.
            self._loop.call_soon(self._loop.call_soon, self._say, said.numbered(said.REFUSING, number))
        elif word == said.ACCEPT and 0 <= number < len(self.config.listeners):
            task = self._loop.create_task(self._relay.accept(number))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif word == said.RELOAD and fds:
            self._reload(fds.pop())
        else:
            # No descriptor was free for it, or the two are of different versions. The flows go on; the worker finds
            # its tap closed, and the next one gets a new one.
            log.error("control message without use", extra={"fields": {"length": len(message), "fds": len(fds)}})
        for fd in fds:
            os.close(fd)

    def _reload(self, fd: int) -> None:
        with open(fd, "rb") as file:
            fresh = msgspec.json.decode(file.read(), type=RelayConfig)
        # Sockets, tap and generation are the ones that this process was started with.
        same = {name: getattr(self.config, name) for name in ("generation", "listeners", "tap_bytes", "tap_frames")}
        for number, listener in enumerate(fresh.listeners):
            try:
                self._relay.secure(number, *listener.contexts())
            except TlsError as error:
                # The supervisor read them a moment ago. What is in use stays in use.
                log.error("certificates not read again", extra={"fields": {"listener": number, "error": error}})
        self.config = config = msgspec.structs.replace(fresh, **same)
        self._relay.change(
            max_connections=_connections(config), deadlines=_deadlines(config), keep_alive=_keep_alive(config)
        )
        logging.getLogger().setLevel(config.log_level.upper())


def _connections(config: RelayConfig) -> int:
    fit = raise_descriptor_limit()
    return min(config.max_connections or fit, fit)


def _deadlines(config: RelayConfig) -> Deadlines:
    return Deadlines(
        config.connect_timeout,
        config.first_byte_timeout,
        config.half_closed_timeout,
        config.closing_timeout,
        config.tls_handshake_timeout,
        config.idle_timeout,
    )


def _keep_alive(config: RelayConfig) -> KeepAlive:
    return KeepAlive(config.keepalive_idle, config.keepalive_interval, config.tcp_user_timeout)


def _log_failure(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log.error(str(context.get("message")), extra={"fields": {"cause": repr(context.get("exception"))}})


def main() -> None:
    """``python -m proxy.relay_main --config-fd N --control-fd N --counters-fd N``; stderr is the log pipe."""
    parser = argparse.ArgumentParser()
    for name in ("config", "control", "counters"):
        parser.add_argument(f"--{name}-fd", type=int, required=True)
    parser.add_argument("--pair", type=int, default=0)
    options = parser.parse_args()
    with open(options.config_fd, "rb") as file:
        config = msgspec.json.decode(file.read(), type=RelayConfig)
    counters = Counters(options.counters_fd, options.pair)
    os.set_blocking(sys.stderr.fileno(), False)
    dropped = SLOT["relay_log_dropped"]
    handler = PipeHandler(sys.stderr.fileno(), counters.slots[dropped : dropped + 1])
    handler.setFormatter(LineFormatter("relay"))
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run(config, socket.socket(fileno=options.control_fd), counters))


if __name__ == "__main__":
    main()
