"""PAI-EAS's TensorFlow processor: a protobuf PredictRequest in the body of an HTTP POST.

Messages: tf_request.proto of the EAS SDKs. Which processor a service runs cannot be told from its bodies (a TF Serving
PredictRequest parses as one of these): it is told by the path and the settings, and what fits badly is refused here.
Status codes: alibabacloud.com, EAS "Status codes" (doc-detail 449809).
"""

from __future__ import annotations

import re
from math import prod
from typing import Any, Final, Literal
from urllib.parse import unquote

from google.protobuf.message import DecodeError

from capture.config import ListenerConfig
from capture.dialects.base import (
    MAX_DIMENSIONS,
    Ignored,
    Judgement,
    Opaque,
    Outcome,
    Response,
    Route,
    Unreadable,
)
from capture.schema import messages
from capture.schema.wire import FieldProbe, crowded
from capture.signature import Call, TensorSpec, wire_signature

#: ArrayDataType -> the field that holds its values. DT_HALF, DT_BFLOAT16 and the complex types are taken from
#: DeepRec's message_coding.cc (half and bfloat16 in float_val; complex numbers as pairs).
_VALUES: Final = {
    1: ("float_val", 1),
    2: ("double_val", 1),
    3: ("int_val", 1),
    4: ("int_val", 1),
    5: ("int_val", 1),
    6: ("int_val", 1),
    7: ("string_val", 1),
    8: ("float_val", 2),
    9: ("int64_val", 1),
    10: ("bool_val", 1),
    11: ("int_val", 1),
    12: ("int_val", 1),
    13: ("int_val", 1),
    14: ("float_val", 1),
    15: ("int_val", 1),
    16: ("int_val", 1),
    17: ("int_val", 1),
    18: ("double_val", 2),
    19: ("float_val", 1),
}
_VALUE_FIELDS: Final = frozenset(field for field, _ in _VALUES.values())

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_SERVICE: Final = re.compile(r"/api/predict/([^/]+)(?:/.*)?")

#: Bodies that the SDKs compress without a Content-Encoding, by their first bytes.
_COMPRESSED: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x78\x01", "zlib"),
    (b"\x78\x5e", "zlib"),
    (b"\x78\x9c", "zlib"),
    (b"\x78\xda", "zlib"),
)

#: Status codes that EAS itself gives before the processor is called.
_REFUSED: Final = {
    401: "not authenticated",
    403: "permission denied",
    404: "unknown service",
    405: "method not allowed",
    413: "body too large for the server",
    429: "rate limit",
}


class EasTensorFlow:
    """POST /api/predict/<service>[/...], or any path of a listener whose settings name the service."""

    name = "eas-tensorflow"
    family = "eas"
    framing: Literal["grpc", "body"] = "body"

    def route(self, http_method: bytes, path: str, listener: ListenerConfig) -> Route | Ignored | None:
        match = _SERVICE.fullmatch(path)
        if match is None and not listener.service:
            return None
        if http_method != b"POST":
            return Ignored("EAS, not a POST")
        # The settings win: behind a custom URL the path means nothing.
        service = listener.service or unquote(match[1] if match else "")
        return Route(self, "predict", service, path)

    def read(self, route: Route, body: bytes) -> Call:
        if crowded(body):
            raise Unreadable("too many fields")
        try:
            request = messages.EasPredictRequest.FromString(body)
        except DecodeError:
            _refuse_compressed(body)
            raise Unreadable("not an EAS TensorFlow PredictRequest") from None
        if _CONTROL.search(request.signature_name):
            raise Unreadable("not an EAS TensorFlow PredictRequest (signature_name)")
        if not request.inputs:
            # An empty body is a valid message and means nothing; compressed bytes may parse as unknown fields.
            _refuse_compressed(body)
            raise Unreadable("no inputs")
        tensors = [_tensor(alias, array) for alias, array in request.inputs.items()]
        tensors.sort(key=lambda tensor: tensor.name)
        signature = wire_signature(
            self.family, route.model, route.method, request.signature_name, request.inputs, request.output_filter
        )
        return Call(signature, tuple(tensors))

    def response_probe(self, route: Route) -> FieldProbe | None:
        return None

    def judge(self, route: Route, response: Response) -> Judgement:
        if response.status and response.status in _REFUSED:
            return Judgement(Outcome.REFUSED, _REFUSED[response.status])
        if response.aborted or not response.complete:
            return Judgement(Outcome.UNPROVEN, response.aborted or "no complete response")
        if 200 <= response.status < 300:
            return Judgement(Outcome.PROVEN)
        # 400 is a bad body or an exception out of the processor; 408 and 450 are time and queue: it may have run.
        return Judgement(Outcome.UNPROVEN, f"HTTP {response.status}")


def _refuse_compressed(body: bytes) -> None:
    for magic, name in _COMPRESSED:
        if body.startswith(magic):
            raise Opaque(f"compressed body ({name})")


def _tensor(alias: str, array: Any) -> TensorSpec:
    """The array's type and shape. Raises Unreadable where values and type or shape disagree: then these bytes are
    another message that happens to parse."""
    if len(array.array_shape.dim) > MAX_DIMENSIONS:
        raise Unreadable("too many dimensions")
    shape = tuple(array.array_shape.dim)
    if array.dtype not in _VALUES:
        raise Unreadable("not an EAS TensorFlow PredictRequest (dtype)")
    field, per_element = _VALUES[array.dtype]
    count = 0
    for present, values in array.ListFields():
        if present.name == field:
            count = len(values)
        elif present.name in _VALUE_FIELDS:
            raise Unreadable("not an EAS TensorFlow PredictRequest (values of another dtype)")
    # The Python SDK drops the content of types it does not know, silently: no values at all are sent.
    if any(dim < 0 for dim in shape) or (count != prod(shape) * per_element):
        raise Unreadable("values and shape disagree")
    return TensorSpec(alias, array.dtype, shape)
