"""Where a command listens, as an option says it."""

from __future__ import annotations

from capture.errors import UserError


def listen_at(option: str, text: str) -> tuple[str, int]:
    """Host and port of ``PORT``, which is on loopback, or ``HOST:PORT``. Raises UserError that names the option."""
    host, separator, port = text.rpartition(":")
    host = host.strip("[]") if separator else "127.0.0.1"
    if not host or not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise UserError(f"{option} {text}: no address; write PORT or HOST:PORT")
    return host, int(port)
