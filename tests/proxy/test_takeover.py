"""What a successor takes, what it leaves, and what it may not break while the other still serves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.address import parse
from proxy.listening import Listening
from proxy.takeover import Predecessor, TakeOverSocket
from tests.proxy.test_sidecar_life import DOUBLE, ask, settings
from tests.support.net_http import echo_server
from tests.support.net_sidecar import Sidecar
from tests.support.ports import free_port
from tests.support.processes import Process
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server


@pytest.fixture
def model() -> Iterator[str]:
    with echo_server() as address:
        yield address


def listeners(model: str, *ports: int) -> list[dict[str, Any]]:
    return [{"listen": f"127.0.0.1:{port}", "upstream": model} for port in ports]


def test_a_new_listener_is_bound_and_one_that_is_gone_is_closed(tmp_path: Path, model: str) -> None:
    both, gone, new = free_port(), free_port(), free_port()
    where = str(tmp_path / "takeover")
    before = settings(tmp_path, model, listeners=listeners(model, both, gone), takeover_socket=where)
    after = settings(tmp_path, model, name="after.yaml", listeners=listeners(model, both, new), takeover_socket=where)
    with Sidecar("--config", before, cwd=tmp_path, module=DOUBLE) as old:
        until(Path(where).exists)
        assert ask(gone) == 200
        with Sidecar("--config", after, "--take-over", cwd=tmp_path, module=DOUBLE) as successor:
            successor.wait_for("taken over")
            assert old.process.wait(PATIENCE) == 0
            assert (ask(both), ask(new)) == (200, 200)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", gone))


def test_the_names_belong_to_the_successor_once_it_has_taken_over(tmp_path: Path, model: str) -> None:
    inlet, workers, where = tmp_path / "in.sock", tmp_path / "workers.sock", tmp_path / "takeover"
    config = settings(
        tmp_path,
        model,
        listeners=[{"listen": f"unix:{inlet}", "upstream": model}],
        capture={"worker_socket": str(workers), "store": str(tmp_path / "s.sqlite")},
        takeover_socket=str(where),
    )
    with Sidecar("--config", config, cwd=tmp_path) as old:
        until(where.exists)
        with Sidecar("--config", config, "--take-over", cwd=tmp_path) as successor:
            successor.wait_for("taken over")
            assert old.process.wait(PATIENCE) == 0
            assert inlet.exists()
            with Process("capture", "worker", "--connect", f"unix:{workers}", cwd=tmp_path):
                successor.wait_for("worker connected")
        assert not inlet.exists()
        assert not workers.exists()


async def test_a_successor_that_gives_up_leaves_the_name_of_a_unix_listener(tmp_path: Path) -> None:
    path = tmp_path / "in.sock"
    address = parse(f"unix:{path}")
    own = Listening.bind(address)
    offer = TakeOverSocket(str(tmp_path / "takeover"))

    async def never() -> None:
        raise AssertionError("nobody has taken over")

    serving = asyncio.get_running_loop().create_task(offer.serve(lambda: [own], never))
    predecessor = await asyncio.to_thread(Predecessor.meet, offer.path)
    taken = predecessor.listening(address)
    assert taken is not None
    taken.close(remove=True)
    predecessor.close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    offer.close()
    own.close(remove=True)
    assert not path.exists()


def test_without_a_free_descriptor_nobody_takes_over_and_the_sidecar_serves_on(tmp_path: Path, model: str) -> None:
    where = tmp_path / "takeover"
    config = settings(tmp_path, model, takeover_socket=str(where))
    with Sidecar("--config", config, cwd=tmp_path, module=DOUBLE) as running:
        (port,) = running.ready()
        until(where.exists)
        limits = resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (1, limits[1]))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.settimeout(PATIENCE)
            link.connect(str(where))
            running.wait_for("cannot accept a successor.*Too many open files")
            assert ask(port) == 200
            resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, limits)
            message, fds, _, _ = socket.recv_fds(link, 65536, 16)
            assert message
            for fd in fds:
                os.close(fd)
        assert running.process.poll() is None


def test_a_busy_model_server_is_not_one_that_refuses(tmp_path: Path) -> None:
    with socket.socket() as busy, contextlib.ExitStack() as stack:
        busy.bind(("127.0.0.1", 0))
        busy.listen(0)
        for _ in range(4):  # its backlog is full: the next connection meets silence
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(busy.getsockname())
        upstreams = [busy.getsockname()[1], free_port()]
        followed = [
            {"listen": f"127.0.0.1:{free_port()}", "upstream": f"127.0.0.1:{port}", "follow_upstream": True}
            for port in upstreams
        ]
        config = settings(tmp_path, "", listeners=followed)
        with Sidecar("--config", config, cwd=tmp_path, module=DOUBLE) as sidecar:
            # The second is looked at after the first.
            sidecar.wait_for(f"refusing clients.*model_server=127.0.0.1:{upstreams[1]}")
        assert not any("refusing clients" in line and f":{upstreams[0]} " in line for line in sidecar.lines)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_worker_of_another_user_is_turned_away(tmp_path: Path, model: str) -> None:
    path = tmp_path / "workers.sock"
    config = settings(tmp_path, model, capture={"worker_socket": str(path), "store": str(tmp_path / "s.sqlite")})
    other = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "os.chdir(sys.argv[1]); os.setuid(65534)\n"
        "s.connect('workers.sock'); sys.exit(len(s.recv(100)))"
    )
    with Sidecar("--config", config, cwd=tmp_path) as sidecar:
        sidecar.ready()
        path.chmod(0o777)
        tmp_path.chmod(0o755)
        assert (
            subprocess.run([sys.executable, "-c", other, str(tmp_path)], check=False, timeout=PATIENCE).returncode == 0
        )
        sidecar.wait_for("a worker of another user was turned away.*user=65534")
