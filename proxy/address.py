"""Addresses as users write them: ``host:port``, ``[::1]:port``, ``:port`` (loopback) or ``unix:/path``."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple


class Address(NamedTuple):
    """``path`` is set for a Unix socket, ``host`` and ``port`` otherwise."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def literal(self) -> bool:
        """Whether no name has to be resolved."""
        if self.path:
            return True
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def accepts(self, other: Address) -> bool:
        """Whether a socket that listens here would accept what connects there, as far as that can be told without a
        name service."""
        if self.path or other.path or self.port != other.port:
            return self == other
        here, there = _numbers(self.host), _numbers(other.host)
        if not here or not there:
            return self.host == other.host
        if any(one.is_unspecified for one in here):
            return any(one.is_loopback or one.is_unspecified for one in there)
        # Who connects to "any address" connects to the loopback one.
        return bool(here & there) or (self.loopback and any(one.is_unspecified for one in there))


def _numbers(host: str) -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Empty for a name other than localhost."""
    try:
        return {ipaddress.ip_address(one) for one in (("127.0.0.1", "::1") if host == "localhost" else (host,))}
    except ValueError:
        return set()


def parse(text: str, *, lowest_port: int = 1) -> Address:
    """Read an address. ``lowest_port`` 0 allows "any free port". Raises ValueError with the reason and the remedy."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError(f"{text!r}: a Unix socket is written unix:/absolute/path")
        return Address("", 0, path)
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit():
        raise ValueError(f"{text!r} is not an address; write host:port, for example 127.0.0.1:8500")
    if "/" in host:
        raise ValueError(f"{text!r} is not an address; write host:port without a scheme")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets, for example [::1]:8500")
    if not lowest_port <= int(port) <= 65535:
        raise ValueError(f"{text!r}: port {port} is not between {lowest_port} and 65535")
    return Address(host or "127.0.0.1", int(port))


def peer_name(peer: object) -> str:
    """The client as ``host:port``; empty where it is already gone or has no name."""
    if not isinstance(peer, tuple):
        return ""
    host, port = peer[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
