from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from capture.export.base import ExportError, OutFile, Record
from capture.export.tfrecord import (
    TFRecordError,
    TFRecordFormat,
    frame,
    prediction_log,
    read_records,
    strip_version,
)
from capture.schema import messages
from capture.schema.wire import length_delimited
from capture.store.base import Sample
from replay import tf_protos
from tests.support.calls import CLASSIFY, REGRESS, multi_inference, of_examples, predict
from tests.support.processes import run_tensorflow
from tests.support.stores import body_of, key_of, sample, signature
from tests.support.tf_requests import predict_request, ranking_inputs

FORM = TFRecordFormat()


def record(*outputs: str, body: bytes | None = None, method: str = "Predict") -> tuple[Record, Sample]:
    one = signature(outputs)
    made = Record(key_of(one), one, 1, "proven", "x:float[1]")
    if method != "Predict":
        made.signature = type(one)("tfserving", "m", method, "serving_default", ("x",), None)
    return made, sample(body_of(one) if body is None else body)


def real_log(data: bytes) -> Any:
    log = tf_protos.load("tensorflow_serving.apis.prediction_log_pb2").PredictionLog()
    log.ParseFromString(data)
    return log


# --- framing ---


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_records_read_back(records: list[bytes]) -> None:
    assert list(read_records(b"".join(map(frame, records)))) == records


def test_a_known_record() -> None:
    # Written by TensorFlow's TFRecordWriter.
    assert frame(b"abc").hex() == "0300000000000000b099490e6162636e57f121"


@given(st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    whole = bytearray(frame(b"one record") + frame(b"another"))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(TFRecordError, match=r"^corrupted record at byte (0|26)"):
        list(read_records(bytes(whole)))


def test_a_file_cut_off_anywhere_is_an_error() -> None:
    whole = frame(b"one record")
    for size in range(1, len(whole)):
        with pytest.raises(TFRecordError, match=r"^corrupted record at byte 0"):
            list(read_records(whole[:size]))
    # What came before is read.
    reading = read_records(whole + whole[:-1])
    assert next(reading) == b"one record"
    with pytest.raises(
        TFRecordError, match=f"^corrupted record at byte {len(whole)}: cut off, or its checksum is wrong$"
    ):
        next(reading)


def test_a_compressed_file_is_named() -> None:
    with pytest.raises(TFRecordError, match=r"it is gzip-compressed, and servers read uncompressed files only$"):
        list(read_records(gzip.compress(frame(b"x"))))


def test_an_empty_file_has_no_records() -> None:
    assert list(read_records(b"")) == []


def test_a_length_beyond_the_file() -> None:
    import struct

    from capture.export.tfrecord import masked_crc

    head = struct.pack("<Q", 2**63)
    with pytest.raises(TFRecordError, match="cut off"):
        list(read_records(head + struct.pack("<I", masked_crc(head)) + b"data"))


# --- the request ---


@pytest.mark.parametrize("version", [None, 0, 3])
@pytest.mark.parametrize("outputs", [(), ("score",), ("score", "score")])
def test_only_the_version_is_cut(version: int | None, outputs: tuple[str, ...]) -> None:
    real = predict_request(ranking_inputs(3), outputs=outputs, version=version, signature="s")
    log = real_log(prediction_log(real.SerializeToString()))
    assert log.WhichOneof("log_type") == "predict_log"
    real.model_spec.ClearField("version_choice")
    assert log.predict_log.request == real


def test_a_label_is_cut() -> None:
    stripped = messages.PredictRequest.FromString(strip_version(predict(label="stable", signature="s")))
    assert stripped.model_spec.WhichOneof("version_choice") is None
    assert (stripped.model_spec.name, stripped.model_spec.signature_name) == ("m", "s")


def test_the_bytes_of_inputs_and_filter_are_not_encoded_again() -> None:
    # Odd but legal: a field that is not known, a long varint, and fields out of order.
    odd = length_delimited(3, b"y") + length_delimited(77, b"unknown") + b"\xf8\x01\x81\x80\x00"
    entry = length_delimited(
        2, length_delimited(1, b"x") + length_delimited(2, b"\x08\x81\x00" + length_delimited(4, b"abcd"))
    )
    spec = length_delimited(1, messages.ModelSpec(name="m").SerializeToString())
    assert strip_version(odd + spec + entry) == spec + odd + entry


def test_a_model_spec_in_two_parts_is_merged() -> None:
    spec = messages.ModelSpec(name="m", signature_name="s")
    spec.version.value = 3
    parts = length_delimited(1, messages.ModelSpec(name="m").SerializeToString()) + length_delimited(
        1, spec.SerializeToString()
    )
    stripped = messages.PredictRequest.FromString(strip_version(parts))
    assert (stripped.model_spec.name, stripped.model_spec.signature_name) == ("m", "s")
    assert not stripped.model_spec.HasField("version")


@pytest.mark.parametrize(
    ("method", "log_type", "module", "name"),
    [
        ("Classify", "classify_log", "classification", "ClassificationRequest"),
        ("Regress", "regress_log", "regression", "RegressionRequest"),
    ],
)
@pytest.mark.parametrize("context", [None, [("job", b"clerk")]])
def test_a_request_of_examples_loses_its_version_only(
    method: str, log_type: str, module: str, name: str, context: list[tuple[str, bytes]] | None
) -> None:
    body = of_examples([(("age", 1.0),)] * 3, signature="s", version=7, context=context)
    log = real_log(prediction_log(body, method))
    assert log.WhichOneof("log_type") == log_type
    sent = getattr(tf_protos.load(f"tensorflow_serving.apis.{module}_pb2"), name).FromString(body)
    assert sent.model_spec.version.value == 7
    sent.model_spec.ClearField("version_choice")
    assert getattr(log, log_type).request == sent


def test_each_task_loses_its_version_only() -> None:
    body = multi_inference((CLASSIFY, "a"), (REGRESS, "b"), examples=[(("age", 1.0),)] * 3, version=7)
    log = real_log(prediction_log(body, "MultiInference"))
    assert log.WhichOneof("log_type") == "multi_inference_log"
    sent = tf_protos.load("tensorflow_serving.apis.inference_pb2").MultiInferenceRequest.FromString(body)
    for task in sent.tasks:
        assert task.model_spec.version.value == 7
        task.model_spec.ClearField("version_choice")
    assert log.multi_inference_log.request == sent
    assert {task.model_spec.name for task in log.multi_inference_log.request.tasks} == {"m"}


def test_the_bytes_of_examples_and_tasks_are_not_encoded_again() -> None:
    # Odd but legal: input before the tasks, unknown fields, a long varint.
    spec = messages.ModelSpec(name="m", signature_name="s").SerializeToString()
    task = length_delimited(1, spec) + length_delimited(2, REGRESS.encode()) + b"\xf8\x01\x81\x80\x00"
    given = length_delimited(2, length_delimited(1, length_delimited(1, b"\x0a\x80\x00"))) + b"\xf8\x01\x81\x00"
    body = given + length_delimited(1, task)
    assert strip_version(body, "MultiInference") == body
    assert strip_version(given + length_delimited(1, spec), "Classify") == length_delimited(1, spec) + given


@given(st.binary(max_size=80))
def test_whatever_a_server_parses_can_be_exported(data: bytes) -> None:
    try:
        before = messages.PredictRequest.FromString(data)
    except DecodeError:
        return
    after = messages.PredictRequest.FromString(strip_version(data))
    assert dict(after.inputs) == dict(before.inputs)
    assert list(after.output_filter) == list(before.output_filter)
    assert after.model_spec.name == before.model_spec.name


# --- the format ---


def test_write_and_check() -> None:
    records = [record("a"), record("b", "b"), record()]
    (file,) = FORM.write(records)
    FORM.check([file], records)
    assert len(list(read_records(file.data))) == 3
    for broken in (file.data[:-1], file.data + frame(b"x"), FORM.write(records[::-1])[0].data, b""):
        with pytest.raises(ExportError, match="does not read back"):
            FORM.check([OutFile("", broken)], records)


def test_what_a_warm_up_file_cannot_hold_is_named() -> None:
    with pytest.raises(ExportError, match="a warm-up file cannot hold SessionRun: the server answers UNIMPLEMENTED"):
        FORM.write([record(method="SessionRun")])
    broken = record(body=b"\x0a\x50")
    with pytest.raises(ExportError, match=f"^{broken[0].key.digest}: its stored request is none of Predict"):
        FORM.write([broken])


_TF_READING = """
import json, sys
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2
found = []
for record in tf.data.TFRecordDataset(sys.argv[1]).as_numpy_iterator():
    log = prediction_log_pb2.PredictionLog.FromString(record)
    request = log.predict_log.request
    found.append({
        "version": request.model_spec.WhichOneof("version_choice"),
        "name": request.model_spec.name,
        "signature": request.model_spec.signature_name,
        "outputs": list(request.output_filter),
        "inputs": {a: t.SerializeToString(deterministic=True).hex() for a, t in request.inputs.items()},
        "values": {a: repr(tf.make_ndarray(t).tolist()) for a, t in request.inputs.items()},
    })
print(json.dumps(found))
"""


@pytest.mark.server
def test_tensorflow_reads_it_back(tmp_path: Path) -> None:
    sent = [
        predict_request(ranking_inputs(2), version=7),
        predict_request(ranking_inputs(5, 4), outputs=["score", "model_version_id"], signature="serving_default"),
        predict_request({}, outputs=["score", "score"]),
    ]
    records = [record(str(number), body=request.SerializeToString()) for number, request in enumerate(sent)]
    path = tmp_path / "tf_serving_warmup_requests"
    path.write_bytes(FORM.write(records)[0].data)
    found = run_tensorflow(_TF_READING, str(path))
    assert len(found) == len(sent)
    for one, request in zip(found, sent, strict=True):
        assert one["version"] is None
        assert (one["name"], one["signature"]) == (request.model_spec.name, request.model_spec.signature_name)
        assert one["outputs"] == list(request.output_filter)
        assert one["inputs"] == {
            alias: tensor.SerializeToString(deterministic=True).hex() for alias, tensor in request.inputs.items()
        }
    assert one["values"] == {}
    assert found[0]["values"]["user_id"] == "[b'user-0', b'user-1']"
