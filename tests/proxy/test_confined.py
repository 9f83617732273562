"""The sidecar as in a container: another user, no capability, a root file system that nobody may write to."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.calls import eas
from tests.support.net_http import Load, echo_server
from tests.support.net_relay import receive_all
from tests.support.net_sidecar import Sidecar, balanced
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server
#: The user of docker-compose.yml.
USER = 10001


@pytest.fixture
def home() -> Iterator[Path]:
    """The one directory that may be written to; not below pytest's, which only its own user may enter."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a read-only file system and become another user")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is missing (package util-linux)")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a mount namespace")
    with tempfile.TemporaryDirectory(prefix="warmtap-confined-") as directory:
        os.chown(directory, USER, USER)
        yield Path(directory)


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_it_serves_captures_and_exports_and_writes_nowhere_else(home: Path) -> None:
    with echo_server() as model:
        settings = {
            "listeners": [
                {"listen": "127.0.0.1:0", "upstream": model},
                {"listen": f"unix:{home}/in.sock", "upstream": model},
            ],
            "relay": {"drain_delay": 0},
            "admin": {"listen": "127.0.0.1:0"},
            # The one call that counts is not to be passed over because the machine is slow.
            "capture": {"store": f"{home}/store.sqlite", "shed_lag": 0},
            "takeover_socket": f"{home}/takeover.sock",
        }
        (home / "settings.yaml").write_bytes(msgspec.yaml.encode(settings))
        words = (str(home), str(USER), "proxy", "--config", f"{home}/settings.yaml")
        with Sidecar(*words, cwd=home, module="tests.support.confined") as sidecar:
            port = int(sidecar.wait_for(r"ready listeners=127.0.0.1:(\d+),")[1])
            admin = int(sidecar.wait_for(r'"admin listens" listen=127.0.0.1:(\d+)')[1])
            sidecar.wait_for("msg=reading")
            for pid in (sidecar.process.pid, sidecar.pid("relay"), sidecar.pid("worker")):
                found = status(pid)
                assert found["Uid"].split() == [str(USER)] * 4
                assert int(found["CapEff"], 16) == int(found["CapBnd"], 16) == 0
                root = next(line for line in Path(f"/proc/{pid}/mounts").read_text().splitlines() if " / " in line)
                assert root.split()[3].split(",")[0] == "ro"
            # It keeps what makes a worker the first to go: that needs no capability.
            assert Path(f"/proc/{sidecar.pid('worker')}/oom_score_adj").read_text() == "1000\n"
            assert os.getpriority(os.PRIO_PROCESS, sidecar.pid("worker")) > 0

            with Load(port) as clients:
                clients.more(50)
                os.kill(sidecar.pid("worker"), signal.SIGKILL)
                sidecar.wait_for("msg=reading", 2)
                clients.more(50)
            assert not clients.failures
            # While much waits for the worker, new connections are not tapped.
            counters = sidecar.counters()
            until(lambda: balanced(counters.snapshot()), "the worker to read all that waits")
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect(f"{home}/in.sock")
                body = eas()
                head = b"POST /api/predict/rank HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                client.sendall(head % len(body) + body)
                assert b" 200 " in receive_all(client)  # whole: an answer that is cut off proves nothing
            until(lambda: ask(admin, "/api/v1/status")["store"]["signatures"] == 1, "the signature in the store")
            until(lambda: ask(admin, "/api/v1/status")["findings"][0]["severity"] == "ok", "nothing wrong any more")
            assert raw(admin, "/api/v1/export?format=jsonl&model=rank")[0] == 200

            made = {path.name: path.stat() for path in home.iterdir() if path.name != "settings.yaml"}
            assert {"store.sqlite", "in.sock", "takeover.sock"} <= set(made)
            for name, what in made.items():
                assert (what.st_uid, stat.S_IMODE(what.st_mode)) == (USER, 0o600), name
        # One worker was killed; nothing else went wrong, for want of a right or otherwise.
        wrong = [line for line in sidecar.lines if "level=error" in line or "Traceback" in line]
        assert len(wrong) == 1
        assert "status=-9" in wrong[0]


def raw(admin: int, path: str) -> tuple[int, bytes]:
    """Status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def ask(admin: int, path: str) -> dict[str, Any]:
    """JSON."""
    found: dict[str, Any] = json.loads(raw(admin, path)[1])
    return found
