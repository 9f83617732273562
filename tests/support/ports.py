"""Ports of this machine that a test knows before anybody listens on them."""

from __future__ import annotations

import atexit
import socket


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens: connections are refused until a server is started on it.

    Bound, never listening: until this process ends the kernel gives it to nobody who asks for any port, and to no
    outgoing connection. Servers that set SO_REUSEADDR, as all servers here do, may listen on it, one after another.
    """
    sock = socket.socket()
    atexit.register(sock.close)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    return port
