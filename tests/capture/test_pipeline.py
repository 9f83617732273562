"""From tap frames that carry real HTTP/1.1 and gRPC to batches."""

from __future__ import annotations

import gc
import gzip
import random
import weakref
import zlib
from collections import Counter
from dataclasses import fields, is_dataclass
from typing import Any

import msgspec
import pytest

from capture import exchange as exchange_module
from capture import pipeline as pipeline_module
from capture import tap
from capture.admission import Admission
from capture.admission_told import drop_requests
from capture.config import ListenerConfig
from capture.exchange import ExchangeTracker
from capture.export.scrub_rules import Rules
from capture.heads import Heads
from capture.levels import Levels
from capture.open_exchange import PART_COST, SMALL_PART, BodyBudget, Exchange, Parts
from capture.pipeline import Pipeline
from capture.schema import messages
from capture.schema.wire import length_delimited
from capture.store.base import OTHER, Batch, ModelVersion, RecordKey
from capture.wire import events as ev
from tests.support.calls import eas, predict, predict_response
from tests.support.eas_bodies import PACK, easyrec
from tests.support.tap_frames import START, Flow, GrpcFlow, message_bytes, time_frame

LISTENERS = (ListenerConfig("grpc"), ListenerConfig("eas", version="v3"))


def admission(**bounds: Any) -> Admission:
    plain: dict[str, Any] = {
        "signatures_per_version": 100,
        "new_signatures_per_hour": 100,
        "store_bytes": 1 << 30,
        "held_out_requests": 8,
        "held_out_bytes": 64 << 20,
        "held_out_seconds": 7 * 86400,
        "refresh_after": 86400.0,
    }
    return Admission(**(plain | bounds))


class Rig:
    """A pipeline, its counters, and every batch so far."""

    def __init__(
        self,
        *,
        request_bytes: int = 1 << 20,
        open_bytes: int = 4 << 20,
        listeners: tuple[ListenerConfig, ...] = LISTENERS,
        levels: Levels | None = None,
        scrub: Rules | None = None,
        **bounds: Any,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.admission = admission(**bounds)
        self.pipeline = Pipeline(
            run="run",
            name="w",
            listeners=listeners,
            admission=self.admission,
            request_bytes=request_bytes,
            open_bytes=open_bytes,
            count=self._count,
            draw=random.Random(1).random,
            levels=levels,
            scrub=scrub,
        )
        self.pipeline.feed([time_frame(START)])

    def _count(self, name: str, number: int) -> None:
        self.counts[name] += number

    def feed(self, *flows: Flow) -> Batch:
        for flow in flows:
            self.pipeline.feed(flow.frames)
            flow.frames.clear()
        return self.pipeline.batch

    def only_call(self) -> tuple[RecordKey, str]:
        """The one call that was captured, and its outcome."""
        ((key, delta),) = self.pipeline.batch.seen.items()
        return key, "proven" if delta.proven else "unproven"


def everything(value: Any) -> bytes:
    """All text and bytes in a value, however deep."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict):
        return b"\0".join(everything(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return b"\0".join(map(everything, value))
    if isinstance(value, msgspec.Struct):
        return b"\0".join(everything(getattr(value, name)) for name in value.__struct_fields__)
    if is_dataclass(value):
        return b"\0".join(everything(getattr(value, field.name)) for field in fields(value))
    return repr(value).encode()


# --- gRPC ---


def test_a_proven_call_is_stored_byte_for_byte() -> None:
    rig, flow = Rig(), GrpcFlow()
    body = predict({"x": (1, (2, 3))}, outputs=["y"], fill=bytes(range(24)))
    flow.call(body, predict_response(7))
    batch = rig.feed(flow)
    key, outcome = rig.only_call()
    assert (key.owner, outcome) == (ModelVersion("tfserving", "m", "7"), "proven")
    sample = batch.samples[key]
    assert (sample.body, sample.wire_body, sample.captured_at) == (body, None, START)
    assert (sample.outcome, sample.shapes) == ("proven", "x:float[2,3]")
    assert sample.headers == {"content-type": "application/grpc"}
    assert dict(batch.seen[key].senders) == {"grpc-python/1.80 10.1.2.0/24": 1}
    assert dict(batch.seen[key].blocks) == {(int(START // 3600), "grpc-python"): 1}
    assert rig.counts == {"requests_observed": 1, "requests_proven": 1}
    assert rig.pipeline.urgent


def test_one_channel_many_calls() -> None:
    rig, flow = Rig(), GrpcFlow()
    for outputs in ([], ["a"], ["b", "a"], ["a", "b"], []):
        flow.call(predict(outputs=outputs), predict_response(7))
    batch = rig.feed(flow)
    assert sorted(delta.proven for delta in batch.seen.values()) == [1, 2, 2]
    assert {str(delta.signature) for delta in batch.seen.values()} == {
        "Predict m/serving_default (x) -> (*)",
        "Predict m/serving_default (x) -> (a)",
        "Predict m/serving_default (x) -> (a, b)",
    }


def test_a_large_response_does_not_hide_the_version() -> None:
    rig, flow = Rig(), GrpcFlow()
    flow.call(predict(), predict_response(9, outputs=bytes(300_000)))
    rig.feed(flow)
    assert rig.only_call()[0].owner.version == "9"


@pytest.mark.parametrize(
    ("request_version", "answer", "version"),
    [(None, predict_response(None), "unknown"), (4, predict_response(None), "4"), (4, predict_response(5), "5")],
)
def test_where_the_version_comes_from(request_version: int | None, answer: bytes, version: str) -> None:
    rig, flow = Rig(), GrpcFlow()
    flow.call(predict(version=request_version), answer)
    rig.feed(flow)
    assert rig.only_call()[0].owner.version == version


def test_a_compressed_call_is_read_and_kept_both_ways() -> None:
    rig, flow = Rig(), GrpcFlow()
    body = predict(fill=bytes(4000))
    stream = flow.request(body, compressed=True)
    flow.answer(stream, predict_response(8), compressed=True)
    batch = rig.feed(flow)
    key, outcome = rig.only_call()
    assert (key.owner.version, outcome) == ("8", "proven")
    assert batch.samples[key].body == body
    assert gzip.decompress(batch.samples[key].wire_body or b"") == body
    assert batch.samples[key].headers["grpc-encoding"] == "gzip"


def test_a_compression_bomb_is_not_stored() -> None:
    rig, flow = Rig(request_bytes=100_000), GrpcFlow()
    stream = flow.request(predict(fill=bytes(5_000_000)), compressed=True)
    flow.answer(stream, predict_response())
    batch = rig.feed(flow)
    assert not batch.seen
    assert dict(batch.refusals) == {("tfserving", "", "undecodable", "compressed message: over the bound"): 1}
    assert rig.counts["requests_undecodable"] == 1


def test_a_compressed_call_that_cannot_be_read_and_fails_is_not_called_refused() -> None:
    rig, flow = Rig(), GrpcFlow()
    raw = b"\x01\x00\x00\x00\x04abcd"
    flow.answer(flow.request(b"", raw=raw, headers=[("grpc-encoding", "zstd")]), status=14)
    assert [key[2] for key in rig.feed(flow).refusals] == ["undecodable"]


@pytest.mark.parametrize(
    "raw",
    [
        message_bytes(predict()) * 2,
        message_bytes(predict())[:-1],
        b"",
        b"\0\0\0",
        message_bytes(predict()) + b"x",
    ],
)
def test_a_request_of_other_than_one_message(raw: bytes) -> None:
    rig, flow = Rig(), GrpcFlow()
    flow.answer(flow.request(b"", raw=raw), status=13)
    batch = rig.feed(flow)
    assert dict(batch.refusals) == {("tfserving", "", "refused", "not one gRPC message"): 1}
    assert not batch.seen


def test_a_second_response_message_takes_the_version_away() -> None:
    rig, flow = Rig(), GrpcFlow()
    stream = flow.request(predict())
    flow.answer(stream, predict_response(7) + b"", trailers=False)
    flow._send(flow._server, stream, message_bytes(predict_response(8)), last=False)
    flow._server.send_headers(stream, [("grpc-status", "0")], end_stream=True)
    flow.pump()
    rig.feed(flow)
    assert rig.only_call()[0].owner.version == "unknown"


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        (5, "Servable not found for request: Latest(nope)", "unknown model or version"),
        (9, 'Serving signature key "nope" not found.', "unknown signature"),
        (16, "", "not authenticated"),
    ],
)
def test_refusals_are_counted_and_never_stored(status: int, text: str, reason: str) -> None:
    rig, flow = Rig(), GrpcFlow()
    flow.call(predict(), status=status, text=text.replace(" ", "%20"))
    batch = rig.feed(flow)
    assert dict(batch.refusals) == {("tfserving", "m", "refused", reason): 1}
    assert not batch.seen
    assert not batch.samples
    assert rig.counts == {"requests_observed": 1, "requests_refused": 1}


def test_a_failure_that_may_have_run_is_kept_as_unproven() -> None:
    rig, flow = Rig(), GrpcFlow()
    flow.call(predict(), status=14, text="overloaded")
    batch = rig.feed(flow)
    key, outcome = rig.only_call()
    assert (outcome, batch.samples[key].outcome) == ("unproven", "unproven")
    assert not batch.held_out


def test_a_cancelled_call_is_unproven() -> None:
    rig, flow = Rig(), GrpcFlow()
    flow.cancel(flow.request(predict()))
    rig.feed(flow)
    assert rig.only_call()[1] == "unproven"


def test_a_connection_that_closes_before_the_answer() -> None:
    rig, flow = Rig(), GrpcFlow()
    flow.request(predict())
    flow.closed("server_reset")
    rig.feed(flow)
    assert rig.only_call()[1] == "unproven"
    assert rig.pipeline.open_flows == 0


def test_a_request_that_was_cut_off_is_incomplete() -> None:
    rig, flow = Rig(), GrpcFlow()
    flow.request(predict(), end=False)
    flow.closed()
    batch = rig.feed(flow)
    assert not batch.seen
    assert rig.counts == {"requests_incomplete": 1}


def test_an_answer_before_the_request_ended() -> None:
    rig, flow = Rig(), GrpcFlow()
    stream = flow.request(predict(), end=False)
    flow.answer(stream, status=8, text="too%20large")
    flow.cancel(stream)
    assert not rig.feed(flow).seen
    assert rig.counts == {"requests_incomplete": 1}


def test_other_methods_and_protocols_are_counted() -> None:
    rig, flow = Rig(), GrpcFlow()
    flow.answer(flow.request(b"x", path="/grpc.health.v1.Health/Check"), b"y")
    flow.answer(flow.request(b"x", path="/tensorflow.serving.PredictionService/GetModelMetadata"), b"y")
    batch = rig.feed(flow, Flow(2).post("/v2/models/m/infer", b"{}"), Flow(3).client(b"\x16\x03\x01\x02\x00"))
    assert dict(batch.ignored) == {
        "gRPC, other service": 1,
        "gRPC /tensorflow.serving.PredictionService/GetModelMetadata": 1,
        "HTTP POST, other path": 1,
        "flow: tls": 1,
    }
    assert rig.counts == {"requests_observed": 3, "requests_ignored": 3, "flows_undecodable": 1, "flows_tls": 1}


# --- EAS over HTTP/1.1 ---


def test_an_eas_call() -> None:
    rig = Rig()
    body = eas({"x": [1.0, 2.0]}, outputs=["y"])
    batch = rig.feed(Flow(listener=1, peer="[2001:db8::1]:99").post("/api/predict/rank?token=SECRET", body))
    key, outcome = rig.only_call()
    assert (key.owner, outcome) == (ModelVersion("eas", "rank", "v3"), "proven")
    assert (batch.samples[key].body, batch.samples[key].path) == (body, "/api/predict/rank")
    assert dict(batch.seen[key].senders) == {"- 2001:db8::/64": 1}


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, "proven"), (400, "unproven"), (408, "unproven"), (450, "unproven"), (503, "unproven"), (429, "refused")],
)
def test_eas_outcomes(status: int, expected: str) -> None:
    rig = Rig()
    batch = rig.feed(Flow(listener=1).post("/api/predict/rank", eas(), status=status))
    if expected == "refused":
        assert dict(batch.refusals) == {("eas", "rank", "refused", "rate limit"): 1}
    else:
        assert rig.only_call()[1] == expected


@pytest.mark.parametrize("coding", PACK)
def test_an_eas_body_that_is_compressed_without_a_word(coding: str) -> None:
    rig, body = Rig(), eas({"x": [0.5] * 100})
    sent = PACK[coding](body)
    batch = rig.feed(Flow(listener=1).post("/api/predict/rank", body).post("/api/predict/rank", sent))
    key, outcome = rig.only_call()
    assert (batch.seen[key].proven, outcome) == (2, "proven")
    # The second one is held out.
    ((_, held),) = batch.held_out.values()
    assert (held.sample.body, held.sample.wire_body) == (body, sent)


@pytest.mark.parametrize(("status", "outcome"), [(200, "undecodable"), (500, "undecodable"), (401, "refused")])
def test_an_eas_body_that_unpacks_to_more_than_the_limit(status: int, outcome: str) -> None:
    rig = Rig(request_bytes=1000)
    batch = rig.feed(Flow(listener=1).post("/api/predict/rank", gzip.compress(bytes(1001)), status=status))
    assert dict(batch.refusals) == {("eas", "rank", outcome, "compressed body (gzip): over the bound"): 1}
    assert rig.counts[f"requests_{outcome}"] == 1
    assert rig.pipeline.open_bytes == 0


@pytest.mark.parametrize(
    ("headers", "pack", "expected"),
    [
        ("", None, "proven"),
        ("Content-Encoding: identity\r\n", None, "proven"),
        ("Content-Encoding: GZIP\r\n", "gzip", "proven"),
        ("Content-Encoding: gzip\r\n", None, "unproven"),
        ("Content-Encoding: gzip\r\n", "zlib", "unproven"),
        # What is not looked into is not known to have succeeded.
        ("Content-Encoding: zstd\r\n", "zstd", "unproven"),
        *[("", coding, "unproven") for coding in ("gzip", "zlib", "zstd", "lz4", "snappy")],
    ],
)
@pytest.mark.parametrize("status", [0, 2])
def test_an_answer_that_tells_its_status_itself(headers: str, pack: str | None, expected: str, status: int) -> None:
    rig = Rig(listeners=(ListenerConfig("rec", dialect="eas-easyrec"),))
    answer = messages.EasyRecResponse(status_code=status, error_msg="failed" if status else "")
    for number in range(100):
        answer.results[f"item {number}"].scores.append(0.5)
    packed = answer.SerializeToString() if pack is None else PACK[pack](answer.SerializeToString())
    flow = Flow().client(b"POST /api/predict/rank HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n" % len(easyrec()))
    flow.client(easyrec()).server(f"HTTP/1.1 200 OK\r\n{headers}Content-Length: {len(packed)}\r\n\r\n".encode())
    for at in range(0, len(packed), 7):
        flow.server(packed[at : at + 7])
    rig.feed(flow)
    assert rig.only_call()[1] == (expected if status == 0 else "unproven")


def test_an_answer_that_unpacks_to_more_than_the_limit_is_not_known_to_have_succeeded() -> None:
    rig = Rig(request_bytes=100_000, listeners=(ListenerConfig("rec", dialect="eas-easyrec"),))
    answer = gzip.compress(messages.EasyRecResponse(error_msg="0" * 200_000).SerializeToString())
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(answer)}\r\n\r\n".encode()
    flow = Flow().client(b"POST /api/predict/rank HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n" % len(easyrec()))
    rig.feed(flow.client(easyrec()).server(head).server(answer))
    assert rig.only_call()[1] == "unproven"


@pytest.mark.parametrize(("status", "outcome"), [(200, "undecodable"), (400, "refused")])
def test_an_eas_body_that_is_something_else(status: int, outcome: str) -> None:
    rig = Rig()
    batch = rig.feed(Flow(listener=1).post("/api/predict/rank", b'{"a": 1}', status=status))
    assert dict(batch.refusals) == {("eas", "rank", outcome, "not an EAS TensorFlow PredictRequest"): 1}


@pytest.mark.parametrize("target", ["http://eas:80/api/predict/rank", "HTTPS://user:SECRET@h/api/predict/rank?q"])
def test_a_target_in_absolute_form(target: str) -> None:
    rig = Rig()
    batch = rig.feed(Flow(listener=1).post(target, eas()).post("http://h", b"").post("http://h?/api/predict/rank", b""))
    key, outcome = rig.only_call()
    assert (key.owner.model, outcome) == ("rank", "proven")
    assert batch.samples[key].path == "/api/predict/rank"
    assert dict(batch.ignored) == {"HTTP POST, other path": 2}


@pytest.mark.parametrize(
    ("coding", "pack"), [("gzip", "gzip"), ("X-GZIP", "gzip"), ("deflate", "zlib"), ("identity, gzip", "gzip")]
)
def test_a_content_encoding_is_undone(coding: str, pack: str) -> None:
    rig = Rig()
    body, sent = eas(), PACK[pack](eas())
    rig.feed(Flow(listener=1).post("/api/predict/rank", sent, headers=f"Content-Encoding: {coding}\r\n"))
    key, outcome = rig.only_call()
    sample = rig.pipeline.batch.samples[key]
    assert (outcome, sample.body, sample.wire_body) == ("proven", body, sent)
    assert sample.headers["content-encoding"] == coding


@pytest.mark.parametrize(
    ("coding", "body", "status", "outcome", "reason"),
    [
        ("br", eas(), 200, "undecodable", "content-encoding br"),
        ("my-own", eas(), 500, "undecodable", "content-encoding: another"),
        ("gzip, gzip", eas(), 400, "undecodable", "content-encoding: several"),
        ("gzip", eas(), 400, "refused", "content-encoding gzip: broken data"),
        ("gzip", gzip.compress(eas(), mtime=0)[:-3], 200, "undecodable", "content-encoding gzip: cut short"),
        ("deflate", zlib.compress(bytes(5001)), 400, "undecodable", "content-encoding deflate: over the bound"),
    ],
)
def test_a_content_encoding_that_is_not_undone(
    coding: str, body: bytes, status: int, outcome: str, reason: str
) -> None:
    rig = Rig(request_bytes=5000)
    flow = Flow(listener=1).post("/api/predict/rank", body, headers=f"Content-Encoding: {coding}\r\n", status=status)
    assert dict(rig.feed(flow).refusals) == {("eas", "rank", outcome, reason): 1}
    assert rig.pipeline.open_bytes == 0


def test_a_pipeline_that_is_done_with_is_gone_at_once() -> None:
    rig = Rig(scrub=Rules())
    rig.feed(Flow(listener=1).post("/api/predict/rank", eas()))
    rig.pipeline.close()
    seen = weakref.ref(rig.pipeline)
    gc.disable()
    try:
        del rig.pipeline
        assert seen() is None
    finally:
        gc.enable()


def test_a_connection_that_breaks_off_in_the_answer() -> None:
    rig, flow = Rig(), Flow(listener=1)
    body = eas()
    flow.client(f"POST /api/predict/r HTTP/1.1\r\nHost: e\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    flow.server(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").closed("server_reset")
    rig.feed(flow)
    assert rig.only_call()[1] == "unproven"


def test_an_early_413_while_the_body_is_sent() -> None:
    rig, flow = Rig(), Flow(listener=1)
    flow.client(b"POST /api/predict/r HTTP/1.1\r\nHost: e\r\nContent-Length: 1000\r\n\r\nsome")
    flow.server(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").closed()
    assert not rig.feed(flow).seen
    assert rig.counts == {"requests_incomplete": 1}


# --- what is never kept ---

SECRETS = ["Bearer-SECRET", "session=SECRET", "SECRET-value", "SECRET-query"]


def test_credentials_never_reach_the_batch() -> None:
    rig = Rig()
    lines = (
        f"Authorization: {SECRETS[0]}\r\nCookie: {SECRETS[1]}\r\nX-Unknown: {SECRETS[2]}\r\n"
        "Proxy-Authorization: Basic SECRET\r\nContent-Type: application/octet-stream\r\n"
    )
    http = Flow(1, listener=1)
    for _ in range(3):
        http.post(f"/api/predict/rank?token={SECRETS[3]}", eas(), headers=lines)
    http.post(f"/other?{SECRETS[3]}", b"SECRET", headers=lines)
    http.post("/api/predict/rank", b"SECRET", headers=lines, status=400)
    grpc = GrpcFlow(2)
    headers = [("authorization", SECRETS[0]), ("cookie", SECRETS[1]), ("x-token-bin", "U0VDUkVU")]
    for _ in range(3):
        grpc.answer(grpc.request(predict(), headers=headers), predict_response())
    grpc.answer(grpc.request(predict(), headers=headers), status=3, text="SECRET")
    batch = rig.feed(http, grpc)
    assert len(batch.samples) == 3
    assert len(batch.held_out) >= 2
    held = everything(batch)
    assert b"SECRET" not in held
    assert b"U0VDUkVU" not in held
    assert b"application/octet-stream" in held


# --- losses ---


def test_a_body_over_the_limit() -> None:
    rig, flow = Rig(request_bytes=1000), GrpcFlow()
    flow.call(predict(fill=bytes(2000)), predict_response())
    flow.call(predict(), predict_response())
    batch = rig.feed(flow)
    assert dict(batch.refusals) == {("tfserving", "", "oversized", "body over the limit"): 1}
    assert rig.counts == {"requests_observed": 2, "requests_oversized": 1, "requests_proven": 1}
    assert rig.pipeline._budget.used == 0


def test_the_byte_budget_gives_up_the_largest_open_body() -> None:
    rig = Rig(open_bytes=100_000, request_bytes=90_000)
    flows, streams = [], []
    for number, size in enumerate([10_000, 60_000, 20_000, 30_000], 1):
        flow = GrpcFlow(number)
        streams.append(flow.request(predict(outputs=[f"o{number}"], fill=bytes(size)), end=False))
        flows.append(flow)
        rig.feed(flow)
        assert rig.pipeline._budget.used <= 100_000
    for flow, stream in zip(flows, streams, strict=True):
        flow._client.end_stream(stream)
        flow.pump()
        flow.answer(stream, predict_response())
        rig.feed(flow)
    assert rig.counts["requests_oversized"] == 1
    assert {str(delta.signature)[-4:] for delta in rig.pipeline.batch.seen.values()} == {"(o1)", "(o3)", "(o4)"}
    assert rig.pipeline._budget.used == 0


def test_a_body_in_many_small_pieces_is_held_in_one_and_accounted_for() -> None:
    rig, flow = Rig(), Flow(listener=1)
    body = eas({"x": [0.5] * 10_000})
    flow.client(b"POST /api/predict/r HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n")
    for at in range(0, len(body), 2):
        piece = body[at : at + 2]
        flow.client(b"%x\r\n%s\r\n" % (len(piece), piece))
    rig.feed(flow)
    (entry,) = rig.pipeline._flows[1].tracker._open.values()
    assert len(entry.parts) <= 2
    assert len(body) <= rig.pipeline._budget.used <= len(body) + 1000
    flow.client(b"0\r\n\r\n").server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    (sample,) = rig.feed(flow).samples.values()
    assert sample.body == body
    assert rig.pipeline._budget.used == 0


def test_pieces_of_all_sizes_make_the_body() -> None:
    chance = random.Random(4)
    for _ in range(200):
        parts, pieces, cost = Parts(), [], 0
        for _ in range(chance.randrange(30)):
            pieces.append(chance.randbytes(chance.choice((1, 100, SMALL_PART - 1, SMALL_PART, 10_000))))
            cost += parts.add(pieces[-1])
        whole = b"".join(pieces)
        assert cost == len(whole) + PART_COST * len(parts)
        assert parts.take() == whole
        assert len(parts) == 0
    parts = Parts()
    parts.add(whole := bytes(SMALL_PART))
    assert parts.take() is whole


def compressed_answers(rig: Rig, count: int, size: int) -> list[tuple[GrpcFlow, int, bytes]]:
    """Calls whose gzip answers have come but for their last byte."""
    found = []
    for number in range(1, count + 1):
        flow = GrpcFlow(number)
        stream = flow.request(predict(outputs=[f"o{number}"]))
        raw = message_bytes(predict_response(7, outputs=random.Random(number).randbytes(size)), compressed=True)
        flow._server.send_headers(
            stream, [(":status", "200"), ("content-type", "application/grpc"), ("grpc-encoding", "gzip")]
        )
        flow._send(flow._server, stream, raw[:-1], last=False)
        rig.feed(flow)
        found.append((flow, stream, raw[-1:]))
    return found


def test_a_compressed_answer_is_taken_from_the_budget() -> None:
    rig = Rig()
    ((flow, stream, rest),) = compressed_answers(rig, 1, 50_000)
    assert 50_000 <= rig.pipeline._budget.used <= 52_000
    flow._send(flow._server, stream, rest, last=False)
    rig.feed(flow)
    assert rig.pipeline._budget.used < 500
    flow._server.send_headers(stream, [("grpc-status", "0")], end_stream=True)
    flow.pump()
    rig.feed(flow)
    assert rig.only_call()[0].owner.version == "7"
    assert rig.pipeline._budget.used == 0


def test_compressed_answers_over_the_budget_cost_the_version_not_the_call() -> None:
    rig = Rig(open_bytes=70_000)
    for flow, stream, rest in compressed_answers(rig, 2, 50_000):
        assert rig.pipeline._budget.used <= 70_000
        flow._send(flow._server, stream, rest, last=False)
        flow._server.send_headers(stream, [("grpc-status", "0")], end_stream=True)
        flow.pump()
        rig.feed(flow)
    assert rig.counts["requests_proven"] == 2
    assert sorted(key.owner.version for key in rig.pipeline.batch.seen) == ["7", "unknown"]
    assert rig.pipeline._budget.used == 0


def test_a_complete_body_may_be_given_up_while_its_answer_is_awaited() -> None:
    rig = Rig(open_bytes=100_000, request_bytes=90_000)
    slow, other = GrpcFlow(1), GrpcFlow(2)
    stream = slow.request(predict(fill=bytes(80_000)))
    second = other.request(predict(outputs=["y"], fill=bytes(40_000)))
    rig.feed(slow, other)
    slow.answer(stream, predict_response())
    other.answer(second, predict_response())
    batch = rig.feed(slow, other)
    # It is still counted as a call; only its bytes are gone.
    kept = {str(delta.signature)[-3:]: key in batch.samples for key, delta in batch.seen.items()}
    assert kept == {"(*)": False, "(y)": True}
    assert rig.counts["requests_proven"] == 2


def test_memory_that_is_scarce_is_not_spent_on_known_signatures() -> None:
    rig, flow = Rig(open_bytes=50_000), GrpcFlow()
    body = predict(fill=bytes(30_000))
    for _ in range(3):
        flow.call(body, predict_response())
    batch = rig.feed(flow)
    (key,) = batch.samples
    # The first is the sample, the second is held out; by the third, nothing is wanted of this signature.
    assert batch.seen[key].proven == 3
    stream = flow.request(body)
    rig.feed(flow)
    assert rig.pipeline._budget.used == 0
    flow.answer(stream, predict_response())
    assert rig.feed(flow).seen[key].proven == 4


def test_the_first_call_of_a_model_is_kept_when_memory_is_scarce() -> None:
    rig, flow = Rig(open_bytes=50_000), GrpcFlow()
    flow.call(predict(fill=bytes(40_000)), predict_response())
    assert len(rig.feed(flow).samples) == 1


def test_a_gap_loses_the_exchange_and_says_so() -> None:
    rig, flow = Rig(), Flow(listener=1)
    body = eas({"x": [0.5] * 100})
    flow.client(f"POST /api/predict/r HTTP/1.1\r\nHost: e\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:50])
    flow.gap(len(body) - 50, 0)
    flow.server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    flow.post("/api/predict/r", eas())
    batch = rig.feed(flow)
    assert rig.counts["requests_lost"] == 1
    assert [delta.proven for delta in batch.seen.values()] == [1]


def test_a_flow_that_never_finds_its_framing_again() -> None:
    rig, flow = Rig(), Flow(listener=1)
    flow.post("/api/predict/r", eas()).gap(500, 0).client(b"middle of something").closed()
    rig.feed(flow)
    assert rig.counts["flows_unsynced"] == 1
    assert rig.counts["flows_blind"] == 1
    assert rig.counts["flows_resynced"] == 0


def test_a_flow_that_is_joined_in_the_middle() -> None:
    rig, flow = Rig(), Flow(listener=1, start=(5000, 700))
    # One exchange to find the framing by, then two more.
    flow.client(b"rest of a body").server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    for _ in range(3):
        flow.post("/api/predict/r", eas())
    batch = rig.feed(flow)
    assert rig.counts["flows_unsynced"] == 1
    assert rig.counts["flows_resynced"] == 1
    assert sum(delta.proven for delta in batch.seen.values()) >= 2


def test_flows_that_were_never_seen_are_at_least_one_missed_request_each() -> None:
    def lost(flows: int, client: int) -> tuple[int, int, int, bytes]:
        return (tap.LOST, 0, 0, tap.LOST_PAYLOAD.pack(flows, client, 10 * client))

    rig, flow = Rig(), Flow(listener=1)
    rig.pipeline.feed([lost(3, 5000)])
    assert rig.counts == {"requests_missed": 3}
    # Connections that were opened and closed.
    rig.pipeline.feed([lost(7, 0)])
    assert rig.counts == {"requests_missed": 3}
    for _ in range(4):
        flow.post("/api/predict/r", eas())
    rig.feed(flow)
    each = flow.at[tap.CLIENT] // 4
    rig.pipeline.feed([lost(2, 10 * each), lost(5, 2 * each)])
    assert rig.counts["requests_missed"] == 3 + 10 + 5


@pytest.mark.parametrize(("start", "missed"), [((0, 0), 0), ((1, 0), 1), ((5000, 700), 1)])
def test_a_joined_flow_is_at_least_one_missed_request(start: tuple[int, int], missed: int) -> None:
    rig = Rig()
    rig.feed(Flow(start=start).closed())
    assert rig.counts["requests_missed"] == missed


def test_a_grpc_channel_that_is_joined_in_the_middle() -> None:
    rig = Rig()
    before = GrpcFlow()
    for _ in range(2):
        before.call(predict(), predict_response())
    seen = before.at
    before.frames = Flow(listener=0, start=(seen[4], seen[5])).frames
    for number in range(8):
        before.call(predict(outputs=[f"o{number}"]), predict_response())
    before.closed()
    rig.feed(before)
    counted = rig.counts["requests_proven"] + rig.counts["requests_unproven"]
    # Whatever cannot be read is counted as lost or blind, never left out silently.
    assert counted or rig.counts["requests_lost"] or rig.counts["flows_blind"]
    assert rig.counts["flows_unsynced"] >= 1


def _yes(_: object) -> bool:
    return True


def _no() -> bool:
    return False


def test_a_lost_stream_that_was_never_heard_of_is_counted() -> None:
    tracker = ExchangeTracker(
        1, LISTENERS[0], "-", BodyBudget(1000), Heads(), max_request_bytes=10, wanted=_yes, passed_over=_no
    )
    tracker.feed([ev.Lost(5, "header history lost"), ev.Aborted(7, ev.Side.CLIENT, 0, "reset")])
    assert [(exchange.stream, exchange.lost) for exchange in tracker.finished] == [(5, True)]
    assert tracker.open_exchanges == 0


def test_open_exchanges_are_bounded_over_all_flows_and_no_flow_is_left_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "MAX_OPEN_EXCHANGES", 20)
    monkeypatch.setattr(exchange_module, "FAIR_EXCHANGES", 3)
    rig = Rig()
    greedy, modest = GrpcFlow(1), GrpcFlow(2)
    for _ in range(30):
        greedy.request(predict(), end=False)
    rig.feed(greedy)
    assert rig.counts == {"requests_lost": 10}
    modest.call(predict(), predict_response())
    waiting = [modest.request(predict()) for _ in range(5)]
    rig.feed(modest)
    assert rig.counts == {"requests_lost": 12, "requests_observed": 1, "requests_proven": 1}
    for stream in waiting:
        modest.answer(stream, predict_response())
    rig.feed(modest, greedy.closed())
    assert (rig.counts["requests_lost"], rig.counts["requests_proven"]) == (12, 4)
    # What has ended makes room.
    more = GrpcFlow(3)
    for _ in range(20):
        more.request(predict(), end=False)
    rig.feed(more)
    assert rig.counts["requests_lost"] == 12


def _unverified(request: bytes, answer: bytes) -> Exchange:
    """A successful exchange whose request head was read with a table that missed bytes."""
    tracker = ExchangeTracker(
        1, LISTENERS[0], "-", BodyBudget(1 << 20), Heads(), max_request_bytes=1 << 20, wanted=_yes, passed_over=_no
    )
    head = ((b"content-type", b"application/grpc"),)
    path = b"/tensorflow.serving.PredictionService/Predict"
    tracker.feed(
        [
            ev.RequestHead(1, b"POST", path, b"m", head, verified=False),
            ev.RequestData(1, message_bytes(request)),
            ev.RequestEnd(1),
            ev.ResponseHead(1, 200, head),
            ev.ResponseData(1, message_bytes(answer)),
            ev.ResponseEnd(1, ((b"grpc-status", b"0"),)),
        ]
    )
    return tracker.finished[0]


def test_success_behind_missed_bytes_needs_the_bodys_word() -> None:
    for answer, expected in ((predict_response(7), "proven"), (length_delimited(1, b"no model_spec"), "unproven")):
        judgement = _unverified(predict(), answer).judgement
        assert judgement is not None
        assert judgement.outcome == expected


def test_a_body_that_contradicts_an_unverified_head_is_lost_not_refused() -> None:
    exchange = _unverified(b"\xff\xff", predict_response(7))
    assert exchange.lost
    assert exchange.judgement is None


# --- bounds ---


def test_senders_and_shapes_are_bounded_while_the_store_is_away() -> None:
    rig, flow = Rig(), GrpcFlow()
    for size in range(1, 60):
        flow.call(predict({"x": (1, (size,))}), predict_response())
    batch = rig.feed(flow)
    (delta,) = batch.seen.values()
    assert len(delta.shapes) == 17
    assert delta.shapes.total() == 59
    assert delta.shapes[OTHER] == 43


def test_shapes_too_long_to_show_are_not_kept() -> None:
    rig, flow = Rig(), GrpcFlow()
    flow.call(predict({f"x{n}": (1, [10**17] * 200) for n in range(20)}), predict_response())
    (delta,) = rig.feed(flow).seen.values()
    assert dict(delta.shapes) == {OTHER: 1}


def test_names_made_up_by_clients_do_not_fill_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "MAX_REASONS", 10)
    rig, flow = Rig(), GrpcFlow()
    total: Counter[Any] = Counter()
    for turn in range(4):
        for number in range(8):
            flow.call(predict(model=f"none{turn}{number}"), status=16)
        total.update(rig.feed(flow).refusals)
        rig.pipeline.take()
    assert len(total) == 11
    assert total["tfserving", OTHER, "refused", "not authenticated"] == 22
    flow.call(predict(model="n" * 300), status=16)
    assert [key[1] for key in rig.feed(flow).refusals] == [OTHER]


def test_a_signature_too_large_is_counted_not_kept() -> None:
    rig, flow = Rig(), GrpcFlow()
    flow.call(predict(["n" * 70_000]), predict_response())
    batch = rig.feed(flow)
    assert not batch.seen
    assert dict(batch.refusals) == {("tfserving", "m", "undecodable", "signature too large"): 1}


# --- batches ---


def test_a_batch_is_handed_over_once() -> None:
    rig, flow = Rig(), GrpcFlow()
    flow.call(predict(), predict_response())
    rig.feed(flow)
    first = rig.pipeline.take()
    assert (first.run, first.updated_at, len(first.samples)) == ("run", START, 1)
    assert not rig.pipeline.urgent
    flow.call(predict(), predict_response())
    second = rig.feed(flow)
    (key,) = second.seen
    assert (second.seen[key].proven, second.seen[key].hours) == (1, 0)
    assert not second.samples
    ((held_key, held),) = second.held_out.values()
    assert (held_key, held.for_signature) == (key, True)


def test_dropped_requests_are_taken_again() -> None:
    rig, flow = Rig(), GrpcFlow()
    for _ in range(2):
        flow.call(predict(), predict_response())
    batch = rig.feed(flow)
    assert drop_requests(batch, rig.admission) == 2
    assert batch.payload_bytes == 0
    (delta,) = batch.seen.values()
    assert delta.proven == 2
    assert rig.admission.stored_bytes == 0
    for _ in range(2):
        flow.call(predict(), predict_response())
    again = rig.feed(flow)
    assert len(again.samples) == 1
    assert len(again.held_out) == 1


def test_an_eviction_takes_what_waits_in_the_batch() -> None:
    rig, flow = Rig(signatures_per_version=2), GrpcFlow()
    for number in range(4):
        flow.call(predict(outputs=[f"o{number}"]), predict_response())
        flow.call(predict(outputs=[f"o{number}"]), predict_response())
    batch = rig.feed(flow)
    assert len(batch.seen) == 4
    assert len(batch.evicted) == 2
    assert set(batch.samples) == set(batch.seen) - batch.evicted
    # The reservoir keeps what it drew: verify must be able to see what an eviction costs. The rest of it goes.
    held = list(batch.held_out.values())
    assert {key for key, _ in held} == set(batch.seen)
    assert all(one.draw is not None for _, one in held)
    assert {key for key, one in held if one.for_signature} == set(batch.samples)


def test_hours_are_counted_by_the_taps_clock() -> None:
    rig, flow = Rig(), GrpcFlow()
    for hour in (0, 0, 1, 1, 5):
        rig.pipeline.feed([time_frame(START + 3600 * hour)])
        flow.call(predict(), predict_response())
        rig.feed(flow)
    (delta,) = rig.pipeline.batch.seen.values()
    assert (delta.hours, delta.first_seen, delta.last_seen) == (3, START, START + 5 * 3600)


def test_frames_of_flows_that_were_never_opened_are_passed_over() -> None:
    rig = Rig()
    flow = Flow().post("/api/predict/r", eas()).gap(1, 1).eof_client().closed()
    rig.pipeline.feed(flow.frames[1:])
    assert rig.counts == {}


def test_any_split_of_the_frames_gives_the_same_batch() -> None:
    def calls() -> list[Flow]:
        grpc, http = GrpcFlow(1), Flow(2, listener=1)
        grpc.call(predict(), predict_response())
        grpc.call(predict(outputs=["y"]), status=14)
        http.post("/api/predict/r", eas()).post("/x", b"")
        return [grpc, http]

    whole = Rig()
    expected = whole.feed(*calls())
    split = Rig()
    for flow in calls():
        pieces = Flow(flow.number)
        pieces.frames = []
        for kind, number, offset, payload in flow.frames:
            if kind in (4, 5):
                pieces.frames += [(kind, number, offset + at, payload[at : at + 1]) for at in range(len(payload))]
            else:
                pieces.frames.append((kind, number, offset, payload))
        split.feed(pieces)
    assert split.pipeline.batch == expected
    assert split.counts == whole.counts
