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
