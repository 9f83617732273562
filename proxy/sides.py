"""The two protocols of a flow: what to do with bytes, EOF, a full peer and a lost connection."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, cast

if TYPE_CHECKING:
    from proxy.flow import Flow
    from proxy.tls import TlsEnd

_LINGER_RESET: Final = struct.pack("ii", 1, 0)
#: tcpi_state, the first byte of struct tcp_info: nothing is left of the connection (<netinet/tcp.h>).
_TCP_CLOSE: Final = b"\x07"
#: Bytes per recv when a socket that failed is emptied.
_DRAIN_CHUNK: Final = 256 << 10


class Transport(Protocol):
    """What is used of a stream transport; asyncio's and uvloop's share no base class."""

    def write(self, data: bytes) -> None: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def get_extra_info(self, name: str) -> Any: ...


class Side(asyncio.Protocol):
    """One end of a flow. ``write`` is the other end's, or None while there is nobody to write to."""

    __slots__ = ("eof", "flow", "lost", "tls", "transport", "write")

    #: Why a flow ends that this end has broken.
    RESET: ClassVar[str]

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.transport: Transport | None = None
        #: The transport, where this end speaks TLS.
        self.tls: TlsEnd | None = None
        self.write: Callable[[bytes], None] | None = None
        #: This end sends no more.
        self.eof = False
        #: connection_lost was called.
        self.lost = False

    @property
    def was_cut(self) -> bool:
        """The other end was cut off before this one had ended, and this one was told, as only TLS can tell: FIN, and no
        close_notify before it. OpenSSL's answer is an alert (decode_error)."""
        return self.tls is not None and self.tls.was_cut

    def reset(self) -> None:
        """A real RST: abort() alone sends FIN, and a cut response would look complete."""
        if self.transport is not None and not self.lost:
            sock = self.transport.get_extra_info("socket")
            if sock.family != socket.AF_UNIX:
                try:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.EBADF):
                        raise
            self.transport.abort()

    def release(self) -> None:
        """The flow is over. What OpenSSL keeps of a connection would else wait for the collector of cycles."""
        self.transport = self.tls = self.write = None

    def unsent(self) -> int:
        """Bytes that the peer's kernel has not acknowledged, here or in our kernel; 0 where it never will."""
        if self.transport is None or self.lost:
            return 0
        sock = self.transport.get_extra_info("socket")
        # After a reset the count stays as it was, and while reading is paused nobody hears of the reset.
        if sock.family != socket.AF_UNIX and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == _TCP_CLOSE:
            return 0
        count = bytearray(4)
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, count)
        return self.transport.get_write_buffer_size() + int.from_bytes(count, "little")

    def left_over(self) -> tuple[list[bytes], bool]:
        """What a failed connection had sent and nobody has read, and whether it ended with FIN (TLS: close_notify).

        uvloop closes when its write fails, with the server's early answer still in the kernel; inside connection_lost
        the descriptor is open.
        """
        assert self.transport is not None
        chunks: list[bytes] = []
        ended = self._empty(chunks)
        return (chunks, ended) if self.tls is None else self.tls.plain(chunks)

    def _empty(self, chunks: list[bytes]) -> bool:
        """Read what the kernel has; whether it ends with FIN."""
        assert self.transport is not None
        with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as sock:
            sock.setblocking(False)
            try:
                while data := sock.recv(_DRAIN_CHUNK):
                    chunks.append(data)
            except OSError:
                return False
        return True

    def pause(self) -> None:
        """Stop reading: the other end does not take more."""
        if self.transport is not None and not self.lost:
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        # After EOF there is nothing to read, and libuv leaves reading on undefined.
        if self.transport is not None and not self.lost and not self.eof:
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.flow.lost(self, exc)

    def gone_unsaid(self) -> bool:
        """Whether the connection is closed though connection_lost was not called; it then counts as lost. uvloop does
        so to a connect that is cancelled, or is out of time, after connection_made and before its caller runs on."""
        if self.transport is None or self.lost or self.transport.get_extra_info("socket").fileno() >= 0:
            return False
        self.lost = True
        return True

    def blame(self, exc: Exception | None) -> str:
        """Why the flow ends, where this connection broke."""
        broken = isinstance(exc, ConnectionError) or (isinstance(exc, OSError) and exc.errno == errno.ENOTCONN)
        return self.RESET if broken or exc is None else "peer_gone"


class ClientSide(Side):
    """The accepted connection."""

    __slots__ = ()
    RESET = "client_reset"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(Transport, transport)
        self.flow.accepted(self.transport)

    def data_received(self, data: bytes) -> None:
        write, flow = self.write, self.flow
        if write is None:
            flow.early_data(data)
            return
        write(data)
        flow.tap.client(flow.tapped, data)

    def eof_received(self) -> bool:
        self.flow.client_eof()
        return True  # stays open for the answer

    def eof_without_notice(self) -> None:
        """TLS: FIN, and no close_notify before it."""
        self.flow.client_eof()

    def pause_writing(self) -> None:
        self.flow.server.pause()

    def resume_writing(self) -> None:
        self.flow.server.resume()


class ServerSide(Side):
    """The connection to the model server."""

    __slots__ = ()
    RESET = "server_reset"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(Transport, transport)
        self.flow.connected(self.transport)

    def data_received(self, data: bytes) -> None:
        write, flow = self.write, self.flow
        if write is None:
            return  # the client is gone
        write(data)
        flow.tap.server(flow.tapped, data)

    def eof_received(self) -> bool:
        self.flow.server_eof()
        return True

    def eof_without_notice(self) -> None:
        """TLS: FIN, and no close_notify before it."""
        self.flow.server_cut()

    def pause_writing(self) -> None:
        self.flow.client.pause()

    def resume_writing(self) -> None:
        self.flow.client.resume()
