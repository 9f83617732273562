"""The trial's parent, against children that answer by a script instead of TensorFlow."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from replay import trial
from replay.tf_protos import TensorFlowMissing
from replay.trial import Request, TrialError, run_trial
from tests.support.processes import ROOT

pytestmark = pytest.mark.server

#: Answers by the body: ``die`` ends the process, ``last`` does so after its answer, ``bad`` is an error, ``junk`` cuts
#: the line off, ``hang`` signals the parent and waits for ever, ``stuck`` only waits.
_CHILD = """
import json, os, signal, sys
out, read = sys.stdout, sys.stdin.buffer
folder = sys.argv[2]
if folder.endswith("crash"): os._exit(3)
if folder.endswith("stuck"): signal.pause()
if folder.endswith("broken"): print(json.dumps({"error": "no saved_model.pb"}), flush=True); sys.exit()
print(json.dumps({"level": "executor", "tensorflow": "2.21"}), flush=True)
while len(size := read.read(4)) == 4:
    method, _, body = read.read(int.from_bytes(size, "big")).partition(b"\\0")
    assert method == b"Predict"
    if body == b"die": os.kill(os.getpid(), 6)
    if body == b"stuck": signal.pause()
    if body == b"hang":
        open(sys.argv[0] + ".pid", "w").write(str(os.getpid())); os.kill(os.getppid(), signal.SIGUSR1); signal.pause()
    if body == b"junk": out.write('{"err'); out.flush(); os._exit(0)
    if body == b"last": os.close(0); print(json.dumps({"error": ""}), flush=True); os._exit(4)
    print(json.dumps({"error": "refused" if body == b"bad" else "", "seconds": 0.5, "builds": len(body)}), flush=True)
"""


@pytest.fixture(autouse=True)
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "child.py"
    script.write_text(_CHILD)
    wrapper = tmp_path / "python"
    # Called as ``python ... -m replay.trial DIR FAMILY``.
    skip = 'while [ "$1" != replay.trial ]; do shift; done'
    wrapper.write_text(f'#!/bin/sh\n{skip}\nexec {sys.executable} {script} x "$2"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr(trial.sys, "executable", str(wrapper))


def requests(*bodies: bytes) -> list[Request]:
    return [Request("Predict", body) for body in bodies]


def test_every_record_is_run_once_in_order(tmp_path: Path) -> None:
    done = run_trial(tmp_path, "tfserving", requests(b"a", b"bad", b"ccc", b"x" * 300_000))
    assert (done.level, done.tensorflow) == ("executor", "2.21")
    assert [(one.error, one.builds) for one in done.results] == [("", 1), ("refused", 3), ("", 3), ("", 300_000)]


def test_a_record_that_kills_the_child_is_to_blame_alone(tmp_path: Path) -> None:
    done = run_trial(tmp_path, "tfserving", requests(b"die", b"a", b"die", b"junk", b"b"))
    assert [one.error for one in done.results] == [
        "TensorFlow crashed on it (exit -6)",
        "",
        "TensorFlow crashed on it (exit -6)",
        "TensorFlow crashed on it (exit 0)",
        "",
    ]


def test_the_last_record_may_be_the_one_that_crashes(tmp_path: Path) -> None:
    done = run_trial(tmp_path, "tfserving", requests(b"a", b"die"))
    assert [bool(one.error) for one in done.results] == [False, True]


def test_a_child_that_dies_between_two_records(tmp_path: Path) -> None:
    # It reads no more when it answers: writing fails, and nothing may come of the bytes that are left over.
    for size in (1, 300_000):
        done = run_trial(tmp_path, "tfserving", requests(b"last", b"x" * size, b"a"))
        assert [one.error.partition("(")[0] for one in done.results] == ["", "TensorFlow crashed on it ", ""]


def test_no_records_still_say_whether_the_model_loads(tmp_path: Path) -> None:
    assert run_trial(tmp_path, "tfserving", requests()).level == "executor"
    with pytest.raises(TrialError, match=r"^no saved_model.pb$"):
        run_trial(tmp_path / "broken", "tfserving", requests())


def test_a_model_that_crashes_while_loading(tmp_path: Path) -> None:
    with pytest.raises(TrialError, match=r"TensorFlow crashed while loading it$"):
        run_trial(tmp_path / "crash", "tfserving", requests(b"a"))


def test_too_many_crashes_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MAX_CRASHES", 2)
    with pytest.raises(TrialError, match=r"TensorFlow crashed on 3 records; nothing was published$"):
        run_trial(tmp_path, "tfserving", requests(*[b"die"] * 5))


def test_a_record_or_a_load_that_hangs_is_stopped(tmp_path: Path) -> None:
    done = run_trial(tmp_path, "tfserving", requests(b"stuck", b"stuck"), record_seconds=0.1)
    said = "did not end within 0.1 s, and TensorFlow was stopped"
    assert [one.error for one in done.results] == [said, said]
    with pytest.raises(TrialError, match=f"stuck: {said}; nothing was published$"):
        run_trial(tmp_path / "stuck", "tfserving", requests(b"a"), load_seconds=0.1)


def test_an_end_from_outside_does_not_wait_for_the_child(tmp_path: Path) -> None:
    def end(*_: object) -> None:
        sys.exit(143)

    before = signal.signal(signal.SIGUSR1, end)
    try:
        with pytest.raises(SystemExit):
            run_trial(tmp_path, "tfserving", requests(b"a", b"hang", b"b"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "child.py.pid").read_text()), 0)


def test_without_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    with pytest.raises(TensorFlowMissing, match=r"^TensorFlow is not installed here: pip install"):
        run_trial(tmp_path, "tfserving", requests(b"a"))


#: As it was before the script took its place.
_COMMAND = [sys.executable, "-P", "-m", "replay.trial"]


def test_the_child_ends_quietly_on_an_interrupt(edge: Path) -> None:
    child = subprocess.Popen(
        [*_COMMAND, str(edge), "tfserving"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        assert b'"level":' in child.stdout.readline()
        child.send_signal(signal.SIGINT)
        _, error = child.communicate()
    assert child.returncode == -signal.SIGINT
    assert b"Traceback" not in error


def test_the_child_ends_quietly_when_nobody_listens(edge: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*_COMMAND, str(edge), "tfserving"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert done.returncode == -signal.SIGPIPE
    for word in (b"Traceback", b"BrokenPipe", b"Exception ignored"):
        assert word not in done.stderr
