"""The server of a fleet's store stops, is cut off, fills up, fails over: clients notice nothing, nothing stored is
lost, what is delayed is told and is written once the server is well."""

from __future__ import annotations

import contextlib
import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from capture.store.base import StoreError, open_store
from tests.faults.conftest import Front, Start
from tests.support.processes import capture
from tests.support.tcp_gate import Gate, Mode
from tests.support.valkey import Cluster, Server
from tests.support.waiting import until

pytestmark = pytest.mark.server

#: Seconds that a call to the server may take here.
TIMEOUT = 0.3
#: Seconds between two requests of a client: a tap that is half full takes no new connections, and here calls count.
PAUSE = 0.02


class Fleet:
    """A sidecar whose store is a server's: calls that were made by input, what is stored of them, what it says."""

    def __init__(self, front: Front, url: str) -> None:
        self.front = front
        self.url = url
        self.made: Counter[str] = Counter()
        self._admin = front.sidecar.wait_for(r"admin listens.*?(127\.0\.0\.1:\d+)")[1]

    def call(self, name: str, times: int = 1) -> None:
        for _ in range(times):
            self.front.call((name,))
            self.made[name] += 1

    def stored(self, url: str = "") -> Counter[str]:
        """Calls by input of those that have a sample."""
        with closing(open_store(url or self.url)) as store:
            rows = [row for row in store.signatures() if store.sample(row.key) is not None]
            return Counter({row.signature.inputs[0]: row.hits for row in rows})

    def settled(self) -> None:
        """Wait until everything that was called is stored."""
        until(lambda: self.front.count("requests_proven") >= self.made.total(), "a worker that has read all")
        until(self._is_stored, f"{self.made} in the store")

    def _is_stored(self) -> bool:
        with contextlib.suppress(StoreError):
            return self.stored() == self.made
        return False

    def end(self) -> None:
        """Stop the sidecar; all that was called is stored."""
        assert self.front.sidecar.stop() == 0
        assert self.stored() == self.made

    def status(self) -> tuple[int, list[str]]:
        """``capture status``: its exit code, and its sentences."""
        done = capture("status", "--json", "--admin", self._admin)
        said = json.loads(done.stdout)
        return done.returncode, [f"{one['severity']}: {one['text']}" for one in said["findings"]]


#: What a broken network does, and what is said of it.
NETWORKS: Sequence[tuple[Mode, str]] = (("swallow", "no answer within"), ("cut", "reset|closed"))

Begin = Callable[[str], Fleet]


@pytest.fixture
def begin(start: Start) -> Begin:
    """A sidecar on this store that has stored ten calls."""

    def one(url: str) -> Fleet:
        where = f"{url}?timeout={TIMEOUT}"
        store = {"store": where, "shed_lag": 0, "shared_flush_interval": 0.1, "flush_interval": 0.1}
        fleet = Fleet(start(capture=store), where)
        fleet.call("before", 10)
        fleet.settled()
        return fleet

    return one


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("s"), "--appendonly", "yes", "--appendfsync", "always") as one:
        yield one


def away(fleet: Fleet, said: str) -> None:
    """While the server is away: new calls of what is known and of what is new are read and wait, and that is told."""
    front = fleet.front
    failures = front.count("store_failures")
    fleet.call("before", 10)
    fleet.call(f"during {len(fleet.made)}", 10)
    until(lambda: front.count("store_failures") > failures + 1, "writes that fail")
    until(lambda: front.count("store_waiting_calls") == 20, "twenty calls that wait")
    assert front.count("store_delay_us") > 1_000_000
    assert front.count("store_waiting_bytes") > 0
    front.sidecar.wait_for(rf'"store failed".*{said}')
    code, sentences = fleet.status()
    assert code == 1
    assert any("20 calls and " in one and "wait for it" in one for one in sentences), sentences


def back(fleet: Fleet) -> None:
    """Once it is back, everything is stored, each call once, and all is well."""
    fleet.call("after", 5)
    fleet.settled()
    front = fleet.front
    until(lambda: front.count("store_waiting_calls") == 0 and front.count("store_delay_us") < 1_000_000, "no delay")
    assert front.count("store_dropped") == 0
    code, sentences = fleet.status()
    assert (code, sentences[0][:4]) == (0, "ok: "), sentences


def test_the_server_stops_is_cut_off_fills_up_and_dies(begin: Begin, server: Server) -> None:
    with Gate(server.port) as gate:
        fleet = begin(f"redis://127.0.0.1:{gate.port}")

        def stored_so_far() -> None:
            found = fleet.stored(server.url)
            assert found == before, (found, before)

        with fleet.front.unharmed(pause=PAUSE), server.client() as client:
            # A network that drops what is sent, and one that resets.
            for mode, said in NETWORKS:
                before = fleet.made.copy()
                gate.turn(mode)
                away(fleet, said)
                stored_so_far()
                gate.turn("pass")
                back(fleet)
            before = fleet.made.copy()
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "1mb")
            away(fleet, "OOM: its memory is full")
            stored_so_far()
            client.config_set("maxmemory", "0")
            back(fleet)
            server.send(signal.SIGSTOP)
            try:
                away(fleet, f"no answer within {TIMEOUT} s; is it stopped")
            finally:
                server.send(signal.SIGCONT)
            back(fleet)
            before = fleet.made.copy()
            server.kill()
            away(fleet, "reset|closed|refused")
            server.start()
            back(fleet)
        fleet.end()


def test_a_replica_takes_over(begin: Begin, server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its name leads to the old primary, which becomes a replica; then it leads to the new one."""
    with Server(tmp_path_factory.mktemp("b")) as second, second.client() as replica, Gate(server.port) as gate:
        replica.replicaof("127.0.0.1", server.port)
        until(lambda: replica.info("replication")["master_link_status"] == "up", "replication")
        fleet = begin(f"redis://127.0.0.1:{gate.port}")
        with fleet.front.unharmed(pause=PAUSE):
            with server.client() as primary:
                primary.wait(1, 60_000)
                replica.replicaof("NO", "ONE")
                primary.replicaof("127.0.0.1", second.port)
            away(fleet, "READONLY: it is a replica, perhaps since a failover")
            gate.turn("pass", second.port)
            back(fleet)
        fleet.end()


def test_a_node_of_a_cluster_is_killed(begin: Begin, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its replica takes over, found by the sidecar alone. Every model version lies on some node: that one is killed."""
    directory: Path = tmp_path_factory.mktemp("c")
    with Cluster(directory, replica=True) as cluster:
        fleet = begin(cluster.url)
        with fleet.front.unharmed(pause=PAUSE):
            with cluster.nodes[2].client() as primary:
                primary.wait(1, 60_000)
            cluster.nodes[2].kill()
            fleet.call("before", 10)
            fleet.call("new", 10)
            with cluster.nodes[-1].client() as spare:
                spare.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
            fleet.settled()
            back(fleet)
        fleet.end()
