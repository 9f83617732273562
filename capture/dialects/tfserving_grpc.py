"""TensorFlow Serving over gRPC: every method that reaches Session::Run.

PredictionService: Predict, Classify, Regress, MultiInference; SessionService: SessionRun, which no server in the public
repository registers (general knowledge, not verified), but others may. What asks for no inference (GetModelMetadata,
ModelService) is counted by its name. So is PredictStreamed: prediction_log.proto has a log type of that name, but
prediction_service.proto (2.21) no method; what such a stream means is not known, so nothing is claimed of it.

Which failures come before Session::Run: model_servers/server_core.cc (lookup of the servable) and, of
servables/tensorflow, predict_impl.cc, predict_util.cc (PreProcessPrediction), classifier.cc (PreProcessClassification),
regressor.cc (PreProcessRegression), multi_inference.cc and util.cc (InputToSerializedExampleTensor), of TensorFlow
cc/saved_model/util.cc (GetInputValues). A status code alone does not tell: kernels return NOT_FOUND, INVALID_ARGUMENT
and FAILED_PRECONDITION too, so a refusal is recognised by the server's own words; whatever is not recognised counts as
unproven.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal

from google.protobuf.message import DecodeError

from capture.config import ListenerConfig
from capture.dialects.base import Ignored, Judgement, Outcome, Response, Route, Unreadable
from capture.dialects.skeletons import Skeletons, tensor_contents
from capture.dialects.tfserving_calls import FAMILY, READERS, read_predict
from capture.schema import messages
from capture.schema.wire import FieldProbe, NestedProbe
from capture.signature import Call

#: A response's model_spec: name, version and signature name; far below this, also where there is one for each task.
MAX_MODEL_SPEC_BYTES: Final = 64 << 10

#: TensorProto.tensor_shape; dtype stands before it.
_TENSOR_SHAPE: Final = 2

_PATHS: Final = {
    f"/tensorflow.serving.{service}/{method}": method
    for service, methods in {
        "PredictionService": ("Predict", "Classify", "Regress", "MultiInference"),
        "SessionService": ("SessionRun",),
    }.items()
    for method in methods
}
#: Where the model_spec of each response is: in this field, or in a field of every message in a repeated one.
_MODEL_SPECS: Final[dict[str, Callable[[], FieldProbe]]] = {
    "Predict": lambda: FieldProbe(2, MAX_MODEL_SPEC_BYTES),
    "Classify": lambda: FieldProbe(2, MAX_MODEL_SPEC_BYTES),
    "Regress": lambda: FieldProbe(2, MAX_MODEL_SPEC_BYTES),
    "MultiInference": lambda: NestedProbe(1, 1, MAX_MODEL_SPEC_BYTES),
    "SessionRun": lambda: FieldProbe(3, MAX_MODEL_SPEC_BYTES),
}
#: Methods whose request holds tf.Examples: without one the server refuses (util.cc: "Input is empty.").
_OF_EXAMPLES: Final = frozenset({"Classify", "Regress", "MultiInference"})
#: A gRPC path: /package.Service/Method. Anything else is not counted by its text.
_GRPC_PATH: Final = re.compile(r"/[A-Za-z_][\w.]{0,99}/[A-Za-z_]\w{0,99}")

# google.rpc.Code numbers.
_OK, _INVALID_ARGUMENT, _NOT_FOUND, _PERMISSION_DENIED = 0, 3, 5, 7
_FAILED_PRECONDITION, _UNIMPLEMENTED, _INTERNAL, _UNAUTHENTICATED = 9, 12, 13, 16

#: (code, how the message begins, reason): refusals that come before Session::Run.
_Refusals = tuple[tuple[int, str, str], ...]

#: Whatever the method: the lookup of the model, and what stands in front of the server.
_COMMON: Final[_Refusals] = (
    (_NOT_FOUND, "Servable not found", "unknown model or version"),
    (_NOT_FOUND, "Could not find", "unknown model or version"),
    (_INVALID_ARGUMENT, "Unrecognized servable version label", "unknown version label"),
    (_INVALID_ARGUMENT, "Missing ModelSpec", "no model_spec"),
    # gRPC's own texts for a method that is not registered: Python, Go (the latter general knowledge, not verified).
    (_UNIMPLEMENTED, "Method not found!", "method not served"),
    (_UNIMPLEMENTED, "unknown service tensorflow.serving.", "method not served"),
    (_UNAUTHENTICATED, "", "not authenticated"),
    (_PERMISSION_DENIED, "", "permission denied"),
)
_PREDICT: Final[_Refusals] = (
    (_INVALID_ARGUMENT, "input size does not match signature", "inputs do not match the signature"),
    (_INVALID_ARGUMENT, "Inputs contains invalid name", "inputs do not match the signature"),
    (_INVALID_ARGUMENT, "Signature input alias: ", "inputs do not match the signature"),
    (_INVALID_ARGUMENT, "tensor parsing error", "malformed tensor"),
    (_INVALID_ARGUMENT, "output tensor alias not found in signature", "unknown output"),
    (_INVALID_ARGUMENT, "duplicate output tensor alias", "output asked for twice"),
    (_FAILED_PRECONDITION, "Serving signature key", "unknown signature"),
)
_NO_FIT: Final = "the signature is none for this method"
#: Some of these texts had another code in older versions of the server (classifier.cc, regressor.cc).
_CLASSIFICATION: Final[_Refusals] = (
    (_INVALID_ARGUMENT, "Expected classification signature", _NO_FIT),
    (_FAILED_PRECONDITION, "Expected classification signature", _NO_FIT),
    (_INVALID_ARGUMENT, "Expected one input Tensor.", _NO_FIT),
    (_INVALID_ARGUMENT, "Expected one or two output Tensors", _NO_FIT),
    (_INVALID_ARGUMENT, "No classification inputs found in SignatureDef", _NO_FIT),
    (_FAILED_PRECONDITION, "No classification inputs found in SignatureDef", _NO_FIT),
)
_REGRESSION: Final[_Refusals] = (
    (_INVALID_ARGUMENT, "Expected regression signature method_name", _NO_FIT),
    (_INVALID_ARGUMENT, "Expected one input Tensor.", _NO_FIT),
    (_INVALID_ARGUMENT, "Expected one output Tensor.", _NO_FIT),
    (_INVALID_ARGUMENT, "No regression inputs found in SignatureDef", _NO_FIT),
    (_FAILED_PRECONDITION, "No regression inputs found in SignatureDef", _NO_FIT),
    (_INVALID_ARGUMENT, "No regression outputs found in SignatureDef", _NO_FIT),
    (_FAILED_PRECONDITION, "No regression outputs found in SignatureDef", _NO_FIT),
)
_EXAMPLES: Final[_Refusals] = (
    (_INVALID_ARGUMENT, "No signature was found with the name", "unknown signature"),
    (_INVALID_ARGUMENT, "Input is empty.", "no examples"),
    (_INTERNAL, "Error parsing serialized input.", "malformed examples"),
)
_TASKS: Final[_Refusals] = (
    (_INVALID_ARGUMENT, "Requested signature not found in model graph", "unknown signature"),
    (_INVALID_ARGUMENT, "Duplicate evaluation of signature", "a signature asked for twice"),
    (_INVALID_ARGUMENT, "Input tensor must be the same for all Signatures", "tasks with different inputs"),
)
#: By method; what REST answers has the same texts.
REFUSALS: Final[dict[str, _Refusals]] = {
    "Predict": _COMMON + _PREDICT,
    "Classify": _COMMON + _EXAMPLES + _CLASSIFICATION,
    "Regress": _COMMON + _EXAMPLES + _REGRESSION,
    "MultiInference": _COMMON + _EXAMPLES + _TASKS + _CLASSIFICATION + _REGRESSION,
    "SessionRun": _COMMON,
}


#: Of a TensorProto dtype and shape are read, the rest is skipped by its lengths.
_PREDICTS: Final = Skeletons(tensor_contents(lambda number: number > _TENSOR_SHAPE))


class TFServingGrpc:
    """The methods in full; every other one of these services is counted by its name."""

    name = "tfserving-grpc"
    family = FAMILY
    framing: Literal["grpc", "body"] = "grpc"

    def route(self, http_method: bytes, path: str, listener: ListenerConfig) -> Route | Ignored | None:
        if path in _PATHS:
            return Route(self, _PATHS[path], "", path)
        if path.startswith("/tensorflow.serving."):
            return Ignored(f"gRPC {path}" if _GRPC_PATH.fullmatch(path) else "gRPC, other method")
        return None

    def read(self, route: Route, body: bytes) -> Call:
        if route.method not in READERS:
            raise Unreadable("no method of this service")
        call = _PREDICTS.read((), body, read_predict) if route.method == "Predict" else READERS[route.method](body)
        if not call.signature.model:
            raise Unreadable("no model name")
        if route.method in _OF_EXAMPLES and call.tensors[0].shape == (0,):
            # Refused without a run, and a warm-up file with it would fail the load.
            raise Unreadable("no examples")
        return call

    def response_probe(self, route: Route) -> FieldProbe | None:
        return _MODEL_SPECS[route.method]()

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
        for refusal, beginning, reason in REFUSALS[route.method]:
            if code == refusal and response.grpc_message.startswith(beginning):
                return Judgement(Outcome.REFUSED, reason)
        if code == _UNIMPLEMENTED and not response.grpc_message:
            # The same from C++; a kernel gives a text.
            return Judgement(Outcome.REFUSED, "method not served")
        return Judgement(Outcome.UNPROVEN, f"grpc-status {code}", version)


def _version(model_spec: bytes | None) -> str:
    """ModelSpec.version of a response; "" where it is absent or unreadable."""
    if not model_spec:
        return ""
    try:
        spec = messages.ModelSpec.FromString(model_spec)
    except DecodeError:
        return ""
    return str(spec.version.value) if spec.WhichOneof("version_choice") == "version" else ""
