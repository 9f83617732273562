"""Scrubbing at capture: what is kept, what is only counted, and a store that holds what was not scrubbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from capture import scrubbing
from capture.export.scrub_rules import Rules, read_rules
from capture.schema import messages
from capture.schema.wire import length_delimited
from capture.scrubbing import first_unscrubbed
from capture.store.base import Batch
from tests.capture.test_pipeline import Rig, everything
from tests.support.calls import eas, predict, predict_response
from tests.support.eas_bodies import PACK
from tests.support.stores import add, filled, held_out, key_of, signature
from tests.support.tap_frames import Flow, GrpcFlow

SECRET = b"secret-4711"


def rules(*texts: str) -> Rules:
    return read_rules(texts, {})


def with_string(value: bytes = SECRET) -> bytes:
    request = messages.PredictRequest.FromString(predict({"s": (7, (1,))}))
    request.inputs["s"].MergeFromString(length_delimited(8, value))
    return bytes(request.SerializeToString())


def test_samples_and_held_out_requests_are_scrubbed() -> None:
    rig, flow = Rig(scrub=rules("m:s=constant:c")), GrpcFlow()
    for _ in range(3):
        flow.call(with_string(), predict_response(7))
    batch = rig.feed(flow)
    assert (len(batch.samples), len(batch.held_out)) == (1, 2)
    assert SECRET not in everything(batch)
    assert rig.counts == {"requests_observed": 3, "requests_proven": 3}
    # Admission counts what is stored, not what was sent.
    assert rig.admission.stored_bytes == batch.payload_bytes


def test_what_has_no_rule_is_counted_and_not_kept() -> None:
    rig, flow = Rig(scrub=rules()), GrpcFlow()
    for _ in range(3):
        flow.call(with_string(), predict_response(7))
    batch = rig.feed(flow)
    assert (batch.samples, batch.held_out, rig.admission.stored_bytes) == ({}, {}, 0)
    (delta,) = batch.seen.values()
    assert delta.proven == rig.counts["requests_unscrubbed"] == 3
    ((_, model, outcome, reason),) = batch.refusals
    assert (model, outcome) == ("m", "unscrubbed")
    assert reason.startswith("input s: holds strings, which has no rule; say 'm:s=constant:VALUE'")
    assert SECRET not in everything(batch)


def test_one_that_cannot_be_scrubbed_is_not_tried_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    real = scrubbing.scrub
    monkeypatch.setattr(scrubbing, "scrub", lambda *arguments: tried.append(1) or real(*arguments))
    rig, flow = Rig(scrub=rules()), GrpcFlow()
    for _ in range(5):
        flow.call(with_string(), predict_response(7))
    rig.feed(flow)
    assert (len(tried), rig.counts["requests_unscrubbed"]) == (1, 5)


@pytest.mark.parametrize("headers", ["", "Content-Encoding: gzip\r\n"])
def test_the_compressed_form_goes_too(headers: str) -> None:
    rig, flow = Rig(scrub=rules()), Flow(listener=1)
    body = eas({"x": [4711.5] * 50})
    flow.post("/api/predict/m", PACK["gzip"](body), headers=headers)
    batch = rig.feed(flow)
    (sample,) = batch.samples.values()
    assert sample.wire_body is None
    assert "content-encoding" not in sample.headers
    assert messages.EasPredictRequest.FromString(sample.body).inputs["x"].float_val == [0.0] * 50


def test_a_store_from_before_is_found_out(tmp_path: Path) -> None:
    batch = Batch("run")
    add(batch, signature(), body=predict(fill=bytes(4)))
    store = filled(tmp_path / "s", batch)
    assert first_unscrubbed(store, rules()) == ""
    held = Batch("run")
    held_out(held, key_of(signature()), "h", predict(fill=b"abcd"))
    store.apply(held)
    assert first_unscrubbed(store, rules()) == signature().digest
    assert first_unscrubbed(store, rules("m:x=keep")) == ""
    store.close()
