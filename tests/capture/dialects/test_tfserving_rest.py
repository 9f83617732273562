from __future__ import annotations

import gzip
import json

import pytest

from capture.config import ListenerConfig
from capture.dialects.base import Ignored, Opaque, Outcome, Response, Route, Unreadable
from capture.dialects.table import route, stored_route
from capture.dialects.tfserving_rest import MAX_GUNZIPPED_BYTES, Target, TFServingRest, parse_target

DIALECT = TFServingRest()
LISTENER = ListenerConfig("rest")
RESERVED = "%21%23%24%25%26%27%28%29%2A%2B%2C%2F%3A%3B%3D%3F%40%5B%5D"
DECODED = "!#$%&'()*+,/:;=?@[]"
PREDICT = Route(DIALECT, "REST Predict", "m", "/v1/models/m:predict")


# --- URLs: those with "modelname" and "foo" are tests of http_rest_api_util_test.cc ---


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (f"/v1/models/modelname{RESERVED}:predict", Target("modelname" + DECODED, "", "", "predict")),
        ("/v1/models/modelname/versions/99:predict", Target("modelname", "99", "", "predict")),
        ("/v1/models/modelname/labels/latest:predict", Target("modelname", "", "latest", "predict")),
        (f"/v1/models/modelname/labels/latest{RESERVED}:predict",
         Target("modelname", "", "latest" + DECODED, "predict")),
        (f"/v1/models/modelname{RESERVED}/labels/latest{RESERVED}:predict",
         Target("modelname" + DECODED, "", "latest" + DECODED, "predict")),
        ("/v1/foo", None),
        ("/v1/models", None),
        ("/v1/models/foo/version/50:predict", None),
        ("/v1/models/foo/versions/string:predict", None),
        (f"/v1/models/foo/versions/{(1 << 64) - 1}:predict", None),
        ("/v1/models/foo/metadata", None),
        ("/v1/models/foo/versions/50/labels/some_label:regress", None),
        # And others
        ("/v1/models/m:classify", Target("m", "", "", "classify")),
        ("/v1/models/m:regress", Target("m", "", "", "regress")),
        ("/V1/Models/m/VERSIONS/007:predict", Target("m", "7", "", "predict")),
        ("/v1/models/m:PREDICT", None),
        ("/v1/models/a+b%zz%4:predict", Target("a+b%zz%4", "", "", "predict")),
        ("/v1/models/m/versions/9223372036854775807:predict", Target("m", "9223372036854775807", "", "predict")),
        ("/v1/models/m/versions/9223372036854775808:predict", None),
        (f"/v1/models/m/versions/{'9' * 5000}:predict", None),
        ("/v1/models/m/versions/\u0661:predict", None),
        ("/v1/models/a/b:predict", None),
        ("/v1/models/m:predict/", None),
        ("/v1/models/:predict", None),
        ("/v1/models/m:predict\n", None),
    ],
)  # fmt: skip
def test_targets(path: str, target: Target | None) -> None:
    assert parse_target(path) == target
    found = route(b"POST", path, False, LISTENER)
    if target is not None:
        assert isinstance(found, Route)
        verb = target.verb.capitalize()
        assert (found.dialect.name, found.method, found.model) == ("tfserving-rest", f"REST {verb}", target.model)
    elif path.lower().startswith("/v1/models"):
        assert found == Ignored("REST POST, malformed URL")
    else:
        assert found == Ignored("HTTP POST, other path")


@pytest.mark.parametrize(
    ("method", "path", "what"),
    [
        (b"GET", "/v1/models/m", "REST GET model status"),
        (b"GET", "/v1/models/m/versions/99", "REST GET model status"),
        (b"GET", "/v1/models/m/labels/latest", "REST GET model status"),
        (b"GET", "/v1/models/m/metadata", "REST GET model metadata"),
        (b"GET", "/v1/models/m/labels/latest/metadata", "REST GET model metadata"),
        (b"GET", "/v1/models/m:predict", "REST, other request"),
        (b"OPTIONS", "/v1/models/m:predict", "REST, other request"),
        (b"GET", "/v1/foo", "HTTP GET, other path"),
    ],
)
def test_what_asks_for_no_inference(method: bytes, path: str, what: str) -> None:
    assert route(method, path, False, LISTENER) == Ignored(what)


def test_a_listener_of_one_service_or_dialect() -> None:
    path = "/v1/models/m:predict"
    eas = route(b"POST", path, False, ListenerConfig("eas", service="mine"))
    assert isinstance(eas, Route)
    assert eas.dialect.name == "eas-tensorflow"
    rest = route(b"POST", path, False, ListenerConfig("rest", dialect="tfserving-rest"))
    assert isinstance(rest, Route)
    assert rest.dialect.name == "tfserving-rest"
    assert route(b"POST", path, True, LISTENER) == Ignored("gRPC, other service")


# --- requests ---


def read(body: object, path: str = "/v1/models/m:predict") -> tuple[str, str, str, str]:
    found = route(b"POST", path, False, LISTENER)
    assert isinstance(found, Route)
    call = found.dialect.read(found, body if isinstance(body, bytes) else json.dumps(body).encode())
    return str(call.signature), call.shapes, call.version, call.version_label


@pytest.mark.parametrize(
    ("body", "path", "expected"),
    [
        ({"instances": [[1, 2]]}, "/v1/models/m:predict",
         ("REST Predict row m/serving_default () -> (*)", ":number[1,2]", "", "")),
        ({"instances": [{"y": [1], "x": "a"}], "signature_name": "s"}, "/v1/models/m/versions/07:predict",
         ("REST Predict row m/s (x, y) -> (*)", "x:text[1] y:number[1,1]", "7", "")),
        ({"inputs": {"x": True}}, "/v1/models/m/labels/a%2Fb:predict",
         ("REST Predict column m/serving_default (x) -> (*)", "x:truth[]", "", "a/b")),
        ({"examples": [{"a": 1}, {"b": 2}]}, "/v1/models/m:classify",
         ("REST Classify m/serving_default (inputs) -> (*)", "inputs:string[2]", "", "")),
        ({"context": {"c": 1}, "examples": [{"a": 1}]}, "/v1/models/m:regress",
         ("REST Regress m/serving_default (inputs) -> (*)", "inputs:string[1]", "", "")),
    ],
)  # fmt: skip
def test_requests(body: object, path: str, expected: tuple[str, str, str, str]) -> None:
    assert read(body, path) == expected


def test_what_a_server_tells_apart_is_not_one() -> None:
    bodies: list[tuple[object, str]] = [
        ({"instances": [[1]]}, ":predict"),
        ({"inputs": [[1]]}, ":predict"),
        ({"instances": [{"x": [1]}]}, ":predict"),
        ({"inputs": {"x": [1]}}, ":predict"),
        ({"inputs": {"x": [1], "y": 1}}, ":predict"),
        ({"instances": [[1]], "signature_name": "s"}, ":predict"),
        ({"examples": [{"x": 1}]}, ":classify"),
        ({"examples": [{"x": 1}]}, ":regress"),
    ]
    assert len({read(body, "/v1/models/m" + verb)[0] for body, verb in bodies}) == len(bodies)
    # Values, number of rows and order of keys are not in it.
    one, other = {"instances": [{"x": 1, "y": 2}]}, {"instances": [{"y": 3, "x": 4}, {"x": 1, "y": 2}], "other": 1}
    assert read(one)[0] == read(other)[0]


def test_a_stored_request_finds_its_dialect() -> None:
    for path, method in (("/v1/models/a%2Fb/versions/3:predict", ""), ("", "REST Predict row"), ("", "REST Classify")):
        found = stored_route("tfserving", "a/b", path, method)
        assert found is not None
        assert (found.dialect.name, found.model) == ("tfserving-rest", "a/b")
    grpc = stored_route("tfserving", "m", "", "Predict")
    assert grpc is not None
    assert grpc.dialect.name == "tfserving-grpc"
    eas = stored_route("eas", "m", "/api/predict/m", "predict")
    assert eas is not None
    assert eas.dialect.name == "eas-tensorflow"


# --- compression ---


def test_gzip_is_unpacked_as_the_server_does() -> None:
    body = b'{"inputs": 1}'
    packed = gzip.compress(body)
    for encoding in ("gzip", "x-gzip", "identity, gzip"):
        assert DIALECT.unpacked(encoding, packed, 1 << 20) == body
    for encoding in ("identity", "deflate", "br", "GZIP"):
        assert DIALECT.unpacked(encoding, packed, 1 << 20) is packed
    with pytest.raises(Unreadable, match="gzip body: broken data") as caught:
        DIALECT.unpacked("gzip", body, MAX_GUNZIPPED_BYTES)
    assert not isinstance(caught.value, Opaque)
    with pytest.raises(Opaque, match="gzip body: over the bound"):
        DIALECT.unpacked("gzip", packed, 5)
    bomb = gzip.compress(bytes(MAX_GUNZIPPED_BYTES + 1), 1)
    with pytest.raises(Unreadable, match="gzip body: over the bound") as caught:
        DIALECT.unpacked("gzip", bomb, 1 << 40)
    assert not isinstance(caught.value, Opaque)


# --- outcomes ---


def judge(
    status: int, body: bytes | str, path: str = "/v1/models/m:predict", **response: object
) -> tuple[Outcome, str]:
    found = route(b"POST", path, False, LISTENER)
    assert isinstance(found, Route)
    probe = DIALECT.response_probe(found)
    assert probe is not None
    raw = body.encode() if isinstance(body, str) else body
    for at in range(0, len(raw), 7):
        probe.feed(raw[at : at + 7])
    answered: dict[str, object] = {"status": status, "complete": True, "probe": probe.value, **response}
    judgement = DIALECT.judge(found, Response(**answered))  # type: ignore[arg-type]
    return judgement.outcome, judgement.reason


def error(text: str) -> str:
    return json.dumps({"error": text}, indent=4)


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        (400, "JSON Parse error: Invalid value. at offset: 5", "not JSON"),
        (400, 'JSON Value: {"a": 1} Type: Object is not of expected type: int32', "malformed body"),
        (
            400,
            "Failed to process element: 0 key: x of 'instances' list. Error: INVALID_ARGUMENT: JSON",
            "malformed body",
        ),
        (400, "Missing named input: x in 'inputs' object.", "inputs do not match the signature"),
        (400, 'Serving signature name: "nope" not found in signature def', "unknown signature"),
        (400, "Malformed request: POST /v1/models/m:PREDICT", "malformed URL"),
        (400, "Feature: names has element with unexpected JSON type: Null", "malformed body"),
        (404, "Servable not found for request: Latest(nope)", "unknown model or version"),
        (404, "Could not find any versions of model nope", "unknown model or version"),
        (400, "Unrecognized servable version label: canary", "unknown version label"),
        (400, "input size does not match signature: 1!=2", "inputs do not match the signature"),
        (501, "Conversion of JSON Value: 1 to type: half", "an input's type has no JSON form"),
    ],
)
def test_refusals_before_the_model_ran(status: int, text: str, reason: str) -> None:
    assert judge(status, error(text)) == (Outcome.REFUSED, reason)


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        (400, "Incompatible shapes: [2,3] vs. [4]", "HTTP 400"),
        (400, "a kernel quotes: JSON Parse error: ", "HTTP 400"),
        (400, "Feature: age (data type: int64) is required but could not be found.", "HTTP 400"),
        (404, "Container localhost does not exist.", "HTTP 404"),
        (400, "Servable not found for request", "HTTP 400"),
        (501, "The Conv2D op currently only supports NHWC", "HTTP 501"),
        (503, "", "HTTP 503"),
        (400, "Tensor name: y has inconsistent batch size: 1 expecting: 2", "ran, and its outputs have no JSON form"),
        (400, "Failed to write JSON value for tensor type: half", "ran, and its outputs have no JSON form"),
    ],
)
def test_failures_that_may_have_run(status: int, text: str, reason: str) -> None:
    assert judge(status, error(text)) == (Outcome.UNPROVEN, reason)


def test_refusals_are_those_of_the_method() -> None:
    text = error("Input is empty.")
    assert judge(400, text, "/v1/models/m:classify") == (Outcome.REFUSED, "no examples")
    assert judge(400, text) == (Outcome.UNPROVEN, "HTTP 400")


def test_answers_that_are_not_the_servers() -> None:
    for status in (401, 403, 404, 405, 413):
        assert judge(status, "<html>no</html>") == (Outcome.REFUSED, f"HTTP {status}")
    for status in (302, 400, 408, 429, 500, 502, 504):
        assert judge(status, "<html>no</html>") == (Outcome.UNPROVEN, f"HTTP {status}")
    assert judge(200, b'{"predictions": []}') == (Outcome.PROVEN, "")
    assert judge(200, b"", complete=False) == (Outcome.UNPROVEN, "no complete response")
    assert judge(200, b"", aborted="reset") == (Outcome.UNPROVEN, "reset")


def test_a_long_error_is_known_by_its_beginning() -> None:
    assert judge(400, error('JSON Value: "' + '\u00e9"' * 5000 + '" not formatted correctly')) == (
        Outcome.REFUSED,
        "malformed body",
    )
