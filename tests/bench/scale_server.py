"""What a server was asked and what it cost, by its own INFO."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis


@dataclass(frozen=True, slots=True)
class Usage:
    """Totals since the server started. ``commands`` without those that scripts make; ``calls`` by command, with them;
    ``cpu`` and ``scripts`` in seconds; ``memory`` in bytes, without what connections take, which is ``buffers``."""

    commands: int
    calls: dict[str, int]
    received: int
    sent: int
    cpu: float
    scripts: float
    memory: int
    buffers: int
    connections: int

    def since(self, before: Usage) -> Usage:
        """What was asked in between; memory as it is now."""
        calls = {name: count - before.calls.get(name, 0) for name, count in self.calls.items()}
        return Usage(
            self.commands - before.commands,
            {name: count for name, count in calls.items() if count},
            self.received - before.received,
            self.sent - before.sent,
            self.cpu - before.cpu,
            self.scripts - before.scripts,
            self.memory,
            self.buffers,
            self.connections,
        )


def usage(client: redis.Redis) -> Usage:
    """Of one server now. Asking is a part of it: some 10 KB that are sent."""
    info: dict[str, Any] = client.info("all")
    commands = {name.removeprefix("cmdstat_"): row for name, row in info.items() if name.startswith("cmdstat_")}
    calls = {name: int(row["calls"]) for name, row in commands.items()}
    scripts = sum(row["usec"] for name, row in commands.items() if name in ("evalsha", "eval")) / 1e6
    buffers = int(info.get("mem_clients_normal", 0))
    return Usage(
        int(info["total_commands_processed"]),
        calls,
        int(info["total_net_input_bytes"]),
        int(info["total_net_output_bytes"]),
        float(info["used_cpu_user"]) + float(info["used_cpu_sys"]),
        scripts,
        int(info["used_memory"]) - buffers,
        buffers,
        int(info["connected_clients"]),
    )


def together(usages: Sequence[Usage]) -> Usage:
    """Of several servers."""
    calls: dict[str, int] = {}
    for one in usages:
        for name, count in one.calls.items():
            calls[name] = calls.get(name, 0) + count
    return Usage(
        sum(one.commands for one in usages),
        calls,
        sum(one.received for one in usages),
        sum(one.sent for one in usages),
        sum(one.cpu for one in usages),
        sum(one.scripts for one in usages),
        sum(one.memory for one in usages),
        sum(one.buffers for one in usages),
        sum(one.connections for one in usages),
    )


def keys_by_kind(client: redis.Redis) -> dict[str, int]:
    """Bytes of a server's keys (MEMORY USAGE, exact) by what they hold: see docs/store.md."""
    found: dict[str, int] = {}
    for key in client.scan_iter(count=1000):
        tail = re.sub(r"^.*\}", "", key.decode())
        kind = re.sub(r":(b|done):.*", r":\1", tail) or ":"
        kind = ("fleet" if b"{fleet}" in key else "version") + kind
        found[kind] = found.get(kind, 0) + int(client.memory_usage(key, samples=0) or 0)
    return found
