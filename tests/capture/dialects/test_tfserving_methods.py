"""Classify, Regress, MultiInference and SessionRun over gRPC: what their requests mean, and what their answers tell."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.config import ListenerConfig
from capture.dialects.base import Ignored, Outcome, Response, Route, Unreadable
from capture.dialects.table import route, stored_route
from capture.dialects.tfserving_calls import MAX_EXAMPLES, count_examples
from capture.dialects.tfserving_grpc import TFServingGrpc
from capture.schema import messages
from capture.schema.wire import length_delimited
from capture.signature import Call
from replay import tf_protos
from tests.support.calls import CLASSIFY, REGRESS, multi_inference, of_examples, session_run

DIALECT = TFServingGrpc()
LISTENER = ListenerConfig("grpc")
ROW = (("age", 30.0),)
SERVICE = dict.fromkeys(("Classify", "Regress", "MultiInference"), "PredictionService") | {
    "SessionRun": "SessionService"
}


def route_of(method: str) -> Route:
    found = route(b"POST", f"/tensorflow.serving.{SERVICE[method]}/{method}", True, LISTENER)
    assert isinstance(found, Route)
    return found


def read(method: str, body: bytes) -> Call:
    return DIALECT.read(route_of(method), body)


@pytest.mark.parametrize("method", SERVICE)
def test_each_method_is_routed(method: str) -> None:
    found = route_of(method)
    assert (found.dialect.name, found.method) == ("tfserving-grpc", method)
    # And found again by what a store knows of it.
    stored = stored_route("tfserving", "m", found.path)
    assert stored is not None
    assert stored.method == method


def test_what_asks_for_no_inference_is_counted_by_name() -> None:
    for name in (
        "PredictionService/GetModelMetadata",
        "PredictionService/PredictStreamed",
        "ModelService/GetModelStatus",
        "ModelService/HandleReloadConfigRequest",
        "SessionService/Predict",
        "PredictionService/SessionRun",
    ):
        path = f"/tensorflow.serving.{name}"
        assert route(b"POST", path, True, LISTENER) == Ignored(f"gRPC {path}")


def test_the_service_has_no_method_that_is_neither_read_nor_known() -> None:
    """The installed tensorflow-serving-api: with a release that adds one (PredictStreamed), this fails."""
    service = tf_protos.load("tensorflow_serving.apis.prediction_service_pb2").DESCRIPTOR.services_by_name
    methods = {method.name: method.server_streaming for method in service["PredictionService"].methods}
    assert methods == dict.fromkeys(("Classify", "GetModelMetadata", "MultiInference", "Predict", "Regress"), False)


BOTH = multi_inference((CLASSIFY, "a"), (REGRESS, "b"))


@pytest.mark.parametrize(
    ("method", "body", "line", "shapes"),
    [
        ("Classify", of_examples(signature="c"), "Classify m/c (inputs) -> (*)", "inputs:string[1]"),
        ("Regress", of_examples([ROW] * 7), "Regress m/serving_default (inputs) -> (*)", "inputs:string[7]"),
        ("Classify", of_examples([ROW] * 2, context=[("job", b"clerk")]), "Classify m/serving_default (inputs) -> (*)",
         "inputs:string[2]"),
        ("Regress", of_examples([()]), "Regress m/serving_default (inputs) -> (*)", "inputs:string[1]"),
        ("MultiInference", BOTH, "MultiInference m (inputs) -> (classify:a, regress:b)", "inputs:string[1]"),
        ("MultiInference", multi_inference((REGRESS, "")), "MultiInference m (inputs) -> (regress:serving_default)",
         "inputs:string[1]"),
        ("MultiInference", multi_inference((REGRESS, "a"), (REGRESS, "a")),
         "MultiInference m (inputs) -> (regress:a, regress:a)", "inputs:string[1]"),
        ("SessionRun", session_run(), "SessionRun m (x:0) -> (y:0)", "x:0:float[3]"),
        ("SessionRun", session_run(["b", "a:0"], ["z", "y", "z"], ["init"], signature="s"),
         "SessionRun m/s (a:0, b) -> (^init, y, z, z)", "a:0:float[3] b:float[3]"),
        ("SessionRun", session_run(["x"], ["y"], ["z"], aliases=True), "SessionRun m (@x) -> (@y, ^@z)", "@x:float[3]"),
        ("SessionRun", session_run([], [], ["init"]), "SessionRun m () -> (^init)", ""),
    ],
)  # fmt: skip
def test_a_request_is_read(method: str, body: bytes, line: str, shapes: str) -> None:
    call = read(method, body)
    assert str(call.signature) == line
    assert call.shapes == shapes
    assert (call.version, call.version_label) == ("", "")


def test_what_a_server_tells_apart_is_told_apart() -> None:
    calls = [
        read("Classify", of_examples()),
        read("Regress", of_examples()),
        read("Classify", of_examples(signature="c")),
        read("MultiInference", multi_inference((CLASSIFY, "a"), (REGRESS, "b"))),
        read("MultiInference", multi_inference((REGRESS, "a"), (CLASSIFY, "b"))),
        read("MultiInference", multi_inference((CLASSIFY, "a, regress:b"))),
        read("MultiInference", multi_inference((CLASSIFY, "a:b"))),
        read("MultiInference", multi_inference((CLASSIFY, "a"))),
        read("MultiInference", multi_inference((CLASSIFY, "a"), (CLASSIFY, "a"))),
        read("SessionRun", session_run(["x"], ["y"])),
        read("SessionRun", session_run(["x:0"], ["y"])),
        read("SessionRun", session_run(["x"], [], ["y"])),
        read("SessionRun", session_run(["x"], ["y"], aliases=True)),
        read("SessionRun", session_run(["x"], ["y"], signature="s", aliases=True)),
    ]
    assert len({call.signature.digest for call in calls}) == len(calls)


def test_values_number_and_order_change_nothing() -> None:
    for method, one, other in (
        ("Classify", of_examples(), of_examples([(("age", 9.0), ("job", b"x"))] * 5, signature="serving_default")),
        ("Regress", of_examples([ROW] * 3), of_examples([ROW], context=ROW, version=3)),
        ("MultiInference", BOTH, multi_inference((REGRESS, "b"), (CLASSIFY, "a"), examples=[ROW] * 9)),
        ("SessionRun", session_run(["a", "b"], ["y", "z"]), session_run(["b", "a"], ["z", "y"])),
    ):
        assert read(method, one).signature.digest == read(method, other).signature.digest


def test_the_version_that_was_asked_for() -> None:
    assert read("Classify", of_examples(version=4)).version == "4"
    assert read("Regress", of_examples(label="stable")).version_label == "stable"
    assert read("MultiInference", multi_inference((CLASSIFY, "a"), (REGRESS, "b"), version=5)).version == "5"


def mixed_models() -> bytes:
    request = messages.MultiInferenceRequest.FromString(BOTH)
    request.tasks[1].model_spec.name = "other"
    return bytes(request.SerializeToString())


NAMED = length_delimited(1, messages.ModelSpec(name="m").SerializeToString())


@pytest.mark.parametrize(
    ("method", "body", "reason"),
    [
        ("Classify", b"", "no model name"),
        ("Classify", b"\xff\xff", "not a ClassificationRequest"),
        ("Regress", b"\xff\xff", "not a RegressionRequest"),
        ("Classify", of_examples(model=""), "no model name"),
        ("Regress", of_examples([]), "no examples"),
        ("Regress", NAMED, "no examples"),
        ("Classify", NAMED + length_delimited(2, length_delimited(1, b"\x0a\x7f")), "malformed examples"),
        ("Classify", NAMED + length_delimited(2, b"\x0a\x7f"), "malformed examples"),
        ("Classify", NAMED + length_delimited(2, b"\x0a\x00" * 1001), "too many fields"),
        ("Classify", NAMED + length_delimited(2, length_delimited(1, b"\x0a\x00" * (MAX_EXAMPLES + 1))),
         "too many examples"),
        ("Classify", NAMED + b"\x1a\x00" * 100_000, "too many fields"),
        ("MultiInference", b"", "no tasks"),
        ("MultiInference", b"\xff\xff", "not a MultiInferenceRequest"),
        ("MultiInference", mixed_models(), "tasks of several models"),
        ("MultiInference", multi_inference((CLASSIFY, "a"), model=""), "no model name"),
        ("MultiInference", multi_inference((CLASSIFY, "a"), examples=[]), "no examples"),
        ("MultiInference", multi_inference(("tensorflow/serving/predict", "a")),
         "a task that is neither classify nor regress"),
        ("SessionRun", b"\xff\xff", "not a SessionRunRequest"),
        ("SessionRun", session_run(model=""), "no model name"),
        ("SessionRun", session_run([], []), "nothing to fetch or run"),
        ("SessionRun", session_run(["@x"]), "malformed tensor name"),
        ("SessionRun", session_run(["x"], ["^y"]), "malformed tensor name"),
        ("SessionRun", session_run(["x"], ["y"], ["^z"]), "malformed tensor name"),
    ],
)  # fmt: skip
def test_bodies_that_are_no_request(method: str, body: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=f"^{reason}$"):
        read(method, body)


def test_a_method_that_this_family_does_not_have() -> None:
    with pytest.raises(Unreadable, match=r"^no method of this service$"):
        DIALECT.read(Route(DIALECT, "PredictStreamed", "", ""), of_examples())


# --- counting examples, against protobuf ---

_LISTED = st.lists(st.binary(max_size=3), max_size=4).map(
    lambda examples: b"".join(length_delimited(1, b"") for _ in examples)
)
_INPUTS = st.lists(st.tuples(st.sampled_from([1, 2, 3]), _LISTED), max_size=4).map(
    lambda parts: b"".join(length_delimited(number, listed) for number, listed in parts)
)


@given(st.lists(st.tuples(st.sampled_from([2, 5]), _INPUTS), max_size=3))
def test_examples_are_counted_as_protobuf_reads_them(parts: list[tuple[int, bytes]]) -> None:
    """Also a list in several parts, and both kinds in one request."""
    body = NAMED + b"".join(length_delimited(number, part) for number, part in parts)
    real = tf_protos.load("tensorflow_serving.apis.classification_pb2").ClassificationRequest.FromString(body)
    kind = real.input.WhichOneof("kind")
    assert count_examples(body) == (len(getattr(real.input, kind).examples) if kind else 0)


def test_the_most_examples_that_are_counted() -> None:
    body = NAMED + length_delimited(2, length_delimited(1, b"\x0a\x00" * MAX_EXAMPLES))
    assert read("Classify", body).shapes == f"inputs:string[{MAX_EXAMPLES}]"


# --- answers ---


def spec(version: int) -> Any:
    made = messages.ModelSpec(name="m", signature_name="s")
    made.version.value = version
    return made


def classified(rows: int = 3) -> bytes:
    """A real ClassificationResponse."""
    response = tf_protos.load("tensorflow_serving.apis.classification_pb2").ClassificationResponse()
    for _ in range(rows):
        response.result.classifications.add().classes.add(label="a label", score=0.5)
    response.model_spec.ParseFromString(spec(12).SerializeToString())
    return bytes(response.SerializeToString())


def inferred(*versions: int) -> bytes:
    """A real MultiInferenceResponse."""
    response = tf_protos.load("tensorflow_serving.apis.inference_pb2").MultiInferenceResponse()
    for version in versions:
        result = response.results.add()
        result.model_spec.ParseFromString(spec(version).SerializeToString())
        for _ in range(40):
            result.regression_result.regressions.add(value=0.5)
    return bytes(response.SerializeToString())


def session_ran() -> bytes:
    """A real SessionRunResponse."""
    response = tf_protos.load("tensorflow_serving.apis.session_service_pb2").SessionRunResponse()
    response.tensor.add(name="y:0").tensor.tensor_content = b"x" * 300
    response.model_spec.ParseFromString(spec(12).SerializeToString())
    return bytes(response.SerializeToString())


@pytest.mark.parametrize("step", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("Classify", classified()),
        ("Regress", classified()),
        ("MultiInference", inferred(12)),
        ("MultiInference", inferred(12, 12, 12)),
        ("SessionRun", session_ran()),
    ],
)
def test_the_version_that_answered(method: str, answer: bytes, step: int) -> None:
    found = route_of(method)
    probe = DIALECT.response_probe(found)
    assert probe is not None
    for at in range(0, len(answer), step):
        probe.feed(answer[at : at + step])
    judged = DIALECT.judge(found, Response(status=200, complete=True, grpc_status=0, probe=probe.value))
    assert (judged.outcome, judged.version) == (Outcome.PROVEN, "12")


@pytest.mark.parametrize(
    "answer",
    [b"", inferred(), inferred(12)[:-1], inferred(12) + b"\x0a", b"\x0a\x03\x0a\x7f\x00", b"\x08\x01", b"\xff" * 30],
)
def test_an_answer_that_does_not_tell_its_version(answer: bytes) -> None:
    found = route_of("MultiInference")
    probe = DIALECT.response_probe(found)
    assert probe is not None
    probe.feed(answer)
    judged = DIALECT.judge(found, Response(status=200, complete=True, grpc_status=0, probe=probe.value))
    assert (judged.outcome, judged.version) == (Outcome.PROVEN, "")


NO_FIT = "the signature is none for this method"
#: The texts of classifier.cc, regressor.cc, multi_inference.cc, util.cc and server_core.cc.
REFUSALS = [
    ("Classify", 3, "Missing ModelSpec", "no model_spec"),
    ("Regress", 5, "Servable not found for request: Latest(nope)", "unknown model or version"),
    ("SessionRun", 5, "Servable not found for request: Latest(nope)", "unknown model or version"),
    ("SessionRun", 12, "", "method not served"),
    ("SessionRun", 12, "Method not found!", "method not served"),
    ("SessionRun", 12, "unknown service tensorflow.serving.SessionService", "method not served"),
    ("Classify", 3, "No signature was found with the name: nope", "unknown signature"),
    ("Classify", 3, "Input is empty.", "no examples"),
    ("Classify", 13, "Error parsing serialized input.", "malformed examples"),
    ("Classify", 3, "Expected classification signature method_name to be tensorflow/serving/classify. Was: x", NO_FIT),
    ("Classify", 3, "Expected one input Tensor.", NO_FIT),
    ("Classify", 3, "Expected one or two output Tensors, found 3", NO_FIT),
    ("Classify", 9, "No classification inputs found in SignatureDef: inputs {", NO_FIT),
    ("Classify", 9, "Expected classification signature outputs to contain at least one of", NO_FIT),
    ("Regress", 3, "Expected regression signature method_name to be tensorflow/serving/regress. Was: x", NO_FIT),
    ("Regress", 3, "Expected one output Tensor.", NO_FIT),
    ("Regress", 9, "No regression inputs found in SignatureDef: ", NO_FIT),
    ("Regress", 9, "No regression outputs found in SignatureDef: ", NO_FIT),
    ("MultiInference", 3, "Requested signature not found in model graph: nope", "unknown signature"),
    ("MultiInference", 3, "Duplicate evaluation of signature: a", "a signature asked for twice"),
    ("MultiInference", 3, "Input tensor must be the same for all Signatures.", "tasks with different inputs"),
    ("MultiInference", 3, "Expected one input Tensor.", NO_FIT),
]  # fmt: skip


def judge(method: str, code: int, text: str) -> tuple[Outcome, str]:
    answered = Response(status=200, complete=True, grpc_status=code, grpc_message=text)
    found = DIALECT.judge(route_of(method), answered)
    return found.outcome, found.reason


@pytest.mark.parametrize(("method", "code", "text", "reason"), REFUSALS)
def test_refusals_before_the_model_ran(method: str, code: int, text: str, reason: str) -> None:
    assert judge(method, code, text) == (Outcome.REFUSED, reason)


@pytest.mark.parametrize(
    ("method", "code", "text"),
    [
        # What comes after the run, by the same files.
        ("Classify", 3, "Expected classes output batch size of 3. Got: 1"),
        ("Classify", 3, "Expected Tensor shape: [batch_size num_classes] but got [3]"),
        ("Regress", 3, "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]"),
        ("Regress", 3, "Input batch size did not match output batch size: 1 vs. 2"),
        # What comes out of the run: parse_example.
        ("Regress", 3, "Name: <unknown>, Feature: age (data type: float) is required but could not be found."),
        # Another method's words are a kernel's here.
        ("Classify", 9, 'Serving signature key "nope" not found.'),
        ("Predict", 3, "Input is empty."),
        ("SessionRun", 3, "Must specify at least one target to fetch or execute."),
    ],
)
def test_every_other_failure_may_have_run(method: str, code: int, text: str) -> None:
    answered = Response(status=200, complete=True, grpc_status=code, grpc_message=text)
    assert DIALECT.judge(Route(DIALECT, method, "", ""), answered).outcome is Outcome.UNPROVEN
