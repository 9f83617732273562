"""``capture coverage`` as users and cron run it, on files that ``capture export`` wrote."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from capture.binomial import clopper_pearson
from capture.coverage_metrics import PREFIX, ROWS
from capture.export.tfrecord import WARMUP_PATH, frame, prediction_log
from capture.savedmodel import read_saved_model
from capture.signature import wire_signature
from capture.store.base import HOUR, Batch, ModelVersion, StoredMetadata, open_store
from tests.support.processes import capture
from tests.support.stores import add, body_of, filled, signature

pytestmark = pytest.mark.server

A, ALSO, ALL = signature(["scores"]), signature(["model_version_id", "scores"]), signature()
EAS = signature(["e"], family="eas", model="rank")
DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A and one that the file will miss, called now and on the six days before; two clients."""
    path = tmp_path / "s.sqlite"
    now = time.time()
    batch = Batch("run1", updated_at=now, counters={"requests_proven": 98, "requests_lost": 2})
    for one, hits, days in ((A, 90, range(7)), (ALSO, 6, range(1, 2)), (EAS, 2, range(7))):
        key = add(batch, one, proven=hits, at=now - DAY * max(days))
        batch.seen[key].senders = Counter({"grpc-java/1.5 10.0.0.0/24": hits - 1, "probe 10.9.0.0/24": 1})
        for day in days:
            batch.seen[key].blocks[int((now - DAY * day) // HOUR), "grpc-java"] = 5
            batch.seen[key].blocks[int((now - DAY * day) // HOUR), "probe"] = 1
    filled(path, batch).close()
    return path


def export(store: Path, out: Path, *more: str, form: str = "tfrecord", model: str = "m") -> Path:
    done = capture(
        "export", "--store", str(store), "--format", form, "--model", model, "--out", str(out), "--limit", "1", *more
    )
    assert done.returncode == 0, done.stderr
    return out


def as_of(file: Path, days: float) -> None:
    """Make the file that many days old, by its manifest."""
    manifest = file.with_name(file.name + ".manifest.json")
    told = json.loads(manifest.read_bytes())
    told["created_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - DAY * days))
    manifest.write_text(json.dumps(told))


def judged(store: Path, file: Path, *more: str, status: int) -> Any:
    done = capture("coverage", "--store", str(store), "--warmup", str(file), "--json", *more)
    assert done.returncode == status, done
    return json.loads(done.stdout)


def test_what_is_missing_is_named_and_explained(store: Path, tmp_path: Path) -> None:
    file = export(store, tmp_path / "f")
    found = judged(store, file, status=1)
    assert (found["model"], found["calls"], found["calls_covered"], found["share"]) == ("m", 96, 90, 90 / 96)
    assert (found["keys"], found["keys_covered"], found["covered"]) == (2, 1, False)
    (missing,) = found["missing"]
    assert missing["line"] == str(ALSO)
    assert missing["explained"] == f"nearest record {A.digest[:15]}: fetches also: model_version_id"
    assert missing["senders"] == {"grpc-java/1.5 10.0.0.0/24": 5, "probe 10.9.0.0/24": 1}
    assert missing["executor_key"] is None
    assert found["compared"].startswith("wire signatures (the model is not known")
    done = capture("coverage", "--store", str(store), "--warmup", str(file))
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "HITS\tFIRST SEEN\tSENDERS\tMISSING\tEXPLAINED"
    assert lines[1].startswith("6\t1 d ago\tgrpc-java/1.5 10.0.0.0/24 (5), probe 10.9.0.0/24 (1)\t")
    assert lines[2].startswith("not covered: 90 of 96 calls of m (93.75 %), 1 of 2 keys; compared by wire signatures")
    assert lines[3].startswith("bound: none yet (100 %): no block of 24 h has passed since ")
    as_of(file, 5.5)
    told = capture("coverage", "--store", str(store), "--warmup", str(file)).stdout.splitlines()[3]
    assert told.startswith("bound: at most ")
    assert "if traffic stays like this window" in told


def test_the_bound_counts_what_came_after_the_file(store: Path, tmp_path: Path) -> None:
    file = export(store, tmp_path / "f")
    as_of(file, 5.5)
    held = judged(store, file, status=1)["bound"]
    assert (held["since_from"], held["block_hours"], held["condition"]) == (
        "manifest",
        24,
        "if traffic stays like this window",
    )
    # Five whole days and two clients; both called what is missing on one of them.
    assert (held["missed_blocks"], held["blocks"]) == (2, 10)
    assert held["lost_share"] == pytest.approx(0.02)
    assert held["missed_blocks_upper"] == pytest.approx(clopper_pearson(2, 10).high)
    assert held["share"] == pytest.approx(clopper_pearson(2, 10).high + 0.02)
    as_of(file, 0.5)
    again = judged(store, file, "--block-hours", "1", status=1)["bound"]
    assert (again["missed_blocks"], again["calls_missed"]) == (0, 0)


def test_a_file_without_a_manifest_of_its_bytes_is_as_old_as_it_is(store: Path, tmp_path: Path) -> None:
    file = export(store, tmp_path / "f")
    file.write_bytes(frame(prediction_log(body_of(ALSO), "Predict")))
    os.utime(file, (time.time() - 3.5 * DAY,) * 2)
    found = judged(store, file, status=1)
    # Three days, and the one that is not over but was missed.
    assert (found["bound"]["since_from"], found["bound"]["blocks"]) == ("file time", 8)
    assert [one["line"] for one in found["missing"]] == [str(A)]


@pytest.mark.parametrize(("least", "status"), [("0.9", 0), ("0.94", 1), ("0", 0)])
def test_the_exit_code_is_for_cron(store: Path, tmp_path: Path, least: str, status: int) -> None:
    found = judged(store, export(store, tmp_path / "f"), "--least", least, status=status)
    assert found["covered"] == (status == 0)


def test_a_file_of_eas_does_not_name_its_service(store: Path, tmp_path: Path) -> None:
    out = export(store, tmp_path / "d", form="eas-bin", model="rank")
    found = judged(store, out, status=0)
    assert (found["model"], found["calls"], found["missing"]) == ("rank", 2, [])
    (tmp_path / "plain.bin").write_bytes(body_of(EAS))
    assert judged(store, tmp_path / "plain.bin", status=0)["model"] == "rank"


def test_executor_keys_of_the_version(store: Path, tmp_path: Path, ranking: Path) -> None:
    name = "serving_default"
    found_def = read_saved_model(ranking).signatures[name]
    outputs = sorted(found_def.outputs)
    batch = Batch("run1")
    every, named, one_less = (
        wire_signature("tfserving", "ranking", "Predict", name, found_def.inputs, asked)
        for asked in ((), outputs, outputs[1:])
    )
    refused = wire_signature("tfserving", "ranking", "Predict", name, found_def.inputs, ["gone"])
    for hits, one in enumerate((refused, one_less, named, every), 1):
        add(batch, one, proven=hits)
    opened = open_store(str(store))
    opened.apply(batch)
    opened.close()
    file = export(store, tmp_path / "f", "--saved-model", str(ranking), model="ranking")
    found = judged(store, file, "--saved-model", str(ranking), status=1)
    assert found["compared"] == f"executor keys on {ranking}"
    # The empty filter is the same executor as every output by its name; a fetch less is another one.
    assert (found["calls_covered"], found["calls"], found["keys"]) == (7, 9, 2)
    (missing,) = found["missing"]
    assert (missing["line"], missing["hits"]) == (str(one_less), 2)
    assert len(missing["executor_key"]["fetches"]) == len(outputs) - 1
    assert [(one["line"], one["hits"], one["reason"]) for one in found["excluded"]] == [
        (str(refused), 1, "no output gone")
    ]
    # By wire signatures more seems to be missing.
    assert judged(store, file, status=1)["calls_covered"] == 4
    # In the model's own place it is known which model that is.
    version = tmp_path / "1"
    (version / "assets.extra").mkdir(parents=True)
    (version / "saved_model.pb").symlink_to(ranking / "saved_model.pb")
    own = file.rename(version / WARMUP_PATH)
    for named in (own, version):
        found = judged(store, named, status=1)
        assert (found["compared"], found["calls_covered"]) == (f"executor keys on {version}", 7)


def test_what_the_model_server_told_of_its_signatures_serves_as_well(store: Path, tmp_path: Path) -> None:
    tensors = {name: {"name": f"{name}:0", "dtype": "DT_FLOAT"} for name in ("x", "scores", "model_version_id")}
    inputs = {"x": tensors.pop("x")}
    defs = {"serving_default": {"inputs": inputs, "outputs": tensors, "method_name": "tensorflow/serving/predict"}}
    owner = ModelVersion("tfserving", "m", "1")
    answer = {"model_spec": {"name": "m", "version": "1"}, "metadata": {"signature_def": {"signature_def": defs}}}
    batch = Batch("run1", metadata={owner: StoredMetadata(owner, 1.0, json.dumps(answer).encode())})
    add(batch, ALL, proven=4)
    opened = open_store(str(store))
    opened.apply(batch)
    opened.close()
    found = judged(store, export(store, tmp_path / "f"), status=1)
    assert found["compared"] == "executor keys on m/1, as the model server told its SignatureDefs"
    # Every output by its name is what the empty filter fetches.
    assert (found["calls_covered"], found["calls"], found["keys"]) == (90, 100, 2)


@pytest.mark.parametrize("version", ["1", "2"])
def test_only_what_one_version_answered(store: Path, tmp_path: Path, version: str) -> None:
    file = export(store, tmp_path / "f")
    opened = open_store(str(store))
    batch = Batch("run1")
    add(batch, A, version="2", proven=7)
    opened.apply(batch)
    opened.close()
    found = judged(store, file, "--model-version", version, status=1 if version == "1" else 0)
    assert found["calls"] == {"1": 96, "2": 7}[version]


def test_what_cannot_be_judged(store: Path, tmp_path: Path, ranking: Path) -> None:
    file = export(store, tmp_path / "f")
    broken = tmp_path / "broken"
    broken.write_bytes(file.read_bytes()[:-3])
    (tmp_path / "empty").touch()
    for arguments, text in (
        (("--warmup", tmp_path / "none"), "none: No such file or directory"),
        (("--warmup", broken), "`capture inspect` says more"),
        (("--warmup", store), "is a store, no warm-up file"),
        (("--warmup", file, "--model", "other"), "nothing captured of model other that tfrecord could hold"),
        (("--warmup", file, "--model-version", "9"), "nothing captured of model m version 9"),
        (("--warmup", file, "--saved-model", tmp_path), "saved_model.pb"),
        (("--warmup", file, "--saved-model", ranking), f"{ranking}: takes none of the 90 calls of {A}: "),
    ):
        done = capture("coverage", "--store", str(store), *map(str, arguments))
        assert (done.returncode, done.stdout) == (2, ""), done
        assert done.stderr.startswith("capture: error: ")
        assert text in done.stderr
        assert done.stderr.count("\n") == 1


def read_metrics(file: Path) -> dict[str, tuple[dict[str, str], float]]:
    """The one sample of each metric, by its name without the prefix."""
    families = list(text_string_to_metric_families(file.read_text()))
    assert all(len(family.samples) == 1 for family in families)
    samples = [family.samples[0] for family in families]
    return {one.name.removeprefix(PREFIX): (one.labels, one.value) for one in samples}


def test_metrics_for_the_node_exporter(store: Path, tmp_path: Path) -> None:
    file, metrics = export(store, tmp_path / "f"), tmp_path / "m.prom"
    as_of(file, 5.5)
    begun = time.time()
    found = judged(store, file, "--least", "0.95", "--model-version", "1", "--prometheus", str(metrics), status=1)
    assert stat.S_IMODE(metrics.stat().st_mode) == 0o644
    told = read_metrics(metrics)
    assert {PREFIX + name for name in told} == {row.name for row in ROWS}
    of_run, of_file = {"warmup": str(file)}, {"model": "m", "version": "1", "warmup": str(file)}
    assert told["run_success"] == (of_run, 1)
    assert told["run_timestamp_seconds"][0] == of_run
    assert begun <= told["run_timestamp_seconds"][1] <= time.time()
    figures = {name: value for name, (labels, value) in told.items() if labels == of_file}
    assert figures.pop("bound_share") == pytest.approx(found["bound"]["share"])
    assert figures.pop("file_timestamp_seconds") == found["bound"]["since"]
    assert figures == {
        "reached": 0,
        "share": 90 / 96,
        "least_share": 0.95,
        "calls": 96,
        "excluded_calls": 0,
        "keys": 2,
        "missing_keys": 1,
        "bound_blocks": 10,
        "lost_share": 0.02,
    }
    if promtool := shutil.which("promtool"):
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=metrics.read_text(), capture_output=True, text=True
        )
        assert (checked.returncode, checked.stderr) == (0, "")
    # A run that cannot judge takes the figures away: an old success would look like one of today.
    file.write_bytes(b"broken")
    done = capture("coverage", "--store", str(store), "--warmup", str(file), "--prometheus", str(metrics))
    assert done.returncode == 2
    told = read_metrics(metrics)
    assert set(told) == {"run_success", "run_timestamp_seconds"}
    assert told["run_success"] == (of_run, 0)
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".m.prom")] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.txt", "m.txt: the node exporter reads only files that end in .prom"),
        ("none/m.prom", "none is no directory"),
        ("d.prom", "d.prom: Is a directory"),
    ],
)
def test_metrics_that_nobody_could_read(store: Path, tmp_path: Path, name: str, text: str) -> None:
    file = export(store, tmp_path / "f")
    (tmp_path / "d.prom").mkdir()
    done = capture("coverage", "--store", str(store), "--warmup", str(file), "--prometheus", str(tmp_path / name))
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
