"""Where records go: paths, names and versions; and what cannot go where."""

from __future__ import annotations

import pytest

from capture.errors import UserError
from capture.export.entries import Entry, Request, as_sent
from capture.schema import messages
from capture.signature import WireSignature, wire_signature
from replay.addressing import Target, Unsendable, outgoing, read_target
from replay.client import Outgoing
from tests.support.calls import CLASSIFY, REGRESS, multi_inference, predict

GRPC, HTTP = read_target("grpc://h:1"), read_target("http://h:1")


def entry(
    body: bytes,
    *,
    family: str = "tfserving",
    model: str = "m",
    method: str = "Predict",
    path: str = "",
    headers: dict[str, str] | None = None,
) -> Entry:
    signature = wire_signature(family, model, method, "", ["x"], [])
    request = Request(body, path, headers or {})
    return Entry(1, "record 1", "", len(body), signature.digest, signature, request=request)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("grpc://localhost:8500", Target("grpc", "localhost", 8500)),
        ("http://[::1]:80/", Target("http", "::1", 80)),
        ("http://h:80/a/b/?c=d", Target("http", "h", 80, "/a/b/?c=d")),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert read_target(text) == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h:1",
        "http://h",
        "https://h:1",
        "http://h:0",
        "http://h:99999",
        "grpc://h:1/x",
        "http://h:1/a b",
        "http://:1",
    ],
)
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(UserError, match="--target") as caught:
        read_target(text)
    assert "grpc://host:port" in str(caught.value)


def test_a_credential_in_a_target_is_not_repeated() -> None:
    with pytest.raises(UserError) as caught:
        read_target("http://user:secret@h:1")
    assert "secret" not in str(caught.value)


def test_grpc_goes_out_byte_for_byte_but_for_a_version() -> None:
    plain = predict(fill=b"abcd")
    assert outgoing(entry(plain), GRPC) == Outgoing("/tensorflow.serving.PredictionService/Predict", plain)
    pinned = predict(fill=b"abcd", version=3)
    assert outgoing(entry(pinned), GRPC).body == plain
    assert outgoing(entry(pinned), GRPC, keep_version=True).body == pinned


@pytest.mark.parametrize(
    ("method", "service"),
    [("Classify", "PredictionService"), ("Regress", "PredictionService"), ("SessionRun", "SessionService")],
)
def test_each_method_has_its_path(method: str, service: str) -> None:
    body = messages.PredictLog(request=b"").SerializeToString()
    assert outgoing(entry(body, method=method), GRPC).path == f"/tensorflow.serving.{service}/{method}"


def test_a_record_without_a_name_gets_one_and_any_can_be_sent_by_another() -> None:
    nameless = predict(model="", signature="s", fill=b"abcd")
    with pytest.raises(Unsendable, match="names no model; say --model"):
        outgoing(entry(nameless, model=""), GRPC)
    for sent in (
        outgoing(entry(nameless, model=""), GRPC, model="n"),
        outgoing(entry(predict(signature="s", fill=b"abcd")), GRPC, send_as="n"),
    ):
        assert messages.PredictRequest.FromString(sent.body) == messages.PredictRequest.FromString(
            predict(model="n", signature="s", fill=b"abcd")
        )


def test_every_task_of_a_multi_inference_is_named() -> None:
    body = multi_inference((CLASSIFY, "a"), (REGRESS, "b"))
    assert outgoing(entry(body, method="MultiInference"), GRPC).body == body
    sent = outgoing(entry(body, method="MultiInference"), GRPC, send_as="n").body
    tasks = messages.MultiInferenceRequest.FromString(sent).tasks
    assert [(one.model_spec.name, one.model_spec.signature_name) for one in tasks] == [("n", "a"), ("n", "b")]


@pytest.mark.parametrize(
    ("path", "target", "more", "expected"),
    [
        ("", HTTP, {}, "/api/predict/m"),
        ("/api/predict/m/v1", HTTP, {}, "/api/predict/m/v1"),
        ("/api/predict/m/v1", HTTP, {"send_as": "m 2"}, "/api/predict/m%202"),
        ("/api/predict/m", read_target("http://h:1/my/url?a=b"), {}, "/my/url?a=b"),
        # A custom URL, of which only the settings say whose it is.
        ("/my/url", HTTP, {}, "/my/url"),
    ],
)
def test_where_eas_requests_go(path: str, target: Target, more: dict[str, str], expected: str) -> None:
    assert outgoing(entry(b"x", family="eas", method="predict", path=path), target, **more).path == expected  # type: ignore[arg-type]


def test_a_request_of_a_service_without_a_name() -> None:
    with pytest.raises(Unsendable, match="names no service"):
        outgoing(entry(b"x", family="eas", model=""), HTTP)
    assert outgoing(entry(b"x", family="eas", model=""), HTTP, model="s").path == "/api/predict/s"


@pytest.mark.parametrize(
    ("path", "more", "expected"),
    [
        ("/v1/models/m:predict", {}, "/v1/models/m:predict"),
        ("/v1/models/m/versions/3:predict", {}, "/v1/models/m:predict"),
        ("/v1/models/m/labels/a:predict", {"send_as": "n"}, "/v1/models/n:predict"),
        ("/v1/models/m/versions/3:predict", {"keep_version": True}, "/v1/models/m/versions/3:predict"),
    ],
)
def test_rest_goes_out_as_it_was_sent(path: str, more: dict[str, object], expected: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip", "grpc-encoding": "gzip"}
    sent = outgoing(entry(b"zip", method="REST Predict row", path=path, headers=headers), HTTP, **more)  # type: ignore[arg-type]
    assert sent == Outgoing(expected, b"zip", {"Content-Type": "application/json", "Content-Encoding": "gzip"})


@pytest.mark.parametrize(
    ("one", "target", "text"),
    [
        (entry(predict()), HTTP, "was captured from gRPC; say --target grpc://"),
        (entry(b"{}", method="REST Classify", path="/x"), GRPC, "was captured from REST; say --target http://"),
        (entry(b"x", family="eas"), GRPC, "is a request to EAS; say --target http://"),
        (entry(b"\xff"), GRPC, "cannot be read"),
        (entry(b"{}", method="REST Classify"), HTTP, "its URL was not kept"),
        (Entry(1, "record 1", "", 0, ""), GRPC, "holds no request"),
    ],
)
def test_what_cannot_be_sent_says_why(one: Entry, target: Target, text: str) -> None:
    with pytest.raises(Unsendable, match=text):
        outgoing(one, target)


def test_only_http_bodies_go_out_compressed() -> None:
    def sent(signature: WireSignature) -> bytes:
        return as_sent(signature, b"body", b"wire", "", {}).body

    assert sent(wire_signature("tfserving", "m", "Predict", "", [], [])) == b"body"
    assert sent(wire_signature("tfserving", "m", "REST Predict column", "", [], [])) == b"wire"
    assert sent(wire_signature("eas", "m", "predict", "", [], [])) == b"wire"
