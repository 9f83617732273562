"""A relay in this process, on a loop of its own thread, for tests that talk to it with plain blocking sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvloop

from capture.counters import Counters
from capture.tap_writer import TapWriter
from proxy.address import Address
from proxy.deadlines import Deadlines, KeepAlive
from proxy.relay import Relay
from proxy.tls_contexts import UpstreamContexts
from proxy.upstream import Upstream
from tests.support.waiting import PATIENCE, until

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


class RelayThread:
    """Runs one :class:`Relay` in front of one upstream address."""

    def __init__(
        self,
        loop: str,
        upstream: Address,
        deadlines: Deadlines,
        max_connections: int = 1000,
        *,
        tap_bytes: int = 64 << 20,
        tls: ssl.SSLContext | None = None,
        upstream_tls: UpstreamContexts | None = None,
    ) -> None:
        self.counters = Counters.create()
        self._loop = LOOPS[loop]()
        self.errors: list[dict[str, Any]] = []
        self._loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self.tap = TapWriter(self._loop, self.counters.slots, max_bytes=tap_bytes, max_frames=1 << 20)
        self.relay = Relay(
            self._loop,
            self.tap,
            self.counters.slots,
            max_connections=max_connections,
            deadlines=deadlines,
            keep_alive=KeepAlive(),
        )
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.call(self.relay.listen(listener, Upstream(upstream, tls=upstream_tls), tls))

    def call(self, work: Any) -> Any:
        """Run a coroutine on the relay's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def _attach(self, sock: socket.socket) -> None:
        self.tap.attach(sock)

    def attach(self, sock: socket.socket) -> None:
        self.call(self._attach(sock))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def count(self, name: str) -> int:
        return self.counters.snapshot()[name]

    def ended(self, reason: str, times: int = 1) -> None:
        """Wait until so many flows ended for this reason."""
        try:
            until(lambda: self.count(f"flows_closed_{reason}") == times)
        except AssertionError:
            closed = {k: v for k, v in self.counters.snapshot().items() if k.startswith("flows_closed") and v}
            raise AssertionError(f"no flow ended as {reason}: {closed}") from None

    async def _stop(self) -> None:
        await self.relay.stop(0)
        self.tap.detach()

    def stop(self) -> None:
        self.call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextlib.contextmanager
def server(handle: Callable[[socket.socket], None]) -> Iterator[Address]:
    """A server that handles each connection in a thread of its own; it closes what the handler leaves open."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def one(sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        with sock, contextlib.suppress(ConnectionError):
            handle(sock)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=one, args=(sock,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield Address("127.0.0.1", listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join()


def receive_all(sock: socket.socket) -> bytes:
    """Until EOF; ConnectionResetError passes."""
    chunks = []
    while data := sock.recv(1 << 20):
        chunks.append(data)
    return b"".join(chunks)


def receive_until_end(sock: socket.socket) -> tuple[bytes, bool]:
    """What arrived, and whether it ended with EOF rather than a reset."""
    chunks = []
    try:
        while data := sock.recv(1 << 20):
            chunks.append(data)
    except ConnectionError:
        return b"".join(chunks), False
    return b"".join(chunks), True


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
