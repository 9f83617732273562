from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pytest

from capture.counters import Counters
from capture.store.base import Store, open_store
from tests.clients import commands
from tests.support.net_sidecar import Sidecar
from tests.support.processes import ROOT, run
from tests.support.tf_fork import run_forked
from tests.support.tf_host import HostProcess
from tests.support.waiting import until

MODEL = "ranking"
SERVICE = "rank"


@pytest.fixture(scope="session")
def ranking_host(ranking: Path) -> Iterator[HostProcess]:
    """The ranking model behind gRPC and, as service ``rank``, EAS."""
    with HostProcess(ranking) as host:
        yield host


@pytest.fixture(scope="session")
def edge_host(edge: Path) -> Iterator[HostProcess]:
    """The corner-case model behind gRPC and, as service ``rank``, EAS."""
    with HostProcess(edge) as host:
        yield host


@dataclass
class Front:
    """A sidecar in front of a host: where clients go, and what it stored."""

    sidecar: Sidecar
    grpc: str
    eas: str
    path: Path

    def store(self) -> Store:
        """The store, as another process reads it."""
        return open_store(str(self.path))

    @cached_property
    def counters(self) -> Counters:
        """The live counters."""
        return self.sidecar.counters()

    def count(self, name: str) -> int:
        """A live counter."""
        return self.counters.snapshot()[name]

    def wait_observed(self, requests: int) -> None:
        """Until the worker has read that many requests."""
        until(lambda: self.count("requests_observed") >= requests, f"{requests} requests observed")


def front(
    host: HostProcess, directory: Path, module: str = "proxy.command", *, sheds: bool = True, **capture: Any
) -> Front:
    """Start a sidecar in front of a host's two protocols; the caller leaves ``sidecar`` as a context. ``sheds`` False:
    where every request counts, and the machine may be so slow that a worker that starts is behind. ``capture``: further
    settings of what is kept."""
    path = directory / "warmtap.sqlite"
    settings = {
        "listeners": [{"listen": "127.0.0.1:0", "upstream": one} for one in (host.grpc, host.eas)],
        "capture": {"store": str(path), **({} if sheds else {"shed_lag": 0}), **capture},
        "relay": {"drain_delay": 0},
        "admin": {"listen": ""},
    }
    (directory / "settings.yaml").write_bytes(msgspec.yaml.encode(settings))
    sidecar = Sidecar("--config", str(directory / "settings.yaml"), cwd=directory, module=module)
    grpc_port, eas_port = sidecar.ready()
    return Front(sidecar, f"127.0.0.1:{grpc_port}", f"127.0.0.1:{eas_port}", path)


def tf_client(target: str, plan: list[dict[str, Any]], *options: str) -> str:
    """Run the real gRPC client to its end; what it printed."""
    _, *arguments = commands.tfserving_client(target, MODEL, *options)
    done = run_forked(arguments, cwd=ROOT, stdin=json.dumps(plan))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def eas_client(target: str, plan: list[dict[str, Any]], *options: str) -> str:
    """Run the real EAS SDK to its end; what it printed."""
    return run(commands.eas_client(f"http://{target}", SERVICE, *options), stdin=json.dumps(plan))


def eas_parse(bodies: list[bytes]) -> list[bytes]:
    """Each body through the real SDK's own message and out again."""
    lines = "".join(body.hex() + "\n" for body in bodies)
    parsed = run(commands.eas_client("-", SERVICE, "--parse"), stdin=lines)
    return [bytes.fromhex(line) for line in parsed.split()]
