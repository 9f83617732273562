"""``make scale``: what a fleet of sidecars asks of its store, by simulation against a real Valkey.

Counts and bytes are exact for the traffic that is simulated. CPU is the server's own, on a machine that may have other
work: rough. See tests/bench/scale_fleet.py for what is simulated, docs/scale.md for what follows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import redis

from capture.config import Limits, WorkerConfig
from tests.bench.scale_fleet import Fleet, Traffic
from tests.bench.scale_report import figures, fitted, outlook, table
from tests.bench.scale_server import Usage, keys_by_kind, together, usage
from tests.support.valkey import Cluster, Server

#: Simulated seconds that are measured, of each.
SECONDS: Final = 40
#: After something happened to all sidecars.
EVENT_SECONDS: Final = 30
AWAY_SECONDS: Final = 600
#: More than there are, where the number of signatures is what is measured.
ROOM: Final = Limits(signatures_per_version=10_000)
Result = dict[str, Any]


class Measuring:
    """One fleet on one server."""

    def __init__(self, client: redis.Redis, fleet: Fleet) -> None:
        self.client = client
        self.fleet = fleet
        self._seconds: list[Usage] = []

    def over(self, seconds: float, *, by_second: bool = False, calls: bool = True) -> Result:
        """Let time pass, and say what was asked in it."""
        self.fleet.forget()
        self._seconds = []
        before = usage(self.client)
        look = self._look if by_second else None
        self.fleet.run(seconds, each_second=look, calls=calls)
        found = figures(usage(self.client).since(before), self.fleet.counted, len(self.fleet.sidecars), seconds)
        if by_second:
            steps = [after.since(one) for one, after in zip([before, *self._seconds], self._seconds, strict=False)]
            found["flushes_by_second"] = [
                self.fleet.counted.flushes.get(int(self.fleet.now - seconds) + at, 0) for at in range(len(steps))
            ]
            found["cpu_ms_by_second"] = [round(1000 * one.cpu) for one in steps]
            found["received_by_second"] = [one.received for one in steps]
        return found

    def _look(self, _: int) -> None:
        self._seconds.append(usage(self.client))


def alone(directory: Path, sidecars: int, traffic: Traffic, say: Callable[[str], None]) -> Result:
    """A fleet that has run for long, on a server of its own."""
    with Server(directory) as server, server.client() as client:
        config = WorkerConfig(store=server.url, run="", listeners=(), limits=ROOM)
        with closing(Fleet(server.url, sidecars, traffic, config=config)) as fleet:
            fleet.settle()
            found = Measuring(client, fleet).over(SECONDS)
        say(f"{sidecars} sidecars, {traffic.signatures} signatures, {traffic.calls:g} calls/s")
        return found


def a_life(directory: Path, sidecars: int, say: Callable[[str], None]) -> Result:
    """What happens to one large fleet, one after the other."""
    found: Result = {}
    with Server(directory) as server, server.client() as client, closing(Fleet(server.url, sidecars)) as fleet:
        here = Measuring(client, fleet)
        found["all start at once, nothing stored"] = here.over(EVENT_SECONDS, by_second=True)
        say("start")
        fleet.settle()
        found["settled"] = here.over(SECONDS)
        found["memory"] = keys_by_kind(client)
        say("settled")
        for one in fleet.sidecars:
            one.restart()
        found["all restart at once"] = here.over(EVENT_SECONDS, by_second=True)
        say("restart")
        fleet.settle()
        fleet.skip(86_400)
        for one in fleet.sidecars:
            one.new_signature()
            one.new_signature()
        found["a day later, 1 % new"] = here.over(EVENT_SECONDS, by_second=True)
        say("a day later")
        for one in fleet.sidecars:
            one.version = "2"
        found["another model version"] = here.over(EVENT_SECONDS, by_second=True)
        say("another version")
    return found


def away(directory: Path, sidecars: int, say: Callable[[str], None]) -> Result:
    """The server is gone for ten minutes, and comes back."""
    with Server(directory, "--appendonly", "yes") as server, server.client() as client:
        with closing(Fleet(server.url, sidecars)) as fleet:
            fleet.settle()
            server.kill()
            fleet.forget()
            fleet.run(AWAY_SECONDS)
            failures, calls = fleet.counted.failures, fleet.counted.calls
            server.start()
            found = Measuring(client, fleet).over(EVENT_SECONDS, by_second=True)
        say("away and back")
    return found | {"attempts_while_away": failures, "calls_while_away": calls}


def cluster(directory: Path, sidecars: int, models: int, say: Callable[[str], None]) -> Result:
    """Three nodes: what each has to do."""
    with Cluster(directory) as nodes, ExitStack() as stack:
        clients = [stack.enter_context(node.client()) for node in nodes.nodes]
        start = [usage(client) for client in clients]
        fleet = stack.enter_context(closing(Fleet(nodes.url, sidecars, Traffic(models=models))))
        fleet.run(1.0, calls=False)
        joined = together([usage(client).since(one) for client, one in zip(clients, start, strict=True)])
        fleet.settle()
        before = [usage(client) for client in clients]
        fleet.run(SECONDS)
        each = [usage(client).since(one) for client, one in zip(clients, before, strict=True)]
        found = figures(together(each), fleet.counted, sidecars, SECONDS)
        say(f"cluster, {models} models")
        return found | {
            "models": models,
            "sent_to_join": round(joined.sent / sidecars),
            "connections_of_each": round(joined.connections / sidecars, 1),
            "scripts_by_node": [one.calls.get("evalsha", 0) for one in each],
            "cpu_by_node": [round(one.cpu, 3) for one in each],
            "received_by_node": [one.received for one in each],
        }


def measure(directory: Path, largest: int, say: Callable[[str], None]) -> Result:
    """Everything. ``largest``: sidecars of the largest fleet."""
    number = iter(range(100))

    def fresh() -> Path:
        return directory / str(next(number))

    some = max(10, largest // 10)
    by_sidecars = {str(many): alone(fresh(), many, Traffic(), say) for many in (max(1, some // 10), some)}
    by_signatures = {str(many): alone(fresh(), some, Traffic(signatures=many), say) for many in (20, 2000)}
    few = max(5, some // 10)
    by_traffic = {str(rate): alone(fresh(), few, Traffic(calls=rate), say) for rate in (10, 100, 1000)}
    clusters = [cluster(fresh(), some, models, say) for models in (1, 30)]
    gone = away(fresh(), some, say)
    life = a_life(fresh(), largest, say)
    by_sidecars[str(largest)] = life["settled"]
    by_signatures["200"] = by_sidecars[str(some)]
    fit = fitted([*by_sidecars.values(), *by_signatures.values(), *by_traffic.values()])
    return {
        "sidecars": by_sidecars,
        "signatures": by_signatures,
        "traffic": by_traffic,
        "cluster": clusters,
        "away": gone,
        "life": life,
        "fit": fit,
        "outlook": outlook(fit, Traffic()),
    }


def main() -> int:
    """Exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    parser.add_argument("--sidecars", type=int, default=1000, help="of the largest fleet")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    began = time.time()

    def say(what: str) -> None:
        print(f"{time.time() - began:5.0f} s: {what}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="warmtap-scale-") as directory:
        with Server(Path(directory) / "version") as server, server.client() as client:
            version = str(client.info("server").get("valkey_version", "?"))
        result = measure(Path(directory), options.sidecars, say)
    machine = {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    result = {"began": began, "machine": machine | {"valkey": version, "redis-py": redis.__version__}} | result
    (options.out / "scale.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(f"All figures: {options.out}/scale.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
