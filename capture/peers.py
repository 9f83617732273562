"""Who sends, without saying which machine. Pure."""

from __future__ import annotations

import ipaddress


def network(peer: str) -> str:
    """The /24 or /64 of a peer ``host:port``: enough to say who sends, not which machine."""
    host = peer.rpartition(":")[0].strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unix" if peer.startswith("unix") else "-"
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 64), strict=False))
