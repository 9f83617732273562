"""refresh against real TensorFlow: the warm-up file of each new version, with only what runs on it."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from capture.dialects.base import Route
from capture.dialects.table import BY_NAME
from capture.export.manifest import MANIFEST_SUFFIX
from capture.export.tfrecord import WARMUP_PATH, frame, prediction_log, read_records
from capture.schema import messages
from capture.signature import DTYPES
from capture.store.base import Batch, open_store
from replay.trial import Request, run_trial
from tests.models.edge import TYPES
from tests.replay.test_signature_matrix import tfserving
from tests.replay.test_verify import fill
from tests.support.processes import capture
from tests.support.stores import add, sample
from tests.support.tf_host import HostProcess
from tests.support.tf_models import private_copy
from tests.support.tf_requests import write_warmup

pytestmark = pytest.mark.server

RUNS = [tfserving(["sum"]), tfserving([], signature="with_default")]
#: Negative values: this request reaches Session::Run and fails there.
FAILS = tfserving([], signature="checked", value=-1.0)
#: DataType numbers of TYPES.
NUMBERS = {
    **{name: number for number, name in DTYPES.items()},
    "float32": 1,
    "float64": 2,
    "float16": 19,
}
DOES_NOT_FIT = tfserving(["gone"])


def refresh(base: Path, store: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return capture("refresh", "--saved-model-base", str(base), "--store", str(store), *arguments)


def test_a_new_version_gets_a_file_with_what_runs_on_it(edge: Path, tmp_path: Path) -> None:
    model = private_copy(edge, tmp_path, version=2)
    (model / "saved_model.pb").chmod(0o644)
    store = fill(tmp_path / "store", "tfserving", [*RUNS, FAILS, DOES_NOT_FIT], [])
    done = refresh(model.parent, store)
    assert done.returncode == 0, done.stderr
    assert "version 2: 2 records, each run on it with TensorFlow" in done.stdout
    assert "does not fit: no output gone" in done.stdout
    assert "does not run on version 2: INVALID_ARGUMENT" in done.stdout
    file = model / WARMUP_PATH
    logs = [messages.PredictionLog.FromString(record) for record in read_records(file.read_bytes())]
    assert len(logs) == len(RUNS)
    manifest = json.loads(file.with_name(file.name + MANIFEST_SUFFIX).read_bytes())
    assert manifest["proof"]["level"] == "executor"
    assert {one["reason"].split(":")[0] for one in manifest["left_out"]} == {
        "does not fit",
        "does not run on version 2",
    }
    # The server reads it as another user: as readable as the model itself.
    assert file.stat().st_mode & 0o777 == 0o644
    # And the server loads it.
    with HostProcess(model, "--model-name=edge") as host:
        assert host.builds == len(RUNS)


def test_a_request_that_fails_is_replaced_by_one_of_another_version(edge: Path, tmp_path: Path) -> None:
    model = private_copy(edge, tmp_path, version=4)
    store = fill(tmp_path / "store", "tfserving", [FAILS], [])
    signature = BY_NAME["tfserving-grpc"].read(Route(BY_NAME["tfserving-grpc"], "Predict", "edge", ""), FAILS).signature
    batch = Batch("run")
    works = tfserving([], signature="checked", value=1.0)
    # Older, and so the second choice.
    add(batch, signature, version="2", body=works, at=sample(FAILS).captured_at - 1)
    source = open_store(str(store))
    source.apply(batch)
    source.close()
    done = refresh(model.parent, store)
    assert done.returncode == 0, done.stderr
    assert "version 4: 1 records, each run on it with TensorFlow" in done.stdout
    assert "does not run on version 4: INVALID_ARGUMENT" in done.stdout
    assert "; another request of the same executor is in the file" in done.stdout
    with HostProcess(model, "--model-name=edge") as host:
        assert host.builds == 1


def typed(outputs: Sequence[str]) -> bytes:
    """A request to signature ``types``: one input of every dtype, that many of them returned."""
    request = messages.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "edge", "types"
    for name in TYPES:
        given = request.inputs[name]
        given.dtype = NUMBERS[name]
        # A shape of no elements needs no values of any dtype.
        given.tensor_shape = messages.TensorShape(dim=[{"size": 0}]).SerializeToString()
    request.output_filter.extend(outputs)
    return bytes(request.SerializeToString())


def test_the_union_on_real_tensorflow(edge: Path, tmp_path: Path) -> None:
    """3 own signatures and 40 carried ones are 43 records, beside one that was made by hand; what does not run on this
    version, captured or made by hand, is left out with its error; and the server builds nothing for any of them."""
    model = private_copy(edge, tmp_path, version=2)
    carried = [typed(sets) for size in (1, 2) for sets in itertools.combinations(TYPES, size)][:40]
    own = [tfserving(["sum"]), tfserving(["double"]), tfserving([], signature="with_default")]
    store = fill(tmp_path / "store", "tfserving", [*carried, FAILS], [])
    batch = Batch("run")
    dialect = BY_NAME["tfserving-grpc"]
    for body in own:
        add(batch, dialect.read(Route(dialect, "Predict", "edge", ""), body).signature, version="2", body=body)
    source = open_store(str(store))
    source.apply(batch)
    source.close()
    hand = [prediction_log(tfserving(["a", "c"], signature="aliases", rows=3)), prediction_log(FAILS)]
    write_warmup(model, b"".join(map(frame, hand)))
    done = refresh(model.parent, store, "--in-place")
    assert done.returncode == 0, done.stderr
    # Both of FAILS: the captured one is of the same executor, and was tried when the one in the file did not run.
    left_out = [line for line in done.stdout.splitlines() if "left out" in line]
    assert len(left_out) == 2
    assert all("does not run on version 2: INVALID_ARGUMENT" in line for line in left_out)
    assert sum("stood in the file" in line for line in left_out) == 1
    file = model / WARMUP_PATH
    records = list(read_records(file.read_bytes()))
    assert len(records) == 43 + 1
    assert records[0] == hand[0]
    with HostProcess(model, "--model-name=edge") as host:
        assert host.builds == 43 + 1
    again = refresh(model.parent, store, "--in-place")
    # FAILS is tried again, as long as it is in the store: the model might have changed.
    assert "version 2: 44 records, and nothing to add" in again.stdout
    assert list(read_records(file.read_bytes())) == records


def test_a_version_that_has_a_file_is_left_alone(edge: Path, tmp_path: Path) -> None:
    model = private_copy(edge, tmp_path, version=3)
    file = model / WARMUP_PATH
    file.parent.mkdir()
    file.write_bytes(b"made by hand")
    store = fill(tmp_path / "store", "tfserving", RUNS, [])
    done = refresh(model.parent, store)
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["version 3: has a warm-up file already", "nothing to do: no new version"]
    assert file.read_bytes() == b"made by hand"


def test_nothing_is_written_when_nothing_fits(edge: Path, tmp_path: Path) -> None:
    model = private_copy(edge, tmp_path)
    store = fill(tmp_path / "store", "tfserving", [DOES_NOT_FIT], [])
    done = refresh(model.parent, store)
    assert done.returncode == 0
    assert "no warm-up file written" in done.stdout
    assert not (model / WARMUP_PATH).exists()


def test_a_broken_version_fails_and_the_others_are_done(edge: Path, tmp_path: Path) -> None:
    model = private_copy(edge, tmp_path, version=5)
    broken = model.parent / "4"
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(b"\xff" * 100)
    (model.parent / "6").mkdir()
    store = fill(tmp_path / "store", "tfserving", RUNS, [])
    done = refresh(model.parent, store)
    assert done.returncode == 1
    assert "version 4: FAILED" in done.stdout
    assert "version 6: no saved_model.pb yet" in done.stdout
    assert (model / WARMUP_PATH).exists()
    assert not (broken / WARMUP_PATH).exists()


@pytest.mark.parametrize("where", ["absent", "empty"])
def test_a_wrong_directory_is_one_line(tmp_path: Path, where: str) -> None:
    base = tmp_path / where
    if where == "empty":
        base.mkdir()
    store = fill(tmp_path / "store", "tfserving", RUNS, [])
    done = refresh(base, store)
    assert done.returncode == 1
    assert done.stderr.startswith(f"capture: error: {base}: no ")
    assert done.stderr.count("\n") == 1


def test_a_record_that_crashes_tensorflow_is_blamed_alone(
    edge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No kernel of the edge model crashes on purpose: the child is told to, through a module that it imports first."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'replay.trial' in ' '.join(sys.orig_argv):\n"
        "    from replay import calls\n"
        "    true = calls.run_counted\n"
        "    def run(executor, caller, body, method):\n"
        "        if b'crash' in body:\n"
        "            os.abort()\n"
        "        return true(executor, caller, body, method)\n"
        "    calls.run_counted = run\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    trial = run_trial(edge, "tfserving", [Request("Predict", body) for body in (RUNS[0], b"crash", RUNS[1])])
    assert trial.results[0].error == trial.results[2].error == ""
    assert trial.results[1].error == "TensorFlow crashed on it (exit -6)"
    assert trial.level == "executor"
