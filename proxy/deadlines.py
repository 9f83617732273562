"""How long what may take in a flow, and how a peer that vanished is found."""

from __future__ import annotations

import socket
from typing import NamedTuple


class Deadlines(NamedTuple):
    """Seconds; 0 is never. Each ends in a reset of both sides."""

    #: From accept until an upstream address has accepted.
    connect: float = 5.0
    #: From the client's first byte until the server's; noticed after once to twice the time. A cold graph build may
    #: take minutes, so it is off unless asked for.
    first_byte: float = 0.0
    #: One side has ended and nothing has moved for this long.
    half_closed: float = 600.0
    #: Both sides have ended and what is unsent does not get less.
    closing: float = 30.0
    #: From accept until the client's TLS handshake is complete.
    tls_handshake: float = 10.0
    #: Nothing has moved in either direction for this long.
    idle: float = 0.0


class KeepAlive(NamedTuple):
    """How a peer that vanished is found. Seconds; 0 leaves the kernel's own."""

    #: Quiet time before the first probe, and between probes; five unanswered probes end the connection.
    idle: int = 60
    interval: int = 15
    #: TCP_USER_TIMEOUT: sent data unacknowledged, or the peer's window closed, for this long.
    user_timeout: float = 120.0

    def apply(self, sock: socket.socket) -> None:
        """Set the options. Accepted sockets inherit them from their listener, at no cost per connection."""
        if sock.family == socket.AF_UNIX:
            return
        # asyncio sets it only where the socket names its protocol, which one from bind() does not.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self.idle:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self.idle)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, self.interval)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
        if self.user_timeout:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.user_timeout * 1000))
