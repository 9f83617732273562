"""Classify, Regress and MultiInference on the model host, asked with the real tensorflow-serving-api stubs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from replay import tf_protos
from tests.support.processes import NotReady, run_tensorflow
from tests.support.tf_host import HostProcess
from tests.support.tf_models import private_copy
from tests.support.tf_requests import census_input, examples_request, tasks_request, write_warmup

pytestmark = pytest.mark.server

INVALID, NOT_FOUND, PRECONDITION, UNIMPLEMENTED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
)


@pytest.fixture(scope="module")
def host(census: Path) -> Iterator[HostProcess]:
    with HostProcess(census, eas=False) as started:
        yield started


@pytest.fixture(scope="module")
def stub(host: HostProcess) -> Iterator[Any]:
    with grpc.insecure_channel(host.grpc) as channel:
        yield tf_protos.load("tensorflow_serving.apis.prediction_service_pb2_grpc").PredictionServiceStub(channel)


_ORACLE = """
import json, sys
import tensorflow as tf
from tensorflow_serving.apis import input_pb2
given = input_pb2.Input.FromString(open(sys.argv[2], "rb").read())
examples = []
for example in given.example_list_with_context.examples:
    merged = tf.train.Example()
    merged.CopyFrom(example)
    merged.MergeFrom(given.example_list_with_context.context)
    examples.append(merged.SerializeToString())
signatures = tf.saved_model.load(sys.argv[1]).signatures
print(json.dumps({
    name: {alias: [[one.decode() if isinstance(one, bytes) else one for one in row] for row in value.numpy().tolist()]
           for alias, value in signatures[name](inputs=tf.constant(examples)).items()}
    for name in ("classify", "scores", "regress", "second")
}))
"""


def flat(rows: list[list[float]]) -> Any:
    return pytest.approx([value for row in rows for value in row], rel=1e-5)


def scores(result: Any) -> list[float]:
    return [one.score for row in result.classifications for one in row.classes]


def test_answers_are_those_of_tensorflow(stub: Any, census: Path, tmp_path: Path) -> None:
    """The oracle is TensorFlow's own loader and signature functions, in a process of its own; a shared context too."""
    given = census_input(3, context=True)
    (tmp_path / "input").write_bytes(given.SerializeToString())
    expected = run_tensorflow(_ORACLE, str(census), str(tmp_path / "input"))
    classified = stub.Classify(examples_request("Classify", "classify", given), timeout=60)
    assert scores(classified.result) == flat(expected["classify"]["scores"])
    labels = [[one.label for one in row.classes] for row in classified.result.classifications]
    assert labels == expected["classify"]["classes"]
    alone = stub.Classify(examples_request("Classify", "scores", given), timeout=60).result
    assert scores(alone) == flat(expected["scores"]["scores"])
    assert {one.label for row in alone.classifications for one in row.classes} == {""}
    regressed = stub.Regress(examples_request("Regress", "regress", given), timeout=60)
    assert [one.value for one in regressed.result.regressions] == flat(expected["regress"]["outputs"])
    both = stub.MultiInference(tasks_request([("regress", "second"), ("classify", "classify")], given), timeout=60)
    first, second = both.results
    assert [one.value for one in first.regression_result.regressions] == flat(expected["second"]["outputs"])
    assert scores(second.classification_result) == flat(expected["classify"]["scores"])
    specs = [classified.model_spec, regressed.model_spec, first.model_spec, second.model_spec]
    assert [(spec.name, spec.version.value, spec.signature_name) for spec in specs] == [
        ("census", 1, name) for name in ("classify", "regress", "second", "classify")
    ]


@pytest.mark.parametrize(
    ("method", "request_of", "code", "text"),
    [
        ("Classify", lambda: examples_request("Classify", "nope", census_input()), INVALID,
         "No signature was found with the name: nope"),
        ("Classify", lambda: examples_request("Classify", "regress", census_input()), PRECONDITION,
         'Expected classification signature outputs to contain at least one of "classes" or "scores".'),
        ("Classify", lambda: examples_request("Classify", "classify", census_input(0)), INVALID, "Input is empty."),
        ("Classify", lambda: examples_request("Classify", "classify", census_input(), version=7), NOT_FOUND,
         "Servable not found for request: Specific(census, 7)"),
        ("Regress", lambda: examples_request("Regress", "classify", census_input()), INVALID,
         "Expected one output Tensor."),
        ("Regress", lambda: examples_request("Regress", "regress", census_input(), model="x"), NOT_FOUND,
         "Servable not found for request: Latest(x)"),
        ("Regress", lambda: examples_request("Regress", "wide", census_input(2)), INVALID,
         "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]"),
        ("Regress", lambda: tf_protos.load("tensorflow_serving.apis.regression_pb2").RegressionRequest(), INVALID,
         "Missing ModelSpec"),
        ("MultiInference", lambda: tasks_request([], census_input()), INVALID, "ModelSpec has no name specified."),
        ("MultiInference", lambda: tasks_request([("regress", "nope")], census_input()), INVALID,
         "Requested signature not found in model graph: nope"),
        ("MultiInference", lambda: tasks_request([("regress", "regress")] * 2, census_input()), INVALID,
         "Duplicate evaluation of signature: regress"),
        ("MultiInference", lambda: tasks_request([("predict", "regress")], census_input()), UNIMPLEMENTED,
         "Unsupported signature method_name: tensorflow/serving/predict"),
        ("MultiInference", lambda: tasks_request([("regress", "regress")], census_input(), model="x"), NOT_FOUND,
         "Servable not found for request: Latest(x)"),
    ],
)  # fmt: skip
def test_refusals_in_the_servers_words(
    stub: Any, method: str, request_of: Any, code: grpc.StatusCode, text: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(request_of(), timeout=60)
    assert (caught.value.code(), caught.value.details()) == (code, text)


def test_an_example_without_its_feature_fails_in_the_run(stub: Any) -> None:
    given = census_input()
    del given.example_list.examples[0].features.feature["age"]
    with pytest.raises(grpc.RpcError) as caught:
        stub.Regress(examples_request("Regress", "regress", given), timeout=60)
    assert caught.value.code() == INVALID
    assert "Feature: age" in caught.value.details()


def test_a_record_whose_result_is_refused_fails_the_load(census: Path, tmp_path: Path) -> None:
    """As on the server, which checks shapes behind the run of a warm-up record too."""
    from capture.export.tfrecord import frame, prediction_log

    version_dir = private_copy(census, tmp_path)
    wide = examples_request("Regress", "wide", census_input(2)).SerializeToString()
    write_warmup(version_dir, frame(prediction_log(wide, "Regress")))
    with pytest.raises(NotReady) as caught, HostProcess(version_dir, eas=False):
        pass
    assert "warm-up failed: INVALID_ARGUMENT: Expected output Tensor shape to be either" in str(caught.value)
