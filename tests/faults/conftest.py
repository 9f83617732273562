"""One way to put a sidecar under load and a fault upon it, and to see that no client noticed."""

from __future__ import annotations

import contextlib
import http.client
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from capture.counters import Counters
from tests.support.calls import eas
from tests.support.net_grpc import GrpcLoad, grpc_server
from tests.support.net_http import Load, echo_server
from tests.support.net_sidecar import Sidecar
from tests.support.waiting import PATIENCE, until


class Front:
    """A sidecar in front of a real HTTP/1.1 server, and of a real gRPC server on the last of its ports."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar
        self.ports = sidecar.ready()
        self.port = self.ports[0]
        self.counters: Counters = sidecar.counters()

    def count(self, name: str) -> int:
        """A counter or gauge, over all pairs."""
        return self.counters.total()[name]

    def call(self, names: tuple[str, ...] = ("x",)) -> None:
        """One EAS call of these inputs, answered with success."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("POST", "/api/predict/rank", eas({name: [1.0] for name in names}))
            assert connection.getresponse().status == 200

    def captures(self) -> None:
        """Wait until a call that is made now is captured."""
        before = self.count("requests_proven")

        def one_more() -> bool:
            self.call()
            return self.count("requests_proven") > before

        until(one_more, "capture")

    @contextlib.contextmanager
    def unharmed(self, requests: int = 100, **load: Any) -> Iterator[Load]:
        """Clients whose every answer must be right: before, during and after what is done inside. Beside those that
        are handed out there is a gRPC channel that stays open throughout."""
        with GrpcLoad(self.ports[-1]) as channel, Load(self.port, **load) as clients:
            until(lambda: channel.answered or channel.failures, "the channel")
            clients.more(requests)
            yield clients
            clients.more(requests)
            answered = channel.answered
            until(lambda: channel.answered > answered or channel.failures, "an answer on the channel")
        assert not clients.failures
        assert not channel.failures


Start = Callable[..., Front]


@pytest.fixture
def model() -> Iterator[str]:
    with echo_server() as address:
        yield address


@pytest.fixture
def grpc_model() -> Iterator[str]:
    with grpc_server() as address:
        yield address


@pytest.fixture
def start(tmp_path: Path, model: str, grpc_model: str) -> Iterator[Start]:
    """A sidecar with these settings beside the plain ones; all are stopped cleanly in the end."""
    with contextlib.ExitStack() as stack:

        def one(
            module: str = "proxy.command",
            store: Path | None = None,
            env: dict[str, str] | None = None,
            upstreams: tuple[str, ...] = (),
            **more: Any,
        ) -> Front:
            plain: dict[str, Any] = {
                "listeners": [{"listen": "127.0.0.1:0", "upstream": one} for one in (model, *upstreams, grpc_model)],
                "relay": {"drain_delay": 0, "drain_quiet": 0.2, "shutdown_timeout": 2},
                "admin": {"listen": "127.0.0.1:0"},
                "capture": {"store": str((store or tmp_path) / "store.sqlite")},
            }
            path = tmp_path / "settings.yaml"
            path.write_bytes(msgspec.yaml.encode(plain | more))
            with pytest.MonkeyPatch.context() as patch:
                for name, value in (env or {}).items():
                    patch.setenv(name, value)
                sidecar = Sidecar("--config", str(path), cwd=tmp_path, module=module)
            return Front(stack.enter_context(sidecar))

        yield one


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    where = tmp_path / "disk"
    where.mkdir(mode=0o700)
    if os.system(f"mount -t tmpfs -o size=1m,mode=700 tmpfs {where}"):
        pytest.skip("this machine lets nobody mount a tmpfs")
    yield where
    os.system(f"umount -l {where}")
