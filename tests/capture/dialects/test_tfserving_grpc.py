from __future__ import annotations

import pytest

from capture.config import ListenerConfig
from capture.dialects.base import Ignored, Outcome, Response, Route, Unreadable
from capture.dialects.table import route
from capture.dialects.tfserving_grpc import TFServingGrpc
from capture.schema import messages
from tests.support.calls import predict, predict_response
from tests.support.tap_frames import PREDICT

DIALECT = TFServingGrpc()
ROUTE = Route(DIALECT, "Predict", "", PREDICT)
LISTENER = ListenerConfig("grpc")


def judge(**response: object) -> tuple[Outcome, str, str]:
    answered: dict[str, object] = {"status": 200, "complete": True, **response}
    found = DIALECT.judge(ROUTE, Response(**answered))  # type: ignore[arg-type]
    return found.outcome, found.reason, found.version


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "/tensorflow.serving.PredictionService/GetModelMetadata",
            "gRPC /tensorflow.serving.PredictionService/GetModelMetadata",
        ),
        ("/tensorflow.serving.ModelService/GetModelStatus", "gRPC /tensorflow.serving.ModelService/GetModelStatus"),
        ("/tensorflow.serving.\x1b[31m/x", "gRPC, other method"),
        ("/tensorflow.serving.A/" + "b" * 500, "gRPC, other method"),
        ("/grpc.health.v1.Health/Check", "gRPC, other service"),
    ],
)
def test_other_methods_are_counted_by_what_they_were(path: str, expected: str) -> None:
    assert route(b"POST", path, True, LISTENER) == Ignored(expected)


def test_predict_is_routed() -> None:
    found = route(b"POST", PREDICT, True, LISTENER)
    assert isinstance(found, Route)
    assert (found.dialect.name, found.method) == ("tfserving-grpc", "Predict")
    # The same path without gRPC's content type is no gRPC call.
    assert route(b"POST", PREDICT, False, LISTENER) == Ignored("HTTP POST, other path")


def test_a_request_is_read() -> None:
    call = DIALECT.read(ROUTE, predict({"b": (7, ()), "a": (1, (2, 3))}, outputs=["z", "y", "z"], signature="s"))
    assert str(call.signature) == "Predict m/s (a, b) -> (y, z, z)"
    assert call.shapes == "a:float[2,3] b:string[]"
    assert (call.version, call.version_label) == ("", "")


def test_values_and_batch_size_change_nothing() -> None:
    one = DIALECT.read(ROUTE, predict({"x": (1, (1, 3))}, fill=b"a" * 12))
    other = DIALECT.read(ROUTE, predict({"x": (1, (64, 3))}, fill=b"b" * 768))
    assert one.signature.digest == other.signature.digest
    assert one.shapes != other.shapes


def test_the_version_that_was_asked_for() -> None:
    assert DIALECT.read(ROUTE, predict(version=4)).version == "4"
    assert DIALECT.read(ROUTE, predict(label="stable")).version_label == "stable"


def test_unknown_rank() -> None:
    request = messages.PredictRequest.FromString(predict())
    request.inputs["x"].tensor_shape = messages.TensorShape(unknown_rank=True).SerializeToString()
    assert DIALECT.read(ROUTE, request.SerializeToString()).shapes == "x:float[?]"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no model name"),
        (b"\xff\xff", "not a PredictRequest"),
        (predict(model=""), "no model name"),
        (predict({"x": (1, [1] * 255)}), "too many dimensions"),
        (b"\x0a\x04\x0a\x02\xff\xfe", "not a PredictRequest"),
    ],
)
def test_bodies_that_are_no_request(body: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=f"^{reason}$"):
        DIALECT.read(ROUTE, body)


#: The texts of predict_impl.cc, predict_util.cc, server_core.cc and TensorFlow's cc/saved_model/util.cc.
REFUSALS = [
    (5, "Servable not found for request: Specific(m, 9)", "unknown model or version"),
    (5, "Servable not found for request: Latest(nope)", "unknown model or version"),
    (3, "Unrecognized servable version label: canary", "unknown version label"),
    (3, "Missing ModelSpec", "no model_spec"),
    (3, "input size does not match signature: 1!=2 len({x}) != len({x,y}).", "inputs do not match the signature"),
    (3, "tensor parsing error: x", "malformed tensor"),
    (3, "output tensor alias not found in signature: w Outputs expected to be in the set {y}.", "unknown output"),
    (3, "duplicate output tensor alias: y", "output asked for twice"),
    (9, 'Serving signature key "nope" not found.', "unknown signature"),
    (16, "", "not authenticated"),
    (7, "RBAC: access denied", "permission denied"),
    (12, "", "method not served"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "text", "reason"), REFUSALS)
def test_refusals_before_the_model_ran(code: int, text: str, reason: str) -> None:
    assert judge(grpc_status=code, grpc_message=text) == (Outcome.REFUSED, reason, "")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        # Kernels use the same codes: only the server's own words tell.
        (3, "Incompatible shapes: [2,3] vs. [4]"),
        (3, "a kernel quotes: Missing ModelSpec"),
        (5, "Container localhost does not exist."),
        (9, "Table not initialized."),
        (12, "The Conv2D op currently only supports the NHWC tensor format on the CPU"),
        *[(code, "") for code in (1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15, 99)],
    ],
)
def test_every_other_failure_may_have_run(code: int, text: str) -> None:
    assert judge(grpc_status=code, grpc_message=text) == (Outcome.UNPROVEN, f"grpc-status {code}", "")


def test_success_and_the_version_that_answered() -> None:
    probe = DIALECT.response_probe(ROUTE)
    assert probe is not None
    probe.feed(predict_response(12, outputs=b"o" * 99))
    assert judge(grpc_status=0, probe=probe.value) == (Outcome.PROVEN, "", "12")
    assert judge(grpc_status=0) == (Outcome.PROVEN, "", "")
    assert judge(grpc_status=0, probe=messages.ModelSpec(name="m").SerializeToString()) == (Outcome.PROVEN, "", "")
    assert judge(grpc_status=0, probe=b"\xff") == (Outcome.PROVEN, "", "")
    assert judge(grpc_status=0, probe=messages.ModelSpec(version_label="v").SerializeToString())[2] == ""


@pytest.mark.parametrize(
    ("response", "outcome", "reason"),
    [
        ({"complete": False}, Outcome.UNPROVEN, "no complete response"),
        ({"complete": False, "grpc_status": 0}, Outcome.UNPROVEN, "no complete response"),
        ({"aborted": "reset", "grpc_status": 0}, Outcome.UNPROVEN, "reset"),
        ({}, Outcome.UNPROVEN, "no grpc-status"),
        ({"status": 0, "complete": False, "aborted": "connection closed"}, Outcome.UNPROVEN, "connection closed"),
        ({"status": 401}, Outcome.REFUSED, "HTTP 401"),
        ({"status": 403}, Outcome.REFUSED, "HTTP 403"),
        ({"status": 404}, Outcome.REFUSED, "HTTP 404"),
        ({"status": 503}, Outcome.UNPROVEN, "HTTP 503"),
        ({"status": 504, "grpc_status": 0}, Outcome.UNPROVEN, "HTTP 504"),
    ],
)
def test_answers_that_are_not_whole_or_not_grpc(response: dict[str, object], outcome: Outcome, reason: str) -> None:
    assert judge(**response)[:2] == (outcome, reason)
