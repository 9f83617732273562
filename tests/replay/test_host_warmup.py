"""Warm-up on start by TF Serving's rules: what is run, what fails the load and with which words."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from capture.export.tfrecord import frame
from replay import tf_protos
from replay.host_warmup import read_records
from replay.predict import RequestError
from tests.support.processes import NotReady, run_tensorflow
from tests.support.tf_host import HostProcess
from tests.support.tf_models import private_copy
from tests.support.tf_requests import (
    DT_FLOAT,
    predict_request,
    prediction_log,
    ranking_inputs,
    tensor,
    write_warmup,
)

pytestmark = pytest.mark.server


def edge_request(signature: str = "", outputs: tuple[str, ...] = (), value: float = 1.0, **spec: Any) -> Any:
    inputs = {"x": tensor(DT_FLOAT, [1, 3], [value] * 3)}
    return predict_request(inputs, model="edge", signature=signature, outputs=outputs, **spec)


def log(**fields: Any) -> Any:
    return tf_protos.load("tensorflow_serving.apis.prediction_log_pb2").PredictionLog(**fields)


def examples(count: int = 1, context: bool = False) -> Any:
    made = tf_protos.load("tensorflow_serving.apis.input_pb2").Input()
    listed = made.example_list_with_context.examples if context else made.example_list.examples
    for place in range(count):
        features = listed.add().features
        if not context:
            features.feature["x"].float_list.value.append(place / 10)
    if context:
        made.example_list_with_context.context.features.feature["x"].float_list.value.append(0.5)
    return made


def failure(version_dir: Path, *arguments: str) -> str:
    with pytest.raises(NotReady) as caught:
        HostProcess(version_dir, *arguments)
    assert caught.value.status == 1
    prefix = "capture: error: warm-up failed: "
    assert caught.value.error.startswith(prefix)
    assert caught.value.error.count("\n") == 1
    return caught.value.error.removeprefix(prefix).rstrip("\n")


def test_a_valid_file_leaves_nothing_to_build(ranking: Path, tmp_path: Path) -> None:
    version_dir = private_copy(ranking, tmp_path)
    explain = ranking_inputs()
    del explain["item_ids"]
    requests = [
        predict_request(ranking_inputs()),
        predict_request(ranking_inputs(), outputs=["score", "top_ids"]),
        predict_request(explain, signature="explain"),
    ]
    # Name and version are not looked at in warm-up, and a missing model_spec is fine.
    requests[1].model_spec.name = "another"
    requests[1].model_spec.version.value = 99
    requests[0].ClearField("model_spec")
    write_warmup(version_dir, b"".join(frame(prediction_log(request)) for request in requests))
    with HostProcess(version_dir) as host, grpc.insecure_channel(host.grpc) as channel:
        assert host.builds == 3
        stub = tf_protos.load("tensorflow_serving.apis.prediction_service_pb2_grpc").PredictionServiceStub(channel)
        for request in (
            predict_request(ranking_inputs(batch=7, items=9)),
            predict_request(ranking_inputs(batch=1), outputs=["top_ids", "score"]),
            predict_request(explain, signature="explain"),
        ):
            stub.Predict(request, timeout=60)
        assert [answered["builds_delta"] for answered in host.statistics()["requests"]] == [0, 0, 0]
        stub.Predict(predict_request(ranking_inputs(), outputs=["score"]), timeout=60)
        assert host.statistics()["requests"][-1]["builds_delta"] == 1


def test_iterations_and_switching_it_off(edge: Path, tmp_path: Path) -> None:
    version_dir = private_copy(edge, tmp_path)
    write_warmup(version_dir, frame(prediction_log(edge_request())))
    with HostProcess(version_dir, "--num-request-iterations-for-warmup=3") as host:
        assert host.builds == 1
        runs = host.get("/monitoring/prometheus/metrics")
    with HostProcess(version_dir, "--num-request-iterations-for-warmup=0") as host:
        fewer = host.get("/monitoring/prometheus/metrics")
    assert graph_runs(runs) - graph_runs(fewer) == 2
    with HostProcess(version_dir, "--no-enable-model-warmup") as host:
        assert host.builds == 0


def graph_runs(metrics: str) -> int:
    return next(int(line.split()[1]) for line in metrics.splitlines() if line.startswith(":tensorflow:core:graph_runs"))


def test_no_file_and_an_empty_file(edge: Path, tmp_path: Path) -> None:
    version_dir = private_copy(edge, tmp_path)
    write_warmup(version_dir, b"")
    with HostProcess(version_dir) as host:
        assert host.builds == 0


def test_every_log_type_that_the_server_runs(edge: Path, tmp_path: Path) -> None:
    version_dir = private_copy(edge, tmp_path)
    classify, regress, both = log(), log(), log()
    classify.classify_log.request.model_spec.signature_name = "classify"
    classify.classify_log.request.input.CopyFrom(examples(2))
    regress.regress_log.request.model_spec.signature_name = "regress"
    regress.regress_log.request.input.CopyFrom(examples(1, context=True))
    both.multi_inference_log.request.input.CopyFrom(examples(3))
    for name in ("classify", "regress"):
        task = both.multi_inference_log.request.tasks.add(method_name=f"tensorflow/serving/{name}")
        task.model_spec.name = "edge"
        task.model_spec.signature_name = name
    nothing = log()
    records = [prediction_log(edge_request()), *(m.SerializeToString() for m in (classify, regress, both, nothing))]
    write_warmup(version_dir, b"".join(map(frame, records)))
    with HostProcess(version_dir) as host, grpc.insecure_channel(host.grpc) as channel:
        assert host.builds == 4
        stub = tf_protos.load("tensorflow_serving.apis.prediction_service_pb2_grpc").PredictionServiceStub(channel)
        example = examples().example_list.examples[0].SerializeToString()
        inputs = {"inputs": tensor(7, [1], [example])}
        stub.Predict(predict_request(inputs, model="edge", signature="classify"), timeout=60)
        assert host.new_builds() == 0, "Predict on a signature shares the executor of Classify"


def unset_example(made: Any) -> None:
    made.classify_log.request.model_spec.signature_name = "classify"


def unknown_classify(made: Any) -> None:
    made.classify_log.request.model_spec.signature_name = "nope"
    made.classify_log.request.input.CopyFrom(examples())


def unnamed_task(made: Any) -> None:
    made.multi_inference_log.request.tasks.add(method_name="tensorflow/serving/classify")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: made.session_run_log.SetInParent(), "UNIMPLEMENTED: Unsupported log_type for warmup: 5"),
        (unset_example, "INVALID_ARGUMENT: Input is empty."),
        (unknown_classify, "INVALID_ARGUMENT: No signature was found with the name: nope"),
        (unnamed_task, "INVALID_ARGUMENT: Found ModelSpec with an empty model name."),
    ],
)
def test_a_log_that_cannot_run(edge: Path, tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    version_dir = private_copy(edge, tmp_path)
    made = log()
    change(made)
    write_warmup(version_dir, frame(prediction_log(edge_request())) + frame(made.SerializeToString()))
    assert failure(version_dir) == message


def test_one_bad_record_fails_the_load(edge: Path, tmp_path: Path) -> None:
    version_dir = private_copy(edge, tmp_path)
    bad = prediction_log(edge_request(signature="nope"))
    write_warmup(version_dir, frame(prediction_log(edge_request())) + frame(bad))
    assert failure(version_dir) == 'FAILED_PRECONDITION: Serving signature key "nope" not found.'


def test_a_record_that_the_model_rejects(edge: Path, tmp_path: Path) -> None:
    version_dir = private_copy(edge, tmp_path)
    write_warmup(version_dir, frame(prediction_log(edge_request("checked", value=-1.0))))
    assert "x must not be negative" in failure(version_dir)


def test_a_record_that_is_no_prediction_log(edge: Path, tmp_path: Path) -> None:
    version_dir = private_copy(edge, tmp_path)
    path = write_warmup(version_dir, frame(b"\xff\xff"))
    message = failure(version_dir)
    assert message.startswith("INVALID_ARGUMENT: Failed to parse warmup record: ")
    assert message.endswith(f" from {path}")


@pytest.mark.parametrize("name", ["gzip", "bare", "truncated", "flipped"])
def test_a_file_that_is_no_tfrecord(edge: Path, tmp_path: Path, name: str) -> None:
    version_dir = private_copy(edge, tmp_path)
    record = prediction_log(edge_request())
    content = {
        "gzip": gzip.compress(frame(record)),
        "bare": record,
        "truncated": frame(record)[:-9],
        "flipped": frame(record)[:-1] + b"?",
    }[name]
    write_warmup(version_dir, content)
    reason = {
        "truncated": "truncated record at 0' failed with Read less bytes than requested",
        "flipped": "corrupted record at 12",
    }.get(name, "corrupted record at 0 (Is this even a TFRecord file?)")
    assert failure(version_dir) == f"DATA_LOSS: {reason}. Please verify your warmup data is in TFRecord format."


def test_a_thousand_records_are_legal_and_one_more_fails_after_it_ran(edge: Path, tmp_path: Path) -> None:
    version_dir = private_copy(edge, tmp_path)
    thousand = frame(prediction_log(edge_request())) * 1000
    write_warmup(version_dir, thousand)
    with HostProcess(version_dir) as host:
        assert host.builds == 1
    path = write_warmup(version_dir, thousand + frame(prediction_log(edge_request())))
    assert failure(version_dir) == f"INVALID_ARGUMENT: Number of warmup records exceeds the maximum (1000) at {path}"
    # The 1,001st runs before it is counted: its own failure is what is reported.
    write_warmup(version_dir, thousand + frame(prediction_log(edge_request("nope"))))
    assert failure(version_dir) == 'FAILED_PRECONDITION: Serving signature key "nope" not found.'


CASES = {
    "empty": b"",
    "two": frame(b"one") + frame(b"two"),
    "header cut": frame(b"one")[:7],
    "no data": frame(b"one")[:12],
    "data cut": frame(b"one") + frame(b"two")[:-2],
    "length flipped": b"?" + frame(b"one")[1:],
    "data flipped": frame(b"one") + frame(b"two")[:-5] + b"?" + frame(b"two")[-4:],
    "second length flipped": frame(b"one") + b"?" + frame(b"two")[1:],
    "one byte more": frame(b"one") + b"x",
    "zeros": bytes(16),
}


def test_records_are_read_as_tensorflow_reads_them(tmp_path: Path) -> None:
    """TensorFlow's own reader says what each damaged file is."""
    for place, content in enumerate(CASES.values()):
        (tmp_path / str(place)).write_bytes(content)
    program = """
import json, sys
import tensorflow as tf
found = []
for place in range(int(sys.argv[2])):
    records, error = [], ""
    try:
        for record in tf.compat.v1.io.tf_record_iterator(f"{sys.argv[1]}/{place}"):
            records.append(record.decode())
    except tf.errors.DataLossError as caught:
        error = caught.message
    found.append([records, error])
print(json.dumps(found))
"""
    expected = dict(zip(CASES, run_tensorflow(program, str(tmp_path), str(len(CASES))), strict=True))
    found = {}
    for name, content in CASES.items():
        records, error = [], ""
        try:
            records.extend(record.decode() for record in read_records(io.BytesIO(content)))
        except RequestError as caught:
            error = caught.message
        found[name] = [records, error]
    assert found == expected
