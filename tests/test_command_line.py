"""The command ``capture`` itself: how it ends on signals and errors, and what it does without the TensorFlow extra."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from capture.__main__ import COMMANDS
from capture.store.base import Batch
from tests.support.processes import ROOT, Process
from tests.support.stores import add, filled, signature

pytestmark = pytest.mark.server


def command(*arguments: str, module: str = "tests.support.commands") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_without_a_word_and_with_everything_cleared_up(number: int, status: int) -> None:
    process = Process("tests.support.commands", "waits")
    process.wait_for("^running$")
    assert process.stop(number) == status
    assert process.lines == ["running", "cleared up"]
    assert process.error == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("fails_on_a_file", "/some/file: Permission denied"),
        ("fails_without_a_file", "nothing more is known"),
        (
            "lacks_the_extra",
            "capture lacks_the_extra needs grpc, which is not installed: pip install 'warmtap[tensorflow]'",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line(name: str, text: str) -> None:
    done = command(name)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"capture: error: {text}\n")


def test_a_mistake_of_ours_is_a_traceback() -> None:
    done = command("lacks_something_else")
    assert done.returncode == 1
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'capture.gone'\n")


#: Modules of the extra are not found, neither by an import nor by a look.
_BLOCKER = """
import sys
from importlib.machinery import PathFinder

class Blocker(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "tensorflow_serving", "grpc"):
            return None
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Blocker
"""


@pytest.fixture
def without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blocker").mkdir()
    (tmp_path / "blocker" / "sitecustomize.py").write_text(_BLOCKER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "blocker"), str(ROOT)]))


@pytest.mark.usefixtures("without_the_extra")
@pytest.mark.parametrize("name", COMMANDS)
def test_help_needs_no_extra(name: str) -> None:
    done = command(name, "--help", module="capture")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: capture {name} " in done.stdout


@pytest.fixture
def place(tmp_path: Path, ranking: Path) -> Path:
    """A store of one signature of model ``m``, and a version directory that holds a real saved_model.pb."""
    batch = Batch("run")
    add(batch, signature())
    filled(tmp_path / "store", batch).close()
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "saved_model.pb").symlink_to(ranking / "saved_model.pb")
    (tmp_path / "warmup").touch()
    return tmp_path


@pytest.mark.usefixtures("without_the_extra")
@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (
            ("verify", "--saved-model", "m/1", "--traffic", "store", "--warmup", "warmup"),
            2,
            "TensorFlow is not installed here",
        ),
        (("refresh", "--saved-model-base", "m", "--store", "store"), 1, "TensorFlow is not installed here"),
        (
            ("host", "--saved-model", "m/1", "--grpc-listen", "127.0.0.1:0"),
            1,
            "capture host needs grpc, which is not installed",
        ),
        (
            ("replay", "warmup", "--target", "grpc://127.0.0.1:1"),
            1,
            "capture replay needs grpc, which is not installed",
        ),
    ],
)
def test_what_needs_the_extra_says_so(arguments: tuple[str, ...], status: int, text: str, place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "capture", *arguments], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    extra = "replay" if arguments[0] == "replay" else "tensorflow"
    assert done.stderr == f"capture: error: {text}: pip install 'warmtap[{extra}]'\n"
