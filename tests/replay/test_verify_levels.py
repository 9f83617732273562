"""verify on its other levels, and in other places: by names alone, on a server, in another environment, in a session
group.

The server is ``capture host``: the real tensorflow_model_server cannot run here. It serves the same gRPC and the same
Prometheus text, and warms up from the same file.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from capture.export.manifest import MANIFEST_SUFFIX
from replay import tf_protos
from tests.replay.test_verify import HELD, SENT, exported, fill, verify
from tests.support.processes import capture

pytestmark = pytest.mark.server

HOST = (
    f"{sys.executable} -m capture host --saved-model {{model_base_path}}/{{model_version}} --model-name {{model_name}}"
    " --grpc-listen 127.0.0.1:{grpc_port} --stats-listen 127.0.0.1:{rest_port}"
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return fill(tmp_path / "store", "tfserving", SENT, HELD)


@pytest.fixture
def warmup(edge: Path, store: Path, tmp_path: Path) -> Path:
    return exported(store, tmp_path / "warmup", edge)


@pytest.fixture
def poorer(edge: Path, tmp_path: Path) -> Path:
    """Without the record of (x) -> (double, sum)."""
    store = fill(tmp_path / "poorer-store", "tfserving", [SENT[0], SENT[2]], [])
    return exported(store, tmp_path / "poorer", edge)


def test_names_alone_need_no_tensorflow(
    edge: Path, store: Path, warmup: Path, poorer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorflow.py").write_text("raise ImportError('it was imported')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    status, found = verify(edge, store, "--warmup", str(warmup), "--level", "fits")
    assert (status, found["verdict"], found["level"], found["tensorflow"]) == (0, "fits", "fits", "")
    assert [one["warm"] for one in found["executors"]] == [None] * 3
    status, found = verify(edge, store, "--warmup", str(poorer), "--level", "fits")
    assert (status, found["verdict"]) == (1, "failed")
    (reason,) = found["reasons"]
    assert "(x) -> (double, sum): would build a graph" in reason
    assert "fetches also: double" in reason


def test_behind_the_c_api_it_ran_and_that_was_asked_for(edge: Path, store: Path, warmup: Path) -> None:
    status, found = verify(edge, store, "--warmup", str(warmup), "--level", "runs", "--herd", "0")
    assert (status, found["verdict"], found["level"]) == (0, "ran", "runs")
    assert found["warm"]["graph_builds"] is None
    assert found["herd"] is None


def test_on_a_server(edge: Path, store: Path, warmup: Path) -> None:
    status, found = verify(edge, store, "--warmup", str(warmup), "--server-cmd", HOST)
    assert (status, found["verdict"], found["level"]) == (0, "proved", "server")
    assert (found["cold"]["graph_builds"], found["warm"]["graph_builds"]) == (3, 0)
    assert found["cold"]["xla_compilations"] == found["warm"]["xla_compilations"] == 0
    assert found["herd"]["graph_builds"] >= 3
    proof = json.loads(warmup.with_name(warmup.name + MANIFEST_SUFFIX).read_bytes())["proof"]
    assert (proof["verdict"], proof["level"]) == ("proved", "server")


def test_a_server_that_the_file_keeps_from_starting(edge: Path, store: Path, warmup: Path) -> None:
    warmup.write_bytes(warmup.read_bytes()[:-3])
    status, found = verify(edge, store, "--warmup", str(warmup), "--server-cmd", HOST, "--herd", "0")
    assert (status, found["verdict"]) == (1, "failed")
    (reason,) = found["reasons"]
    assert "the server ended with exit status 1: capture: error: warm-up failed: DATA_LOSS" in reason


def test_a_server_without_counters_proves_nothing(edge: Path, store: Path, warmup: Path) -> None:
    without = HOST.replace(" --stats-listen 127.0.0.1:{rest_port}", "")
    status, found = verify(edge, store, "--warmup", str(warmup), "--server-cmd", without, "--herd", "0")
    assert (status, found["verdict"], found["level"]) == (1, "ran", "server")
    assert "{monitoring_config}" in found["note"]


def test_a_session_group_is_warm_in_its_first_session_only(edge: Path, store: Path, warmup: Path) -> None:
    status, found = verify(edge, store, "--warmup", str(warmup), "--sessions", "2", "--herd", "0")
    assert (status, found["verdict"]) == (1, "failed")
    assert found["sessions"] == [{"session": 1, "graph_builds": 0}, {"session": 2, "graph_builds": 3}]
    (reason,) = found["reasons"]
    assert reason.startswith("session 2 of 2 built 3 graphs: ")


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """The interpreter of an environment that has TensorFlow and what that needs, and nothing that warmtap brings."""
    venv.create(tmp_path / "bare", symlinks=True)
    own = tf_protos.wheel_directory().parent
    (target,) = (tmp_path / "bare" / "lib").glob("python3.*/site-packages")
    brought = ("capture", "replay", "proxy", "warmtap", "msgspec", "typer", "crc32c", "aiohttp")
    for path in own.iterdir():
        if not path.name.startswith(brought) and path.suffix != ".pth" and not (target / path.name).exists():
            (target / path.name).symlink_to(path)
    return str(tmp_path / "bare" / "bin" / "python")


def test_in_another_environment(
    edge: Path, store: Path, warmup: Path, bare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    lacks = subprocess.run([bare, "-c", "import msgspec"], capture_output=True, cwd="/", check=False)
    assert b"No module named 'msgspec'" in lacks.stderr
    status, found = verify(edge, store, "--warmup", str(warmup), "--python", bare, "--herd", "0")
    assert (status, found["verdict"], found["level"]) == (0, "proved", "executor")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--level", "best"], "--level best: no such level; one of: fits, runs, executor, server"),
        (["--level", "server"], "--level server and --server-cmd CMD belong together"),
        (["--level", "runs", "--server-cmd", "x"], "--level server and --server-cmd CMD belong together"),
        (["--server-cmd", "x", "--sessions", "2"], "--sessions: level server runs no session of its own"),
        (["--level", "fits", "--python", "x"], "--python: level fits runs no session of its own"),
        (["--server-cmd", "nothing-of-this-name"], "--server-cmd nothing-of-this-name: No such file or directory"),
        (["--server-cmd", f"{sys.executable} -c 1"], "the server ended with exit status 0: it wrote nothing"),
        (["--server-cmd", "true {port}"], "--server-cmd: no placeholder {port}"),
        (["--python", "/nothing/python"], "--python /nothing/python: No such file or directory"),
        (["--python", shutil.which("false") or "false"], "ended with exit status 1: it must be Python 3.11 or newer"),
        (["--op-library", "nothing.so"], "--op-library nothing.so: no such file"),
        (["--op-library", __file__], "invalid ELF header"),
        (["--manifest", __file__], "there is no manifest of"),
    ],
)
def test_what_does_not_go_together_or_is_not_there(
    edge: Path, store: Path, warmup: Path, arguments: list[str], message: str
) -> None:
    given = ["--saved-model", str(edge), "--traffic", str(store), "--warmup", str(warmup), "--herd", "0"]
    done = capture("verify", *given, *arguments)
    assert done.returncode == 2, done.stdout
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
