from __future__ import annotations

from typing import Any

import pytest

from capture.config import ListenerConfig
from capture.dialects.base import Ignored, Outcome, Response, Route, Unreadable
from capture.dialects.eas_tensorflow import EasTensorFlow
from capture.dialects.table import route
from capture.schema import messages
from tests.support.calls import eas, predict

DIALECT = EasTensorFlow()
ROUTE = Route(DIALECT, "predict", "rank", "/api/predict/rank")
LISTENER = ListenerConfig("http")


def array(dtype: int, dims: list[int], **values: list[Any]) -> bytes:
    request = messages.EasPredictRequest()
    request.inputs["x"].dtype = dtype
    request.inputs["x"].array_shape.SetInParent()
    request.inputs["x"].array_shape.dim.extend(dims)
    for field, content in values.items():
        getattr(request.inputs["x"], field).extend(content)
    return bytes(request.SerializeToString())


# --- routing ---


@pytest.mark.parametrize(
    ("path", "service"),
    [("/api/predict/rank", "rank"), ("/api/predict/rank/v1/x", "rank"), ("/api/predict/r%C3%A4nk", "ränk")],
)
def test_the_service_is_in_the_path(path: str, service: str) -> None:
    found = route(b"POST", path, False, LISTENER)
    assert isinstance(found, Route)
    assert (found.dialect.name, found.model) == ("eas-tensorflow", service)


def test_the_settings_name_the_service_of_a_custom_url() -> None:
    listener = ListenerConfig("http", dialect="eas-tensorflow", service="mine")
    for path in ("/", "/rank/v2", "/api/predict/other"):
        found = route(b"POST", path, False, listener)
        assert isinstance(found, Route)
        assert found.model == "mine"


@pytest.mark.parametrize(
    ("method", "path", "what"),
    [
        (b"GET", "/api/predict/rank", "EAS, not a POST"),
        (b"GET", "/healthz", "HTTP GET, other path"),
        (b"POST", "/api/predict/", "HTTP POST, other path"),
        (b"x\x1b[m", "/", "HTTP request, other path"),
    ],
)
def test_what_is_no_call(method: bytes, path: str, what: str) -> None:
    assert route(method, path, False, LISTENER) == Ignored(what)


# --- reading ---


def test_a_request_is_read() -> None:
    call = DIALECT.read(ROUTE, eas({"b": [1, 2], "a": [3]}, signature="s", outputs=["z", "y", "y"]))
    assert str(call.signature) == "predict rank/s (a, b) -> (y, y, z)"
    assert call.signature.family == "eas"
    assert call.shapes == "a:float[1] b:float[2]"


@pytest.mark.parametrize(
    "body",
    [
        array(1, [2, 2], float_val=[1, 2, 3, 4]),
        array(2, [1], double_val=[1]),
        array(3, [1], int_val=[1]),
        array(7, [2], string_val=[b"a", b"\xff"]),
        array(9, [1], int64_val=[1]),
        array(10, [1], bool_val=[True]),
        array(8, [1], float_val=[1, 2]),
        array(18, [1], double_val=[1, 2]),
        array(19, [1], float_val=[1]),
        array(1, [], float_val=[1]),
        array(1, [0, 5]),
    ],
)
def test_values_that_fit_their_type_and_shape(body: bytes) -> None:
    assert DIALECT.read(ROUTE, body).signature.inputs == ("x",)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no inputs"),
        (b"\xff\xff", "not an EAS TensorFlow PredictRequest"),
        (predict({"x": (1, (1,))}, fill=b"12345678"), "not an EAS TensorFlow PredictRequest (signature_name)"),
        (predict({}, signature="s"), "not an EAS TensorFlow PredictRequest (signature_name)"),
        (array(0, [1], float_val=[1]), "not an EAS TensorFlow PredictRequest (dtype)"),
        (array(20, [1], float_val=[1]), "not an EAS TensorFlow PredictRequest (dtype)"),
        (array(1, [1], int_val=[1]), "not an EAS TensorFlow PredictRequest (values of another dtype)"),
        (
            array(1, [1], float_val=[1], bool_val=[True]),
            "not an EAS TensorFlow PredictRequest (values of another dtype)",
        ),
        (array(1, [3], float_val=[1, 2]), "values and shape disagree"),
        (array(1, [2], float_val=[1, 2, 3]), "values and shape disagree"),
        (array(8, [2], float_val=[1, 2]), "values and shape disagree"),
        (array(1, [-1], float_val=[1]), "values and shape disagree"),
        (array(1, [-1, -1], float_val=[1]), "values and shape disagree"),
        # The SDK drops the content of types it does not know.
        (array(19, [2]), "values and shape disagree"),
        (array(1, [1] * 255, float_val=[1]), "too many dimensions"),
    ],
)
def test_what_only_looks_like_a_request(body: bytes, reason: str) -> None:
    with pytest.raises(Unreadable) as caught:
        DIALECT.read(ROUTE, body)
    assert str(caught.value) == reason


# --- judging ---


@pytest.mark.parametrize(
    ("status", "outcome", "reason"),
    [
        (200, Outcome.PROVEN, ""),
        (204, Outcome.PROVEN, ""),
        (401, Outcome.REFUSED, "not authenticated"),
        (403, Outcome.REFUSED, "permission denied"),
        (404, Outcome.REFUSED, "unknown service"),
        (405, Outcome.REFUSED, "method not allowed"),
        (413, Outcome.REFUSED, "body too large for the server"),
        (429, Outcome.REFUSED, "rate limit"),
        *[(status, Outcome.UNPROVEN, f"HTTP {status}") for status in (301, 400, 408, 450, 499, 500, 502, 503, 504)],
    ],
)
def test_status_codes(status: int, outcome: Outcome, reason: str) -> None:
    found = DIALECT.judge(ROUTE, Response(status=status, complete=True))
    assert (found.outcome, found.reason, found.version) == (outcome, reason, "")


def test_a_success_that_was_cut_off_is_not_proven() -> None:
    assert DIALECT.judge(ROUTE, Response(status=200)).outcome is Outcome.UNPROVEN
    cut = DIALECT.judge(ROUTE, Response(status=200, complete=True, aborted="connection closed"))
    assert (cut.outcome, cut.reason) == (Outcome.UNPROVEN, "connection closed")


def test_a_refusal_stays_one_when_the_connection_closes_behind_it() -> None:
    assert DIALECT.judge(ROUTE, Response(status=413, aborted="connection closed")).outcome is Outcome.REFUSED
