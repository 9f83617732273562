"""Held-out REST requests as judges of a file: compared with its records as the requests that are made of them."""

from __future__ import annotations

from capture.convert.rest import grpc_request
from capture.dialects.tfserving_calls import read_predict
from capture.signature import SignatureDef, TensorInfo
from capture.store.base import HeldOut, ModelVersion, RecordKey, Sample
from replay.traffic import gather

DEFS = {"serving_default": SignatureDef({"x": TensorInfo("x:0", 1)}, {"y": TensorInfo("y:0", 1)})}
PATH = "/v1/models/m/versions/1:predict"


def held(number: int, body: bytes) -> tuple[RecordKey, HeldOut]:
    sample = Sample(body, None, {}, PATH, "", "proven", 1.0)
    return RecordKey(ModelVersion("tfserving", "m", "1"), f"d{number}"), HeldOut(str(number), sample, 0.5, False)


def test_held_out_rest_requests() -> None:
    record = grpc_request("REST Predict column", b'{"inputs": [1.5, 2]}', "m", DEFS)
    bodies = [
        b'{"instances": [{"x": 1.5}, {"x": 2.0}]}',
        b'{"instances": [1.5, 3]}',
        b'{"instances": ["text"]}',
        b'{"instances": [{"x": 1, "z": 1}]}',
        b"no JSON",
    ]
    found = gather(
        "tfserving",
        "m",
        DEFS,
        records=[("Predict", record)],
        recorded=[read_predict(record).signature],
        held_out=[held(number, body) for number, body in enumerate(bodies)],
        signatures=[],
        sample=lambda _: None,
    )
    # The same bytes as the record's, however they were sent; others of the same executor judge as well.
    assert [(one.signature.method, one.byte_identical) for one in found.judged] == [
        ("REST Predict row", True),
        ("REST Predict row", False),
    ]
    reasons = sorted(reason for reason, _ in found.refused.values())
    assert reasons[0].startswith("Failed to process element: 0 of 'instances' list.")
    assert reasons[1] == "no input z"
    assert (found.unreadable, found.by_record_only) == (1, 0)
