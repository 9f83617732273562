"""TensorFlow Serving over gRPC: PredictionService/Predict.

Messages: tensorflow_serving/apis/predict.proto. Which failures come before Session::Run: model_servers/server_core.cc
(lookup of the servable), servables/tensorflow/predict_impl.cc, predict_util.cc (PreProcessPrediction) and TensorFlow's
cc/saved_model/util.cc (GetInputValues). A status code alone does not tell: kernels return NOT_FOUND, INVALID_ARGUMENT
and FAILED_PRECONDITION too, so a refusal is recognised by the server's own words; whatever is not recognised counts as
unproven.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final, Literal

from google.protobuf.message import DecodeError

from capture.config import ListenerConfig
from capture.dialects.base import MAX_DIMENSIONS, Ignored, Judgement, Outcome, Response, Route, Unreadable
from capture.schema import messages
from capture.schema.wire import FieldProbe, crowded
from capture.signature import Call, TensorSpec, wire_signature

#: PredictResponse.model_spec: name, version and signature name; far below this.
MAX_MODEL_SPEC_BYTES: Final = 64 << 10
_RESPONSE_MODEL_SPEC: Final = 2
#: Shapes of real requests are some ten bytes; a longer one is not remembered.
MAX_KNOWN_SHAPE_BYTES: Final = 128
#: A longer one is not parsed: each dimension of two bytes would take forty.
MAX_SHAPE_BYTES: Final = 64 << 10

_PREDICT: Final = "/tensorflow.serving.PredictionService/Predict"
#: A gRPC path: /package.Service/Method. Anything else is not counted by its text.
_GRPC_PATH: Final = re.compile(r"/[A-Za-z_][\w.]{0,99}/[A-Za-z_]\w{0,99}")

# google.rpc.Code numbers.
_OK, _INVALID_ARGUMENT, _NOT_FOUND, _PERMISSION_DENIED = 0, 3, 5, 7
_FAILED_PRECONDITION, _UNIMPLEMENTED, _UNAUTHENTICATED = 9, 12, 16

#: (code, how the message begins, reason): refusals that come before Session::Run.
_REFUSALS: Final = (
    (_NOT_FOUND, "Servable not found", "unknown model or version"),
    (_NOT_FOUND, "Could not find", "unknown model or version"),
    (_INVALID_ARGUMENT, "Unrecognized servable version label", "unknown version label"),
    (_INVALID_ARGUMENT, "Missing ModelSpec", "no model_spec"),
    (_INVALID_ARGUMENT, "input size does not match signature", "inputs do not match the signature"),
    (_INVALID_ARGUMENT, "Inputs contains invalid name", "inputs do not match the signature"),
    (_INVALID_ARGUMENT, "Signature input alias: ", "inputs do not match the signature"),
    (_INVALID_ARGUMENT, "tensor parsing error", "malformed tensor"),
    (_INVALID_ARGUMENT, "output tensor alias not found in signature", "unknown output"),
    (_INVALID_ARGUMENT, "duplicate output tensor alias", "output asked for twice"),
    (_FAILED_PRECONDITION, "Serving signature key", "unknown signature"),
    (_UNAUTHENTICATED, "", "not authenticated"),
    (_PERMISSION_DENIED, "", "permission denied"),
)


class TFServingGrpc:
    """Predict in full; every other method is counted by its name."""

    name = "tfserving-grpc"
    family = "tfserving"
    framing: Literal["grpc", "body"] = "grpc"

    def route(self, http_method: bytes, path: str, listener: ListenerConfig) -> Route | Ignored | None:
        if path == _PREDICT:
            return Route(self, "Predict", "", path)
        if path.startswith("/tensorflow.serving."):
            return Ignored(f"gRPC {path}" if _GRPC_PATH.fullmatch(path) else "gRPC, other method")
        return None

    def read(self, route: Route, body: bytes) -> Call:
        if crowded(body):
            raise Unreadable("too many fields")
        try:
            request = messages.PredictRequest.FromString(body)
        except DecodeError:
            raise Unreadable("not a PredictRequest") from None
        if not request.model_spec.name:
            raise Unreadable("no model name")
        return predict_call(request)

    def response_probe(self, route: Route) -> FieldProbe | None:
        return FieldProbe(_RESPONSE_MODEL_SPEC, MAX_MODEL_SPEC_BYTES)

    def judge(self, route: Route, response: Response) -> Judgement:
        if response.aborted or not response.complete:
            return Judgement(Outcome.UNPROVEN, response.aborted or "no complete response")
        if response.status != 200:
            # Not a gRPC server's answer: something in between.
            refused = response.status in (401, 403, 404)
            return Judgement(Outcome.REFUSED if refused else Outcome.UNPROVEN, f"HTTP {response.status}")
        code = response.grpc_status
        if code is None:
            return Judgement(Outcome.UNPROVEN, "no grpc-status")
        version = _version(response.probe)
        if code == _OK:
            return Judgement(Outcome.PROVEN, version=version)
        for refusal, beginning, reason in _REFUSALS:
            if code == refusal and response.grpc_message.startswith(beginning):
                return Judgement(Outcome.REFUSED, reason)
        if code == _UNIMPLEMENTED and not response.grpc_message:
            # gRPC's own answer for a method that is not registered; a kernel gives a text.
            return Judgement(Outcome.REFUSED, "method not served")
        return Judgement(Outcome.UNPROVEN, f"grpc-status {code}", version)


def predict_call(request: Any) -> Call:
    """What a PredictRequest of :mod:`capture.schema.messages` means, also without a model's name, which a warm-up does
    not need. Raises Unreadable."""
    spec = request.model_spec
    tensors = [TensorSpec(alias, tensor.dtype, _shape(tensor.tensor_shape)) for alias, tensor in request.inputs.items()]
    tensors.sort(key=_by_name)
    signature = wire_signature(
        TFServingGrpc.family, spec.name, "Predict", spec.signature_name, request.inputs, request.output_filter
    )
    choice = spec.WhichOneof("version_choice")
    return Call(
        signature,
        tuple(tensors),
        version=str(spec.version.value) if choice == "version" else "",
        version_label=spec.version_label if choice == "version_label" else "",
    )


def _shape(serialized: bytes) -> tuple[int, ...] | None:
    """The dimensions of a TensorShapeProto; None where the rank is not given. Raises Unreadable."""
    return _known_shape(serialized) if len(serialized) <= MAX_KNOWN_SHAPE_BYTES else _parse_shape(serialized)


def _parse_shape(serialized: bytes) -> tuple[int, ...] | None:
    if len(serialized) > MAX_SHAPE_BYTES:
        raise Unreadable("too many dimensions")
    try:
        shape = messages.TensorShape.FromString(serialized)
    except DecodeError:
        raise Unreadable("malformed tensor shape") from None
    if len(shape.dim) > MAX_DIMENSIONS:
        raise Unreadable("too many dimensions")
    return None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)


_known_shape = lru_cache(maxsize=4096)(_parse_shape)


def _by_name(tensor: TensorSpec) -> str:
    return tensor.name


def _version(model_spec: bytes | None) -> str:
    """ModelSpec.version of a response; "" where it is absent or unreadable."""
    if not model_spec:
        return ""
    try:
        spec = messages.ModelSpec.FromString(model_spec)
    except DecodeError:
        return ""
    return str(spec.version.value) if spec.WhichOneof("version_choice") == "version" else ""
