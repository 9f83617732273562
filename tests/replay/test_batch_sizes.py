"""--batch-sizes on real TensorFlow: the rows that it reads, files that servers load, and what does not run."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capture.dialects.tfserving_calls import READERS
from capture.export.batch import expanded
from capture.export.manifest import MANIFEST_SUFFIX
from capture.export.tfrecord import LOG_METHODS, WARMUP_PATH, read_records
from capture.schema import messages
from capture.signature import SignatureDef
from replay import tf_protos
from replay.calls import TFServingCaller, run_counted, signature_defs
from replay.executor.api import Executor
from replay.executor.session import open_executor
from tests.models.edge import TYPES
from tests.replay.test_signature_matrix import tfserving
from tests.replay.test_verify import fill
from tests.support.processes import capture
from tests.support.tf_host import HostProcess
from tests.support.tf_models import private_copy
from tests.support.tf_requests import (
    DT_FLOAT,
    census_input,
    examples_request,
    predict_request,
    tasks_request,
    tensor,
)

pytestmark = pytest.mark.server

#: By input of the edge model's signature ``types``: DataType, the field of its values, three rows of them, and the
#: struct code of one value in tensor_content ("" for strings).
ROWS: dict[str, tuple[int, str, list[list[Any]], str]] = {
    "float32": (1, "float_val", [[1.5], [2.5], [3.5]], "f"),
    "float64": (2, "double_val", [[1.5], [2.5], [3.5]], "d"),
    "int32": (3, "int_val", [[-1], [2], [3]], "i"),
    "uint8": (4, "int_val", [[1], [200], [3]], "B"),
    "int16": (5, "int_val", [[-1], [300], [3]], "h"),
    "int8": (6, "int_val", [[-1], [2], [3]], "b"),
    "string": (7, "string_val", [[b""], [b"bb" * 100], [b"ccc"]], ""),
    "complex64": (8, "scomplex_val", [[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]], "f"),
    "int64": (9, "int64_val", [[-1], [1 << 40], [3]], "q"),
    "bool": (10, "bool_val", [[True], [False], [True]], "?"),
    "bfloat16": (14, "half_val", [[16256], [16384], [16448]], "H"),
    "uint16": (17, "int_val", [[1], [60000], [3]], "H"),
    "complex128": (18, "dcomplex_val", [[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]], "d"),
    "float16": (19, "half_val", [[15360], [16384], [16896]], "H"),
}


@pytest.fixture(scope="module")
def executor(edge: Path) -> Iterator[Executor]:
    opened = open_executor(edge, level="executor")
    yield opened
    opened.close()


def request_of_types(form: str) -> bytes:
    inputs = {}
    for name in TYPES:
        dtype, field, rows, code = ROWS[name]
        proto = tf_protos.load("tensorflow.core.framework.tensor_pb2").TensorProto(dtype=dtype)
        proto.tensor_shape.dim.add(size=3)
        values = [value for row in rows[: 2 if form == "short" else 3] for value in row]
        if form != "content":
            getattr(proto, field).extend(values)
        elif code:
            proto.tensor_content = struct.pack(f"<{len(values)}{code}", *values)
        else:
            # Lengths as varints, then the strings.
            proto.tensor_content = b"\x00\xc8\x01\x03" + b"".join(values)
        inputs[name] = proto
    return bytes(predict_request(inputs, model="edge", signature="types").SerializeToString())


def echoed(executor: Executor, body: bytes) -> dict[str, list[list[Any]]]:
    """The rows that TensorFlow read, by input."""
    request = tf_protos.load("tensorflow_serving.apis.predict_pb2").PredictRequest.FromString(body)
    found = executor.signature_defs["types"]
    feeds = [(found.inputs[alias].name, proto.SerializeToString()) for alias, proto in request.inputs.items()]
    names = list(found.outputs)
    result = executor.run(feeds, [found.outputs[name].name for name in names])
    assert result.message == ""
    rows = {}
    for name, serialized in zip(names, result.outputs, strict=True):
        _, field, given, _ = ROWS[name]
        proto = tf_protos.load("tensorflow.core.framework.tensor_pb2").TensorProto.FromString(serialized)
        values, step = list(getattr(proto, field)), len(given[0])
        rows[name] = [values[at : at + step] for at in range(0, len(values), step)]
        assert len(rows[name]) == proto.tensor_shape.dim[0].size
    return rows


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("form", ["typed", "short", "content"])
def test_tensorflow_reads_the_rows_in_turn(executor: Executor, form: str, size: int) -> None:
    body = request_of_types(form)
    changed = expanded(body, READERS["Predict"](body).signature, signature_defs(executor), size)
    before, after = echoed(executor, body), echoed(executor, changed)
    assert before == {name: [*rows[:2], rows[1]] if form == "short" else rows for name, (_, _, rows, _) in ROWS.items()}
    assert after == {name: [rows[place % 3] for place in range(size)] for name, rows in before.items()}


EXAMPLES = {
    "Classify": examples_request("Classify", "classify", census_input(2)),
    "Regress": examples_request("Regress", "regress", census_input(2, context=True)),
    "MultiInference": tasks_request([("classify", "classify"), ("regress", "regress")], census_input(2)),
}


def test_requests_of_examples_run(census: Path) -> None:
    executor = open_executor(census, level="executor")
    caller = TFServingCaller(executor)
    defs: dict[str, SignatureDef] = signature_defs(executor)
    for method, request in EXAMPLES.items():
        body = request.SerializeToString()
        ran = [
            run_counted(executor, caller, expanded(body, READERS[method](body).signature, defs, size), method)
            for size in (1, 2, 7)
        ]
        assert [one.message for one in ran] == ["", "", ""]
        # The size is not in the executor's key.
        assert [one.builds for one in ran] == [1, 0, 0]
    executor.close()


def checked(*rows: float) -> bytes:
    """A request that fails where a value is negative."""
    given = tensor(DT_FLOAT, [len(rows), 3], [value for row in rows for value in [row] * 3])
    return bytes(predict_request({"x": given}, model="edge", signature="checked").SerializeToString())


SENT = [
    tfserving(["sum"], rows=2),
    tfserving([], signature="with_default", rows=8, scale=3.0),
    # Row 0 runs, row 1 does not.
    checked(1.0, -1.0),
]


def batches(file: Path) -> list[tuple[str, int]]:
    """(signature, rows) of each record."""
    found = []
    for record in read_records(file.read_bytes()):
        log = messages.PredictionLog.FromString(record)
        kind = log.WhichOneof("log_type")
        call = READERS[LOG_METHODS[kind]](messages.PredictLog.FromString(getattr(log, kind)).request)
        rows = next(one.shape for one in call.tensors if one.name == "x")
        assert rows is not None
        found.append((call.signature.signature_name, rows[0]))
    return sorted(found)


def test_export_writes_each_record_with_these_batches(edge: Path, tmp_path: Path) -> None:
    model = private_copy(edge, tmp_path)
    store = fill(tmp_path / "store", "tfserving", SENT, [])
    file = model / WARMUP_PATH
    file.parent.mkdir()
    export = ("export", "--format", "tfrecord", "--model", "edge", "--store", str(store), "--out", str(file))
    done = capture(*export, "--saved-model", str(model), "--batch-sizes", "1,8")
    assert done.returncode == 0, done.stderr
    assert batches(file) == [
        ("checked", 1), ("serving_default", 1), ("serving_default", 8), ("with_default", 1), ("with_default", 8),
    ]  # fmt: skip
    manifest = json.loads(file.with_name(file.name + MANIFEST_SUFFIX).read_bytes())
    assert {one["batch"] for one in manifest["records"]} == {1, 8}
    assert "scale:float[] x:float[1,3]" in {one["shapes"] for one in manifest["records"]}
    assert "records whose batch was changed ran with TensorFlow" in manifest["note"]
    [left] = manifest["left_out"]
    assert left["reason"].startswith("batch 8: does not run: INVALID_ARGUMENT")
    assert left["reason"].endswith("the record is in the file with batch 1")
    with HostProcess(model, "--model-name=edge") as host:
        assert host.builds == len(SENT)
    # Scrubbed: what was run is said, and of what does not run nothing that it held.
    done = capture(*export, "--saved-model", str(model), "--batch-sizes", "1,8", "--force", "--scrub",
                   "--scrub-rule", "edge:x=keep")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "scrubbed; records whose batch was changed ran with TensorFlow" in done.stderr
    assert "the others were not run: capture verify says whether every record runs" in done.stderr
    [left] = json.loads(file.with_name(file.name + MANIFEST_SUFFIX).read_bytes())["left_out"]
    assert "INVALID_ARGUMENT: failed at node" in left["reason"]
    assert "its text may quote values and is withheld" in left["reason"]


def test_refresh_writes_each_record_with_these_batches(edge: Path, tmp_path: Path) -> None:
    model = private_copy(edge, tmp_path, version=2)
    store = fill(tmp_path / "store", "tfserving", SENT[:2], [])
    done = capture(
        "refresh", "--saved-model-base", str(model.parent), "--store", str(store), "--batch-sizes", "2,4"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "version 2: 4 records, each run on it" in done.stdout
    assert batches(model / WARMUP_PATH) == [
        ("serving_default", 2), ("serving_default", 4), ("with_default", 2), ("with_default", 4),
    ]  # fmt: skip
    with HostProcess(model, "--model-name=edge") as host:
        assert host.builds == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "tfrecord"), "--batch-sizes: needs --saved-model DIR"),
        (("--format", "jsonl"), "--batch-sizes: is for tfrecord"),
    ],
)
def test_what_cannot_be_expanded_is_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    store = fill(tmp_path / "store", "tfserving", SENT, [])
    done = capture(
        "export", *arguments, "--model", "edge", "--store", str(store), "--out", str(tmp_path / "out"),
        "--batch-sizes", "1",
    )  # fmt: skip
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
