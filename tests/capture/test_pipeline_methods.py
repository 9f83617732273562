"""Each method of TF Serving's gRPC through the pipeline: head to store, plain and compressed."""

from __future__ import annotations

import pytest

from capture.schema.wire import length_delimited
from tests.capture.test_pipeline import Rig
from tests.support.calls import CLASSIFY, REGRESS, multi_inference, of_examples, predict_response, session_run
from tests.support.tap_frames import GrpcFlow

#: Method -> path below /tensorflow.serving., a request of version 3, an answer of version 8.
METHODS = {
    "Classify": ("PredictionService", of_examples(version=3), predict_response(8, outputs=bytes(3000))),
    "Regress": ("PredictionService", of_examples(version=3), predict_response(8, outputs=bytes(3000))),
    "MultiInference": (
        "PredictionService", multi_inference((CLASSIFY, "a"), (REGRESS, "b"), version=3),
        # Two results, each with its model_spec before its values.
        length_delimited(1, length_delimited(1, predict_response(8)[2:]) + length_delimited(3, bytes(3000))) * 2,
    ),
    "SessionRun": ("SessionService", session_run(), length_delimited(1, bytes(3000)) + length_delimited(
        3, predict_response(8)[2:]
    )),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("compressed", [False, True])
def test_every_method_is_read_with_the_version_that_answered(method: str, compressed: bool) -> None:
    service, body, answer = METHODS[method]
    path = f"/tensorflow.serving.{service}/{method}"
    rig, flow = Rig(), GrpcFlow()
    flow.answer(flow.request(body, path=path, compressed=compressed), answer, compressed=compressed)
    batch = rig.feed(flow)
    key, outcome = rig.only_call()
    assert (key.owner.model, key.owner.version, outcome) == ("m", "8", "proven")
    assert (batch.samples[key].body, batch.samples[key].path) == (body, path)
    (found,) = batch.seen.values()
    assert found.signature.method == method


@pytest.mark.parametrize("method", METHODS)
def test_a_body_that_is_none_is_counted_and_changes_nothing_else(method: str) -> None:
    service, body, answer = METHODS[method]
    path = f"/tensorflow.serving.{service}/{method}"
    rig, flow = Rig(), GrpcFlow()
    flow.answer(flow.request(b"\xff\xff", path=path), status=3, text="cannot be parsed")
    flow.answer(flow.request(b"\xff\xff", path=path), answer)
    flow.answer(flow.request(body, path=path), answer)
    batch = rig.feed(flow)
    assert rig.only_call()[1] == "proven"
    assert len(batch.samples) == 1
    # What the server took, though, was a call that no file covers.
    assert {
        (outcome, count) for (_, _, outcome, reason), count in batch.refusals.items() if reason[:6] == "not a "
    } == {
        ("refused", 1),
        ("undecodable", 1),
    }
