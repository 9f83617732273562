"""From what was counted to figures for each batch, and from these to fleets that no one machine can simulate. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from capture.config import WorkerConfig
from capture.store_pace import BATCHES_PER_SECOND
from tests.bench.scale_fleet import ZIPF, Counted, Traffic
from tests.bench.scale_server import Usage

#: Fleets that are looked at beyond what was simulated.
FLEETS: Final = (10, 100, 1_000, 10_000, 100_000)


def figures(used: Usage, counted: Counted, sidecars: int, seconds: float) -> dict[str, Any]:
    """What a time of the simulation came to: totals by second, and by batch."""
    batches = sum(counted.flushes.values())
    each = max(batches, 1)
    scripts = used.calls.get("evalsha", 0) + used.calls.get("eval", 0)
    return {
        "sidecars": sidecars,
        "seconds": seconds,
        "calls_per_second": round(counted.calls / seconds, 1),
        "batches_per_second": round(batches / seconds, 2),
        "commands_per_second": round(sent(used) / seconds, 1),
        "received_per_second": round(used.received / seconds),
        "sent_per_second": round(used.sent / seconds),
        "cores": round(used.cpu / seconds, 4),
        "memory": used.memory,
        "batches": batches,
        "failures": counted.failures,
        "of_each_batch": {
            "signatures": round(counted.rows / each, 1),
            "commands": round(sent(used) / each, 2),
            "scripts": round(scripts / each, 2),
            "received": round(used.received / each),
            "sent": round(used.sent / each),
            "cpu_us": round(1e6 * used.cpu / each),
        },
    }


def sent(used: Usage) -> int:
    """Commands that clients sent: scripts, and what only clients ask."""
    inside = {"hget", "hset", "hmget", "hlen", "hdel", "hexists", "hvals", "hkeys", "hgetall", "hincrby", "hsetnx"}
    inside |= {"zadd", "zrem", "zcard", "zcount", "zrange", "zrangebyscore", "get", "set", "del", "exists", "time"}
    return sum(count for name, count in used.calls.items() if name not in inside and name != "info")


def fitted(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of each batch: ``a + b x signatures`` for CPU (microseconds) and for bytes received, by least squares."""
    points = [row["of_each_batch"] for row in rows]
    found = {}
    for name in ("cpu_us", "received"):
        each, more = _line([(one["signatures"], one[name]) for one in points])
        found[f"{name}_of_a_batch"], found[f"{name}_of_a_signature"] = round(each, 1), round(more, 2)
    return found


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    many = len(points)
    x, y = sum(one[0] for one in points) / many, sum(one[1] for one in points) / many
    spread = sum((one[0] - x) ** 2 for one in points)
    slope = sum((one[0] - x) * (one[1] - y) for one in points) / spread if spread else 0.0
    return y - slope * x, slope


def distinct(signatures: int, calls: float) -> float:
    """Signatures that some of so many calls have, on average."""
    weights = [1 / (rank + 1) ** ZIPF for rank in range(signatures)]
    every = sum(weights)
    return sum(1 - (1 - weight / every) ** calls for weight in weights)


def interval(sidecars: int) -> float:
    """Seconds between two batches of one sidecar, on average."""
    return max(WorkerConfig("", "", ()).shared_flush_interval, sidecars / BATCHES_PER_SECOND)


def outlook(fit: Mapping[str, float], traffic: Traffic) -> list[dict[str, float]]:
    """What fleets of these sizes ask of the one server that has their model version."""
    rows = []
    for sidecars in FLEETS:
        wait = interval(sidecars)
        seen = distinct(traffic.signatures, traffic.calls * wait)
        batches = sidecars / wait
        cpu = batches * (fit["cpu_us_of_a_batch"] + fit["cpu_us_of_a_signature"] * seen) / 1e6
        received = batches * (fit["received_of_a_batch"] + fit["received_of_a_signature"] * seen)
        rows.append(
            {
                "sidecars": sidecars,
                "interval": round(wait, 1),
                "signatures_of_a_batch": round(seen, 1),
                "batches_per_second": round(batches, 1),
                "cores": round(cpu, 3),
                "received_per_second": round(received),
            }
        )
    return rows


def table(result: Mapping[str, Any]) -> str:
    """For a terminal."""
    head = f"{'':<36}{'batch/s':>9}{'cmd/s':>8}{'in B/s':>11}{'out B/s':>9}{'cores':>8}{'MB':>7}  of a batch"
    lines = [head]
    for what in ("sidecars", "signatures", "traffic"):
        named = sorted(result[what].items(), key=lambda item: float(item[0]))
        lines += [_row(f"{what} {name}", row) for name, row in named]
    lines += [_row(f"cluster, {row['models']} models", row) for row in result["cluster"]]
    lines += [_row("server back after 10 minutes", result["away"])]
    lines += [_row(name, row) for name, row in result["life"].items() if name != "memory"]
    return "\n".join([*lines, f"fit: {result['fit']}", *map(str, result["outlook"])])


def _row(name: str, row: Mapping[str, Any]) -> str:
    each = row["of_each_batch"]
    return (
        f"{name:<36}{row['batches_per_second']:>9.1f}{row['commands_per_second']:>8.1f}{row['received_per_second']:>11}"
        f"{row['sent_per_second']:>9}{row['cores']:>8.3f}{row['memory'] / 1e6:>7.1f}  {each['signatures']:.0f} sig,"
        f" {each['commands']:.2f} cmd, {each['received']} in, {each['sent']} out, {each['cpu_us']} us"
    )
