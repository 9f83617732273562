"""Who sends, without saying which machine. Pure."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final

#: Characters of a client's name.
MAX_CLIENT: Final = 32


def network(peer: str) -> str:
    """The /24 or /64 of a peer ``host:port``: enough to say who sends, not which machine."""
    host = peer.rpartition(":")[0].strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unix" if peer.startswith("unix") else "-"
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 64), strict=False))


@lru_cache(maxsize=1024)
def client(sender: str) -> str:
    """The program that a sender ("USER-AGENT NETWORK") is, without its version: machines and releases of one program
    are not independent of each other. "-" where it does not say."""
    name = sender.rpartition(" ")[0].partition("/")[0].partition(" ")[0]
    return name[:MAX_CLIENT] or "-"
