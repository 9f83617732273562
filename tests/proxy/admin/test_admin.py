"""Health, metrics and API of a real sidecar, and what ``capture status`` says in each kind of trouble."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import io
import json
import os
import re
import signal
import socket
import ssl
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from capture.commands import options
from capture.textfile import markdown
from proxy.admin.metrics import rows
from proxy.settings import DEFAULT_ADMIN
from tests.support.calls import eas
from tests.support.net_http import Echo, echo_server
from tests.support.net_sidecar import Sidecar
from tests.support.processes import capture
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server
DOCS = Path(__file__).parents[3] / "docs"


class Running:
    """A sidecar with its admin address."""

    def __init__(self, sidecar: Sidecar, *, captures: bool = True) -> None:
        (self.port,) = sidecar.ready()
        if captures:
            sidecar.wait_for("msg=reading")
        self.sidecar = sidecar
        self.admin = sidecar.wait_for(r'"admin listens" listen=(\S+)')[1]
        self.token = ""

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.admin, timeout=PATIENCE)
        if self.token:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.ask("/api/v1/status")[1]))

    def metrics(self) -> dict[str, float]:
        """Sample name with labels to value."""
        text = self.ask("/metrics")[1].decode()
        return {
            sample.name + str(dict(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def post(self, path: str, body: bytes) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("POST", path, body)
            return connection.getresponse().status


def started(tmp_path: Path, upstream: str, **more: Any) -> Sidecar:
    plain: dict[str, Any] = {
        "listeners": [{"listen": "127.0.0.1:0", "upstream": upstream}],
        "relay": {"drain_delay": 0},
        "admin": {"listen": "127.0.0.1:0"},
        # However long a worker takes to start, it counts every request.
        "capture": {"store": str(tmp_path / "store.sqlite"), "shed_lag": 0},
    }
    path = tmp_path / "settings.yaml"
    path.write_bytes(msgspec.yaml.encode(plain | more))
    return Sidecar("--config", str(path), cwd=tmp_path)


@pytest.fixture
def model() -> Iterator[str]:
    with echo_server() as address:
        yield address


def said(running: Running) -> tuple[int, str]:
    """Exit code and output of ``capture status``."""
    done = capture("status", "--admin", running.admin)
    return done.returncode, done.stdout


def findings(running: Running) -> str:
    """What ``capture status`` would say, without the time that a process takes."""
    return "\n".join(one["text"] for one in running.status()["findings"])


def test_health_ready_and_status(tmp_path: Path, model: str) -> None:
    with started(tmp_path, model) as sidecar:
        running = Running(sidecar)
        assert running.ask("/healthz") == (200, b'{"status": "ok"}')
        assert running.ask("/readyz") == (200, b'{"status": "ready"}')
        assert running.post("/api/predict/rank", eas()) == 200
        until(lambda: running.status()["counters"]["requests_proven"] == 1)
        until(lambda: running.status()["store"]["signatures"] == 1)
        code, text = said(running)
        assert (code, text) == (0, "ok: 1 signatures of 1 models are stored\n")
        listed = json.loads(running.ask("/api/v1/signatures?model=rank")[1])["signatures"]
        assert [row["line"] for row in listed] == ["predict rank/serving_default (x) -> (*)"]
        assert json.loads(running.ask("/api/v1/signatures?model=other")[1]) == {"signatures": []}
        assert running.ask("/nothing")[0] == 404
        assert running.ask("/api/v1/pause")[0] == 405


def test_it_is_not_ready_without_its_model_server_and_while_it_stops(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        model = contextlib.ExitStack()
        address = model.enter_context(echo_server())
        sidecar = stack.enter_context(started(tmp_path, address, relay={"drain_delay": 3600}))
        running = Running(sidecar)
        assert running.ask("/readyz")[0] == 200
        model.close()

        def reasons() -> list[str]:
            status, body = running.ask("/readyz")
            return list(json.loads(body)["reasons"]) if status == 503 else []

        until(lambda: any(f"model server {address} does not accept" in reason for reason in reasons()))
        sidecar.process.send_signal(signal.SIGTERM)
        until(lambda: "stopping" in reasons())
        assert running.ask("/healthz")[0] == 200
        assert sidecar.stop(signal.SIGTERM) == 0


def test_every_metric_is_documented_and_every_documented_one_is_there(tmp_path: Path, model: str) -> None:
    page = (DOCS / "metrics.md").read_text().partition("## All metrics")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `(warmtap_\w+)` \|", page, re.M))
    with started(tmp_path, model) as sidecar:
        running = Running(sidecar)
        assert running.post("/api/predict/rank", eas()) == 200
        until(lambda: running.status()["store"]["signatures"] == 1)
        text = running.ask("/metrics")[1].decode()
    exposed = set(re.findall(r"^# TYPE (\w+) ", text, re.M))
    assert exposed == documented == {row.name for row in rows()}
    assert markdown(rows()) in (DOCS / "metrics.md").read_text(), "make docs"


def test_metrics_say_what_happened(tmp_path: Path, model: str) -> None:
    with started(tmp_path, model, workers=2) as sidecar:
        running = Running(sidecar)
        for _ in range(3):
            assert running.post("/api/predict/rank", eas()) == 200
        until(lambda: running.status()["store"]["signatures"] == 1)

        def over_pairs(name: str) -> float:
            return sum(value for key, value in running.metrics().items() if key.startswith(name + "{"))

        until(lambda: over_pairs("warmtap_flows_closed_total") == 3)
        assert over_pairs("warmtap_flows_opened_total") == 3
        until(lambda: over_pairs("warmtap_requests_proven_total") == 3)
        assert over_pairs("warmtap_connect_seconds_count") == 3
        until(lambda: over_pairs("warmtap_loop_lag_seconds_count") > 0)
        until(lambda: over_pairs("warmtap_worker_reading") == 2)
        now = running.metrics()
        assert now["warmtap_store_signatures{'model': 'eas/rank'}"] == 1
        assert now["warmtap_ready{}"] == 1
        status, body = running.ask("/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert (status, body.endswith(b"# EOF\n")) == (200, True)


def test_pause_and_resume(tmp_path: Path, model: str) -> None:
    with started(tmp_path, model) as sidecar:
        running = Running(sidecar)
        assert running.ask("/api/v1/pause", "POST")[0] == 200
        until(lambda: running.status()["counters"]["tap_attached"] == 0)
        code, text = said(running)
        assert (code, text.splitlines()[0]) == (
            1,
            "WRONG: capture is paused: resume it with SIGUSR2 or POST /api/v1/resume",
        )
        assert running.ask("/api/v1/resume", "POST")[0] == 200
        until(lambda: running.status()["counters"]["tap_attached"] == 1)


def test_an_export_comes_as_a_tar(tmp_path: Path, model: str) -> None:
    with started(tmp_path, model) as sidecar:
        running = Running(sidecar)
        body = eas()
        assert running.post("/api/predict/rank", body) == 200
        until(lambda: running.status()["store"]["signatures"] == 1)
        status, packed = running.ask("/api/v1/export?format=eas-bin&model=rank")
        assert status == 200
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            files = {one.name: tar.extractfile(one) for one in tar.getmembers() if one.isfile()}
            assert body in [file.read() for file in files.values() if file is not None]
            assert any(name.endswith("manifest.json") for name in files)
        assert running.ask("/api/v1/export?format=eas-bin&model=none")[0] == 400
        status, text = running.ask("/api/v1/export?format=nonsense&model=rank")
        assert (status, "no such format" in json.loads(text)["error"]) == (400, True)
        assert running.ask("/api/v1/export?format=eas-bin&model=rank&store=/etc/passwd")[0] == 400
        assert running.ask("/api/v1/export?format=eas-bin&model=%00")[0] == 400
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".export")]


def test_a_token_is_asked_for_and_read_again(tmp_path: Path, model: str) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    file.chmod(0o600)
    with started(tmp_path, model, admin={"listen": "127.0.0.1:0", "token_file": str(file)}) as sidecar:
        running = Running(sidecar)
        assert (running.ask("/healthz")[0], running.ask("/readyz")[0]) == (200, 200)
        for wrong in ("", "Bearer 0123456789abcdee", "Basic 0123456789abcdef", "Bearer"):
            assert running.ask("/metrics", Authorization=wrong)[0] == 401
        running.token = "0123456789abcdef"
        assert running.metrics()["warmtap_admin_turned_away_total{}"] == 4
        done = capture("status", "--admin", running.admin)
        assert (done.returncode, "--token-file" in done.stderr) == (1, True)
        done = capture("status", "--admin", running.admin, "--token-file", str(file))
        assert done.stdout.startswith("WRONG: no client has connected")
        file.write_text("fedcba9876543210")
        sidecar.process.send_signal(signal.SIGHUP)
        sidecar.wait_for("settings reloaded")
        assert running.ask("/metrics")[0] == 401
        running.token = "fedcba9876543210"
        assert running.ask("/metrics")[0] == 200
    assert not any("0123456789abcdef" in line or "fedcba" in line for line in sidecar.lines)


def test_without_a_token_only_this_machine_by_its_own_name(tmp_path: Path, model: str) -> None:
    with started(tmp_path, model) as sidecar:
        running = Running(sidecar)
        assert running.ask("/api/v1/status", Host="evil.example")[0] == 403
        assert running.ask("/api/v1/pause", "POST", Origin="http://evil.example")[0] == 403
        assert running.ask("/api/v1/status", Host="localhost:1")[0] == 200
        assert running.status()["paused"] is False


def test_a_header_that_cannot_be_read_is_not_logged(tmp_path: Path, model: str) -> None:
    with started(tmp_path, model) as sidecar:
        running = Running(sidecar)
        host, _, port = running.admin.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as raw:
            raw.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer s3cr3t\x01\r\n\r\n")
            assert b" 400 " in raw.recv(4096)
        assert running.ask("/healthz")[0] == 200
    assert not any("s3cr3t" in line for line in sidecar.lines)


@pytest.mark.parametrize("token", ["日本日本日本日本", "0123456789\n0123456789"])
def test_a_token_that_no_header_can_hold_is_one_line(tmp_path: Path, token: str) -> None:
    (tmp_path / "token").write_text(token)
    done = capture("status", "--admin", "127.0.0.1:1", "--token-file", str(tmp_path / "token"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "one line of printable ASCII" in done.stderr


@pytest.mark.parametrize(
    ("admin", "message"),
    [
        ({"listen": "0.0.0.0:0"}, "'0.0.0.0:0' can be reached from elsewhere: set admin.token_file"),
        ({"token_file": "/nowhere/token"}, "admin.token_file: /nowhere/token: No such file or directory"),
        ({"token_file": "short"}, "a token has at least 16 bytes"),
        ({"token_file": "open"}, "everybody may read it; chmod 600"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, model: str, admin: dict[str, str], message: str) -> None:
    (tmp_path / "short").write_text("x")
    (tmp_path / "short").chmod(0o600)
    (tmp_path / "open").write_text("x" * 32)
    (tmp_path / "open").chmod(0o644)
    with started(tmp_path, model, admin=admin) as sidecar:
        assert sidecar.process.wait(PATIENCE) == 2
    (line,) = sidecar.lines
    assert message in line


def test_the_port_taken_is_an_error_if_it_was_asked_for(tmp_path: Path, model: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with started(tmp_path, model, admin={"listen": listen}) as sidecar:
            assert sidecar.process.wait(PATIENCE) == 1
    assert any(f'"admin cannot listen" listen={listen}' in line and "level=error" in line for line in sidecar.lines)


def test_the_default_is_one() -> None:
    assert options.DEFAULT_ADMIN == DEFAULT_ADMIN


# --- why a store is empty ---------------------------------------------------------------------------------------------


def test_status_says_that_nobody_connected(tmp_path: Path, model: str) -> None:
    with started(tmp_path, model) as sidecar:
        running = Running(sidecar)
        code, text = said(running)
    assert code == 1
    assert text.startswith(f"WRONG: no client has connected to 127.0.0.1:{running.port}: do clients still use")


def test_status_says_that_tls_is_not_terminated_here(tmp_path: Path, model: str) -> None:
    with started(tmp_path, model) as sidecar:
        running = Running(sidecar)
        context = ssl.create_default_context()
        with (
            pytest.raises(OSError),
            socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as raw,
            context.wrap_socket(raw, server_hostname="localhost"),
        ):
            pass
        until(lambda: running.status()["counters"]["flows_tls"] == 1)
        code, text = said(running)
    assert code == 1
    assert re.match(r"WRONG: 1 connections to \S+ are TLS, which is not terminated here: set listeners\[\]\.tls", text)


def test_status_says_that_all_is_refused(tmp_path: Path) -> None:
    class Absent(Echo):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(404)

    with echo_server(Absent) as address, started(tmp_path, address) as sidecar:
        running = Running(sidecar)
        assert running.post("/api/predict/rank", eas()) == 404
        until(lambda: running.status()["store"]["refusals"])
        code, text = said(running)
    assert code == 1
    assert text.startswith("WRONG: all of 1 requests were refused by the model server (mostly: unknown service)")


def test_status_says_that_nothing_is_a_call_and_that_nothing_can_be_read(tmp_path: Path, model: str) -> None:
    with started(tmp_path, model) as sidecar:
        running = Running(sidecar)
        assert running.post("/elsewhere", b"x") == 200
        until(lambda: running.status()["store"]["ignored"])
        code, text = said(running)
        assert code == 1
        assert text.startswith("WRONG: all of 1 requests are no model call (mostly: HTTP POST, other path)")
    (tmp_path / "store.sqlite").unlink()
    with started(tmp_path, model) as sidecar:
        running = Running(sidecar)
        with socket.create_connection(("127.0.0.1", running.port)) as garbage:
            garbage.sendall(b"\x00\x01\x02 this is no protocol")
            until(lambda: running.status()["counters"]["flows_undecodable"] == 1)
            code, text = said(running)
        assert (code, text.splitlines()[0]) == (1, "WRONG: 1 connections carry no readable HTTP")


def test_status_says_that_the_worker_is_stuck_or_gone(tmp_path: Path, model: str) -> None:
    store = tmp_path / "store.sqlite"
    store.mkdir()
    with started(tmp_path, model) as sidecar:
        running = Running(sidecar, captures=False)
        # Between one that failed and the next: short where each takes long to start.
        until(lambda: "no capture worker runs" in findings(running), "a moment without a worker")
        assert said(running)[0] == 1
    store.rmdir()
    with started(tmp_path, model) as sidecar:
        running = Running(sidecar)
        sidecar.wait_for("msg=reading")
        os.kill(sidecar.pid("worker"), signal.SIGSTOP)
        assert running.post("/api/predict/rank", eas()) == 200
        until(lambda: "does not read what waits for it" in findings(running), "a worker that is stuck")
        assert "does not read what waits for it" in said(running)[1]
        os.kill(sidecar.pid("worker"), signal.SIGCONT)
        until(lambda: said(running)[0] == 0)


def test_status_without_a_sidecar(tmp_path: Path) -> None:
    done = capture("status", "--admin", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"capture: error: no sidecar answers at 127.0.0.1:1: Connection refused; .*\n", done.stderr)
    done = capture("status", "--store", str(tmp_path / "none"))
    assert (done.returncode, done.stdout.startswith("WRONG: the store cannot be read: ")) == (1, True)
