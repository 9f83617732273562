"""Levels on a model that XLA compiles, on real TensorFlow: names save builds, a finer level compilations too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from capture.dialects.tfserving_calls import read_predict
from capture.export.tfrecord import WARMUP_PATH, read_records
from capture.levels import parse_level, short
from capture.store.base import Batch, HeldOut, ModelVersion, RecordKey, SignatureDelta, open_store
from tests.models.compiled import WIDTH
from tests.support.processes import capture
from tests.support.stores import sample
from tests.support.tf_models import private_copy
from tests.support.tf_requests import DT_FLOAT, DT_INT32, predict_request, tensor

pytestmark = pytest.mark.server


def request(rows: int, *, value: float = 1.0, k: int | None = None) -> bytes:
    inputs = {"x": tensor(DT_FLOAT, [rows, WIDTH], [value] * rows * WIDTH)}
    if k is not None:
        inputs["k"] = tensor(DT_INT32, [], [k])
    signature = "" if k is None else "top"
    return bytes(predict_request(inputs, model="compiled", signature=signature).SerializeToString())


def fill(path: Path, level: str, sent: Sequence[bytes], held: Sequence[bytes]) -> Path:
    """What a worker of this level would keep of ``sent``: the first request of each record is its sample."""
    batch = Batch("run")
    for number, body in enumerate([*sent, *held]):
        call = read_predict(body)
        digest = call.signature.digest + parse_level(level).suffix(call, body)
        key = RecordKey(ModelVersion("tfserving", "compiled", "1"), digest)
        batch.seen.setdefault(key, SignatureDelta(call.signature, 1.0, 1.0)).proven += 1
        kept = sample(body)
        kept.shapes = call.shapes
        if number < len(sent):
            batch.samples.setdefault(key, kept)
        else:
            batch.held_out[str(number)] = (key, HeldOut(str(number), kept, 0.5, True))
    store = open_store(str(path), create=True)
    store.apply(batch)
    store.close()
    return path


def export(store: Path, model: Path, out: Path, *arguments: str) -> list[Any]:
    """The manifest's records."""
    done = capture(
        "export", "--format", "tfrecord", "--model", "compiled", "--saved-model", str(model), "--store", str(store),
        "--out", str(out), *arguments,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(out.with_name(out.name + ".manifest.json").read_bytes())["records"]
    assert len(found) == sum(1 for _ in read_records(out.read_bytes()))
    return found


def verify(store: Path, model: Path, warmup: Path) -> dict[str, Any]:
    done = capture(
        "verify", "--saved-model", str(model), "--traffic", str(store), "--warmup", str(warmup), "--json"
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


SHAPES = [request(2), request(5)], [request(2, value=3.0), request(5, value=3.0)]
VALUES = [request(2, k=1), request(2, k=3)], [request(2, value=3.0, k=1), request(2, value=3.0, k=3)]


@pytest.mark.parametrize(
    ("level", "traffic", "records", "compilations"),
    [
        ("names", SHAPES, 1, 1),
        ("shapes", SHAPES, 2, 0),
        ("shapes(batch=2,8)", SHAPES, 2, 0),
        ("names", VALUES, 1, 1),
        ("shapes", VALUES, 1, 1),
        ("values(k)", VALUES, 2, 0),
        ("shapes+values(k)", VALUES, 2, 0),
    ],
)
def test_what_is_compiled_behind_a_file_of_a_level(
    compiled: Path,
    tmp_path: Path,
    level: str,
    traffic: tuple[list[bytes], list[bytes]],
    records: int,
    compilations: int,
) -> None:
    store = fill(tmp_path / "store", level, *traffic)
    written = export(store, compiled, tmp_path / "warmup")
    assert len(written) == records
    found = verify(store, compiled, tmp_path / "warmup")
    assert (found["cold"]["graph_builds"], found["cold"]["xla_compilations"]) == (1, 2)
    assert (found["warm"]["graph_builds"], found["warm"]["xla_compilations"]) == (0, compilations)
    assert found["executor_keys"] == 1
    if level == "shapes" and traffic is VALUES:
        # The class is warm and the value is not: what the level does not tell apart, it cannot keep.
        assert found["verdict"] == "failed"
        assert "XLA compiled 1 times; no record is of its class" in found["reasons"][0]
    else:
        assert found["verdict"] == "proved"
        # A busy machine may have slow calls to note besides.
        assert sum("XLA compiled 1 times" in note for note in found["notes"]) == compilations


def test_a_class_that_no_record_is_of_fails_the_proof(compiled: Path, tmp_path: Path) -> None:
    export(fill(tmp_path / "names", "names", *SHAPES), compiled, tmp_path / "warmup")
    # A class that was not held out is judged by its sample.
    found = verify(fill(tmp_path / "shapes", "shapes", SHAPES[0], SHAPES[1][:1]), compiled, tmp_path / "warmup")
    assert (found["verdict"], found["samples_judged"], found["warm"]["xla_compilations"]) == ("failed", 1, 1)
    assert found["reasons"][0].startswith("Predict compiled/serving_default (x) -> (*): XLA compiled 1 times;")


def test_batch_sizes_make_the_classes_that_were_not_captured(compiled: Path, tmp_path: Path) -> None:
    store = fill(tmp_path / "store", "names", *SHAPES)
    written = export(store, compiled, tmp_path / "warmup", "--batch-sizes", "2,5")
    assert [one["shapes"] for one in written] == [f"x:float[2,{WIDTH}]", f"x:float[5,{WIDTH}]"]
    found = verify(store, compiled, tmp_path / "warmup")
    assert (found["verdict"], found["warm"]["xla_compilations"]) == ("proved", 0)


def test_refresh_ls_show_and_diff_tell_classes_apart(compiled: Path, tmp_path: Path) -> None:
    model = private_copy(compiled, tmp_path)
    store = fill(tmp_path / "store", "shapes", *SHAPES)
    done = capture("refresh", "--saved-model-base", str(model.parent), "--store", str(store))
    assert "version 1: 2 records, each run on it" in done.stdout, done.stderr
    rows = capture("ls", "--store", str(store)).stdout.splitlines()[1:]
    assert sorted(row.partition("[")[2] for row in rows) == [f"x:float[{rows},{WIDTH}]]" for rows in (2, 5)]
    names = [row.split()[0] for row in rows]
    assert len(set(names)) == 2
    digest = read_predict(SHAPES[0][0]).signature.digest
    assert all(name.startswith(f"{short(digest)}.") for name in names)
    shown = capture("show", names[0], "--store", str(store)).stdout
    assert shown.count("    class    ") == 1
    assert capture("show", short(digest), "--store", str(store)).stdout.count("    class    ") == 2
    assert capture("diff", str(model / WARMUP_PATH), str(store)).returncode == 0
    one = tmp_path / "one"
    export(fill(tmp_path / "names", "names", *SHAPES), model, one)
    done = capture("diff", str(one), str(store))
    assert done.returncode == 1
    assert done.stdout.count("only in B") == 1
