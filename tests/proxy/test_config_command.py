"""``capture config``: what users see of their settings."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import msgspec
import pytest

from proxy.settings import from_data, load
from tests.support.net_sidecar import Sidecar
from tests.support.processes import ROOT, capture

pytestmark = pytest.mark.server
LISTENERS = "listeners: [{listen: '127.0.0.1:0', upstream: '127.0.0.1:1'}]\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Settings with some values of their own, and secrets in files that they name."""
    (tmp_path / "token").write_text("THE-TOKEN-OF-THE-ADMIN")
    (tmp_path / "token").chmod(0o600)
    path = tmp_path / "s.yaml"
    path.write_text(
        f"{LISTENERS}relay: {{connect_timeout: 2.5}}\nadmin: {{token_file: '{tmp_path}/token'}}\n"
        f"capture: {{store: '{tmp_path}/s.sqlite'}}\n"
    )
    return path


def test_check_is_one_line(file: Path) -> None:
    done = capture("config", "check", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}: ok, 1 listener\n", "")
    done = capture("config", "check", str(ROOT / "config" / "example.yaml"))
    assert done.stdout.endswith("example.yaml: ok, 2 listeners\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("admin: {token_file: /none/token}\n", "admin.token_file: /none/token: No such file or directory"),
        ("relay: {conect_timeout: 1}\n", "relay.conect_timeout: unknown key; did you mean connect_timeout?"),
        ("tap: {buffer_bytes: 1}\n", "tap.buffer_bytes: expected `int` >= 1048576"),
        ("capture: {limits: {store_bytes: -1}}\n", "capture.limits.store_bytes: expected `int` >= 0"),
        ("capture: {store: /none/s}\n", "capture.store: no directory /none; create it, or name another place"),
        (
            "admin: {listen: '0.0.0.0:1'}\n",
            "admin.listen: '0.0.0.0:1' can be reached from elsewhere: set ",
        ),
    ],
)
def test_check_says_what_is_wrong_and_where(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(LISTENERS + text)
    done = capture("config", "check", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"capture: error: {path}: {message}")
    assert done.stderr.count("\n") == 1


def test_check_of_no_file(tmp_path: Path) -> None:
    done = capture("config", "check", str(tmp_path / "none"))
    assert (done.returncode, done.stderr) == (1, f"capture: error: {tmp_path}/none: No such file or directory\n")


def test_show_gives_everything_that_is_in_effect_and_reads_back(file: Path, tmp_path: Path) -> None:
    done = capture("config", "show", "--config", str(file))
    assert done.returncode == 0, done.stderr
    shown = msgspec.yaml.decode(done.stdout)
    assert from_data(shown) == load(file)
    assert shown["relay"]["connect_timeout"] == 2.5
    assert shown["capture"]["limits"]["held_out_requests"] == 256
    assert shown["admin"]["token_file"] == f"{tmp_path}/token"
    assert "THE-TOKEN" not in done.stdout


def test_show_of_a_command_line() -> None:
    options = ["--listen", ":1", "--upstream", ":2", "--store", "x", "--allow-shared-store"]
    shown = msgspec.yaml.decode(capture("config", "show", *options).stdout)
    assert (shown["listeners"][0]["upstream"], shown["capture"]["store"]) == (":2", "x")
    assert shown["capture"]["allow_shared_store"] is True
    done = capture("config", "show", "--listen", ":1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "capture: error: 1 --listen and 0 --upstream: each --listen needs one\n"


def test_docs_prints_the_page() -> None:
    assert capture("config", "docs").stdout == (ROOT / "docs" / "settings.md").read_text()


def test_a_wrong_word_is_wrong_usage() -> None:
    assert capture("config", "nope").returncode == 2


@pytest.mark.parametrize("level", ["debug", "info"])
def test_a_sidecar_that_debugs_logs_its_effective_settings_first(file: Path, tmp_path: Path, level: str) -> None:
    # An upstream that accepts, so that nothing else is to be said.
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        text = (
            file.read_text().replace("127.0.0.1:1'", f"127.0.0.1:{port}'").replace("admin: {", "admin: {listen: '', ")
        )
        file.write_text(f"{text}log_level: {level}\n")
        with Sidecar("--config", str(file), cwd=tmp_path) as sidecar:
            sidecar.ready()
    said = [line for line in sidecar.lines if 'msg="effective settings"' in line]
    if level == "info":
        assert said == []
        return
    assert said == sidecar.lines[:1]
    assert "level=debug" in said[0]
    quoted = re.search(r'settings="(.*)"', said[0])
    assert quoted is not None
    logged = json.loads(quoted[1].replace('\\"', '"'))
    assert from_data(logged) == load(file)
    assert "THE-TOKEN" not in "\n".join(sidecar.lines)
