"""Requests built with TensorFlow's and TF Serving's own messages, without importing TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from capture.export.tfrecord import WARMUP_PATH
from replay import tf_protos
from tests.models.ranking import DENSE

DT_FLOAT, DT_INT32, DT_STRING, DT_INT64 = 1, 3, 7, 9
_FIELD = {DT_FLOAT: "float_val", DT_INT32: "int_val", DT_STRING: "string_val", DT_INT64: "int64_val"}


def tensor(dtype: int, shape: Sequence[int], values: Iterable[Any]) -> Any:
    """A TensorProto with ``values`` in the dtype's own field."""
    proto = tf_protos.load("tensorflow.core.framework.tensor_pb2").TensorProto(dtype=dtype)
    proto.tensor_shape.SetInParent()
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    getattr(proto, _FIELD[dtype]).extend(values)
    return proto


def ranking_inputs(batch: int = 2, items: int = 5) -> dict[str, Any]:
    """Every input of the ranking model's ``serving_default``."""
    return {
        "user_id": tensor(DT_STRING, [batch], [f"user-{row}".encode() for row in range(batch)]),
        "category": tensor(DT_STRING, [batch], [f"category-{row % 70}".encode() for row in range(batch)]),
        "dense": tensor(DT_FLOAT, [batch, DENSE], [n / 100 for n in range(batch * DENSE)]),
        "item_ids": tensor(DT_INT64, [batch, items], range(batch * items)),
    }


def predict_request(
    inputs: Mapping[str, Any],
    *,
    model: str = "ranking",
    signature: str = "",
    outputs: Sequence[str] = (),
    version: int | None = None,
) -> Any:
    """A PredictRequest."""
    request = tf_protos.load("tensorflow_serving.apis.predict_pb2").PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    for alias, proto in inputs.items():
        request.inputs[alias].CopyFrom(proto)
    request.output_filter.extend(outputs)
    return request


def census_input(rows: int = 1, *, context: bool = False, age: float = 30.0) -> Any:
    """An Input of tf.Examples for the census model; with ``context`` the job is shared by all of them."""
    made = tf_protos.load("tensorflow_serving.apis.input_pb2").Input()
    listed = made.example_list_with_context if context else made.example_list
    for row in range(rows):
        features = listed.examples.add().features.feature
        features["age"].float_list.value.append(age + row)
        if not context:
            features["job"].bytes_list.value.append(b"clerk")
    if context:
        listed.context.features.feature["job"].bytes_list.value.append(b"nurse")
    return made


def examples_request(
    method: str, signature: str, given: Any, *, model: str = "census", version: int | None = None
) -> Any:
    """A ClassificationRequest or RegressionRequest."""
    module, name = {
        "Classify": ("classification_pb2", "ClassificationRequest"),
        "Regress": ("regression_pb2", "RegressionRequest"),
    }[method]
    request = getattr(tf_protos.load(f"tensorflow_serving.apis.{module}"), name)()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    request.input.CopyFrom(given)
    return request


def tasks_request(tasks: Sequence[tuple[str, str]], given: Any, *, model: str = "census") -> Any:
    """A MultiInferenceRequest of (``classify`` or ``regress``, signature) each."""
    request = tf_protos.load("tensorflow_serving.apis.inference_pb2").MultiInferenceRequest()
    for kind, signature in tasks:
        task = request.tasks.add(method_name=f"tensorflow/serving/{kind}")
        task.model_spec.name = model
        task.model_spec.signature_name = signature
    request.input.CopyFrom(given)
    return request


def session_request(feeds: Mapping[str, Any], fetches: Sequence[str], *, model: str = "census") -> Any:
    """A SessionRunRequest."""
    request = tf_protos.load("tensorflow_serving.apis.session_service_pb2").SessionRunRequest(fetch=fetches)
    request.model_spec.name = model
    for name, proto in feeds.items():
        request.feed.add(name=name).tensor.CopyFrom(proto)
    return request


def serialized_examples(given: Any) -> Any:
    """What Classify and Regress feed for an Input without a context, as the TensorProto of a Predict."""
    examples = [example.SerializeToString() for example in given.example_list.examples]
    return tensor(DT_STRING, [len(examples)], examples)


def prediction_log(request: Any) -> bytes:
    """A PredictionLog with only ``predict_log.request``, as a warm-up record."""
    log = tf_protos.load("tensorflow_serving.apis.prediction_log_pb2").PredictionLog()
    log.predict_log.request.CopyFrom(request)
    serialized: bytes = log.SerializeToString()
    return serialized


def write_warmup(version_dir: Path, content: bytes) -> Path:
    """Put ``content`` where TF Serving looks for warm-up records."""
    path = version_dir / WARMUP_PATH
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path
