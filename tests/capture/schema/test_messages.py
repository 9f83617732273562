"""The minimal schemas against the servers' own messages."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from capture.schema import messages
from capture.schema.messages import DESCRIPTOR_SET
from replay import tf_protos
from tests.support.processes import run

DTYPES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 17, 18, 19, 22, 23]


def test_the_committed_descriptor_set_is_that_of_the_proto_files(tmp_path: Path) -> None:
    # In a process of its own: where TensorFlow's library is loaded, as other tests do, protoc cannot run.
    run([sys.executable, "-m", "capture.schema.generate", str(tmp_path / "made")])
    committed = resources.files("capture.schema").joinpath(DESCRIPTOR_SET).read_bytes()
    assert committed == (tmp_path / "made").read_bytes(), "run `make schema`"


def _real_request() -> Any:
    return tf_protos.load("tensorflow_serving.apis.predict_pb2").PredictRequest()


def _ours(real: Any) -> Any:
    return messages.PredictRequest.FromString(real.SerializeToString())


def _shape(request: Any, alias: str) -> Any:
    return messages.TensorShape.FromString(request.inputs[alias].tensor_shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_and_written_back_whole(dtype: int) -> None:
    real = _real_request()
    real.model_spec.name = "m"
    tensor = real.inputs["x"]
    tensor.dtype = dtype
    for size in (2, -1, 0):
        tensor.tensor_shape.dim.add(size=size, name="d")
    tensor.tensor_content = b"content"
    for field in ("float_val", "double_val", "int_val", "int64_val", "half_val", "uint32_val", "uint64_val"):
        getattr(tensor, field).extend([1, 2])
    tensor.string_val.append(b"s")
    tensor.bool_val.append(True)
    ours = _ours(real)
    assert ours.inputs["x"].dtype == dtype
    assert [dim.size for dim in _shape(ours, "x").dim] == [2, -1, 0]
    # What the schema does not name is kept, not lost.
    assert type(real).FromString(ours.SerializeToString()) == real


def test_scalar_unknown_rank_and_absent_shapes() -> None:
    real = _real_request()
    real.inputs["scalar"].tensor_shape.SetInParent()
    real.inputs["unknown"].tensor_shape.unknown_rank = True
    real.inputs["absent"].dtype = 1
    ours = _ours(real)
    assert list(_shape(ours, "scalar").dim) == []
    assert not _shape(ours, "scalar").unknown_rank
    assert _shape(ours, "unknown").unknown_rank
    assert ours.inputs["absent"].tensor_shape == b""


@pytest.mark.parametrize("outputs", [[], ["a"], ["b", "a"], ["a", "a"]])
def test_the_output_filter_keeps_order_and_repetition(outputs: list[str]) -> None:
    real = _real_request()
    real.output_filter.extend(outputs)
    assert list(_ours(real).output_filter) == outputs


def test_the_version_choice() -> None:
    real = _real_request()
    real.model_spec.signature_name = "s"
    assert _ours(real).model_spec.WhichOneof("version_choice") is None
    real.model_spec.version.value = 12
    assert _ours(real).model_spec.WhichOneof("version_choice") == "version"
    assert _ours(real).model_spec.version.value == 12
    real.model_spec.version_label = "stable"
    assert _ours(real).model_spec.WhichOneof("version_choice") == "version_label"
    assert _ours(real).model_spec.version_label == "stable"
    assert _ours(real).model_spec.signature_name == "s"


@pytest.mark.parametrize(
    "log_type",
    ["classify_log", "regress_log", "multi_inference_log", "session_run_log", "predict_log", "predict_streamed_log"],
)
def test_each_log_type_of_a_warm_up_record(log_type: str) -> None:
    real = tf_protos.load("tensorflow_serving.apis.prediction_log_pb2").PredictionLog()
    getattr(real, log_type).SetInParent()
    real.log_metadata.SetInParent()
    ours = messages.PredictionLog.FromString(real.SerializeToString())
    assert ours.WhichOneof("log_type") == log_type


def test_a_prediction_log_holds_the_request_byte_for_byte() -> None:
    real = tf_protos.load("tensorflow_serving.apis.prediction_log_pb2").PredictionLog()
    real.predict_log.request.model_spec.name = "m"
    real.predict_log.request.inputs["x"].tensor_content = b"12345678"
    ours = messages.PredictionLog.FromString(real.SerializeToString())
    request = messages.PredictLog.FromString(ours.predict_log).request
    assert request == real.predict_log.request.SerializeToString()


def test_a_signature_def_with_defaults_sparse_and_composite_inputs() -> None:
    real = tf_protos.load("tensorflow.core.protobuf.meta_graph_pb2").SignatureDef(
        method_name="tensorflow/serving/predict"
    )
    real.inputs["x"].name = "x:0"
    real.inputs["sparse"].coo_sparse.values_tensor_name = "v:0"
    real.inputs["composite"].composite_tensor.components.add(name="c:0")
    real.outputs["y"].name = "y:0"
    real.defaults["x"].dtype = 1
    ours = messages.SignatureDef.FromString(real.SerializeToString())
    assert {alias: info.name for alias, info in ours.inputs.items()} == {"x": "x:0", "sparse": "", "composite": ""}
    assert ours.outputs["y"].name == "y:0"
    assert ours.method_name == "tensorflow/serving/predict"
    assert set(ours.defaults) == {"x"}


def _fill_examples(request: Any) -> None:
    """Examples with every kind of feature, and a shared context."""
    listed = request.input.example_list_with_context
    for value in (1.0, 2.0):
        features = listed.examples.add().features.feature
        features["x"].float_list.value.append(value)
        features["id"].int64_list.value.extend([-1, 1 << 40])
    listed.context.features.feature["country"].bytes_list.value.append(b"\xff")


@pytest.mark.parametrize(
    ("module", "name"), [("classification", "ClassificationRequest"), ("regression", "RegressionRequest")]
)
def test_a_request_of_examples_is_what_the_server_reads(module: str, name: str) -> None:
    real = getattr(tf_protos.load(f"tensorflow_serving.apis.{module}_pb2"), name)()
    ours = messages.ExamplesRequest()
    for request in (real, ours):
        request.model_spec.name = "m"
        request.model_spec.signature_name = "s"
        _fill_examples(request)
    assert type(real).FromString(ours.SerializeToString()) == real
    assert messages.ExamplesRequestHead.FromString(real.SerializeToString()).model_spec.signature_name == "s"


def test_a_multi_inference_request_is_what_the_server_reads() -> None:
    real = tf_protos.load("tensorflow_serving.apis.inference_pb2").MultiInferenceRequest()
    ours = messages.MultiInferenceRequest()
    for request in (real, ours):
        for name in ("a", "b"):
            task = request.tasks.add(method_name="tensorflow/serving/regress")
            task.model_spec.name, task.model_spec.signature_name = "m", name
        _fill_examples(request)
    assert type(real).FromString(ours.SerializeToString()) == real
    head = messages.MultiInferenceRequestHead.FromString(real.SerializeToString())
    assert [(task.model_spec.signature_name, task.method_name) for task in head.tasks] == [
        ("a", "tensorflow/serving/regress"),
        ("b", "tensorflow/serving/regress"),
    ]


def test_a_session_run_request_is_read_without_its_values() -> None:
    real = tf_protos.load("tensorflow_serving.apis.session_service_pb2").SessionRunRequest()
    real.model_spec.name = "m"
    feed = real.feed.add(name="x:0")
    feed.tensor.dtype = 1
    feed.tensor.tensor_shape.dim.add(size=3)
    feed.tensor.tensor_content = b"123456789012"
    real.fetch.append("y:0")
    real.target.append("init")
    real.tensor_name_is_alias = True
    real.options.timeout_in_ms = 5
    ours = messages.SessionRunRequest.FromString(real.SerializeToString())
    assert [(one.name, one.tensor.dtype) for one in ours.feed] == [("x:0", 1)]
    assert (list(ours.fetch), list(ours.target), ours.tensor_name_is_alias) == (["y:0"], ["init"], True)
    assert type(real).FromString(ours.SerializeToString()) == real
