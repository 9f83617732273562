"""Recorded requests, read out of each kind of file."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from capture.export.tfrecord import frame, prediction_log
from capture.ingest.har import read_har
from capture.ingest.lines import read_line
from capture.ingest.predictions import read_predictions
from capture.ingest.recorded import Recorded, Unread, grpc_message
from capture.schema.wire import length_delimited
from tests.support import calls

BODY = calls.eas()
B64 = base64.b64encode(BODY).decode()


def har(*entries: Any) -> bytes:
    return json.dumps({"log": {"version": "1.2", "entries": entries}}).encode()


def entry(post: dict[str, Any] | None, size: int = -1, **more: Any) -> dict[str, Any]:
    """One call as a writer records it."""
    request = {
        "method": "POST",
        "url": "http://h:8080/api/predict/rank?x=1",
        "headers": [{"name": "Content-Type", "value": "application/octet-stream"}, {"name": ":path", "value": "/"}],
        "bodySize": size,
        **({} if post is None else {"postData": {"mimeType": "application/octet-stream", **post}}),
    }
    answer = {"status": 200, "content": {"size": 3, "text": "YWJj", "encoding": "base64"}}
    return {"startedDateTime": "2026-11-24T12:00:00.5Z", "request": request, "response": answer} | more


def only(found: Any) -> Recorded:
    (one,) = found
    assert isinstance(one, Recorded), one
    return one


@pytest.mark.parametrize(
    "post",
    [
        {"text": B64, "encoding": "base64"},
        # mitmproxy's way with what is no text; and UTF-8 with half pairs for what is none.
        {"text": BODY.decode("latin-1")},
        {"text": BODY.decode("utf-8", "surrogateescape")},
    ],
    ids=["base64", "latin-1", "utf-8"],
)
def test_a_binary_body_of_an_archive(post: dict[str, Any]) -> None:
    found = only(read_har(har(entry(post, len(BODY)))))
    assert found.body == BODY
    assert (found.method, found.target, found.status) == ("POST", "/api/predict/rank?x=1", 200)
    assert found.headers == {"content-type": "application/octet-stream"}
    assert (found.response, found.at) == (b"abc", 1795521600.5)


def test_a_text_body_without_its_size_and_one_whose_coding_the_writer_took_off() -> None:
    text = '{"instances": ["é"]}'
    assert only(read_har(har(entry({"text": text})))).body == text.encode()
    coded = entry({"text": text}, 7)
    coded["request"]["headers"].append({"name": "Content-Encoding", "value": "gzip"})
    found = only(read_har(har(coded)))
    assert found.body == text.encode()
    assert "content-encoding" not in found.headers


@pytest.mark.parametrize(
    ("data", "place", "why"),
    [
        (b"{", "the file", "is no HAR: JSONDecodeError"),
        (b'{"log": {}}', "the file", "is no HAR: KeyError"),
        (b'{"log": {"entries": 1}}', "the file", "is no HAR: log.entries is no list"),
        (har({"request": {"method": "POST"}}), "log.entries[0]", "is no entry of a HAR: Object missing"),
        (har(entry({"text": "abc"}, 9)), "log.entries[0]", "its body was not recorded whole: 3 of 9 bytes"),
        (har(entry({"text": "ab\U0001f600"}, 9)), "log.entries[0]", "its body was not recorded whole: 6 of 9 bytes"),
        (har(entry({"text": B64, "encoding": "base64"}, 1)), "log.entries[0]", "its body was not recorded whole"),
        (har(entry({"text": "?", "encoding": "base64"})), "log.entries[0]", "postData.text is not base64"),
        (har(entry({"text": "x", "encoding": "rot13"})), "log.entries[0]", "postData.encoding is not base64"),
        (har(entry(None, 12)), "log.entries[0]", "its body of 12 bytes was not recorded"),
    ],
)  # fmt: skip
def test_what_an_archive_does_not_tell_is_named(data: bytes, place: str, why: str) -> None:
    (found,) = read_har(data)
    assert isinstance(found, Unread)
    assert found.place == place
    assert found.why.startswith(why)


def test_an_entry_that_was_never_answered() -> None:
    assert only(read_har(har(entry({"text": "x"}, response={"status": 0})))).status is None


def line(**fields: Any) -> Recorded:
    found = read_line(3, json.dumps(fields).encode())
    assert isinstance(found, Recorded), found
    return found


def test_lines_of_other_programs() -> None:
    found = line(path="/v1/models/m:predict", body={"instances": [1.0]}, status=200, time="2026-11-24T12:00:00", x=1)
    assert found.body == b'{"instances": [1.0]}', "as it is written there"
    assert (found.place, found.target, found.status, found.at) == ("line 3", "/v1/models/m:predict", 200, 1795521600.0)
    found = line(path="/p", body='{"a": "é"}', headers={"X-Y": "z"}, content_type="application/json", version=7)
    assert found.body == '{"a": "é"}'.encode()
    assert found.headers == {"x-y": "z", "content-type": "application/json"}
    assert (found.status, found.version) == (None, "7")
    found = line(path="/api/predict/rank", body_base64=B64, service="s", dialect="eas-tensorflow", method="post")
    assert (found.body, found.service, found.dialect, found.method) == (BODY, "s", "eas-tensorflow", "POST")
    assert line(path="/p", body=None).body == b""


def test_a_grpc_message_stands_in_a_line_without_its_prefix() -> None:
    message = calls.predict()
    encoded = base64.b64encode(message).decode()
    found = line(path="/tensorflow.serving.PredictionService/Predict", body_base64=encoded, grpc_status=0)
    assert found.body == b"\0" + len(message).to_bytes(4, "big") + message
    assert (found.headers["content-type"], found.grpc_status) == ("application/grpc", 0)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"GET /x HTTP/1.1", "is no JSON object of a request: "),
        (b"[1]", "is no JSON object of a request: "),
        (b'{"path": 1}', "is no JSON object of a request: "),
        (b'{"path": "\xff"}', "is no JSON object of a request: "),
        (b'{"body": 1}', "has neither path and body nor warmtap_jsonl"),
        (b'{"path": "/", "body_base64": "?"}', "body_base64 is not base64"),
        (b'{"path": "/", "time": "today"}', "time is neither"),
        (b'{"path": "/", "dialect": "klingon"}', "dialect is none of "),
        (b'{"warmtap_jsonl": 99}', "was written by a newer warmtap (form 99)"),
        (b'{"warmtap_jsonl": 1}', "is no JSON object of a request: "),
    ],
)
def test_a_line_that_is_no_request_is_named(raw: bytes, why: str) -> None:
    found = read_line(7, raw)
    assert isinstance(found, Unread)
    assert found.place == "line 7"
    assert found.why.startswith(why)


def test_an_empty_line_is_nothing() -> None:
    assert read_line(1, b" ") is None


def test_prediction_logs_with_and_without_a_response() -> None:
    request, response = calls.predict(), calls.predict_response(version=9)
    logged = length_delimited(6, length_delimited(1, request) + length_delimited(2, response))
    data = frame(prediction_log(request)) + frame(logged)
    (middle, bare), (end, answered) = read_predictions(data)
    assert (middle, end) == (len(frame(prediction_log(request))), len(data))
    assert isinstance(bare, Recorded)
    assert isinstance(answered, Recorded)
    assert (bare.status, answered.status, answered.grpc_status) == (None, 200, 0)
    assert answered.body == grpc_message(request)
    assert answered.response == grpc_message(response)
    assert answered.target == "/tensorflow.serving.PredictionService/Predict"


@pytest.mark.parametrize(
    ("data", "place", "why"),
    [
        (frame(b"\xff"), "record 1 at byte 0", "is no PredictionLog"),
        (frame(b""), "record 1 at byte 0", "is no PredictionLog"),
        (frame(length_delimited(7, b"")), "record 1 at byte 0", "is a predict_streamed_log, which is not read"),
        (frame(length_delimited(6, b"")), "record 1 at byte 0", "is a predict_log without a request"),
        (b"x" * 20, "record 1 at byte 0", "corrupted record at byte 0; nothing behind it was read"),
    ],
)
def test_a_record_that_is_no_request_is_named(data: bytes, place: str, why: str) -> None:
    ((_, found),) = read_predictions(data)
    assert found == Unread(place, why)
