"""TF Serving's warm-up file read for people: also one that was written by hand, or is not right.

What the server makes of each record: tensorflow/serving servables/tensorflow/saved_model_warmup.cc (log types) and
saved_model_warmup_util.cc (reading, the bound of 1,000 records).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import DecodeError

from capture.dialects.base import Unreadable
from capture.dialects.tfserving_grpc import predict_call
from capture.export.entries import Contents, Entry, Severity
from capture.export.tfrecord import MAX_RECORDS, TFRecordError, read_places
from capture.schema import messages
from capture.schema.wire import LENGTH, WireError, crowded, fields
from capture.signature import Call, wire_signature

#: Log types that no stock server runs (saved_model_warmup.cc).
_REFUSED: Final = frozenset({"session_run_log", "predict_streamed_log"})
#: What the examples are fed to (tensorflow/cc/saved_model/signature_constants.h: kClassifyInputs, kRegressInputs).
_EXAMPLES_INPUT: Final = "inputs"
_NO_LOG: Final = "no log type"


def read_tfrecord(data: bytes) -> Contents:
    """List the records."""
    contents = Contents("tfrecord")
    try:
        for number, (begin, record) in enumerate(read_places(data), 1):
            contents.entries.append(_entry(number, begin, record))
    except TFRecordError as error:
        contents.broken = f"record {len(contents.entries) + 1}: {error}; write the file anew"
    if len(contents.entries) > MAX_RECORDS:
        contents.remark(
            Severity.ERROR,
            f"{len(contents.entries)} records: TF Serving takes {MAX_RECORDS}, one more fails the load of the model;"
            f" keep the most used {MAX_RECORDS}",
        )
    if not data:
        contents.remark(Severity.WARNING, "no record: the server loads it, and nothing is warmed up")
    contents.remark_repetitions()
    return contents


def _entry(number: int, begin: int, record: bytes) -> Entry:
    digest = f"sha256:{hashlib.sha256(record).hexdigest()[:15]}"
    entry = Entry(number, f"record {number} at byte {begin}", _NO_LOG, len(record), digest)
    try:
        log = messages.PredictionLog.FromString(record)
        kind = log.WhichOneof("log_type")
        if kind is None:
            entry.remark(Severity.WARNING, "has no log_type: the server passes it over; is it a PredictionLog at all?")
            return entry
        entry.kind = kind
        if kind in _REFUSED:
            entry.remark(Severity.ERROR, f"is a {kind}, which TF Serving refuses: no load; remove it")
            return entry
        _READERS[kind](entry, messages.PredictLog.FromString(getattr(log, kind)).request)
    except DecodeError:
        what = "PredictionLog" if entry.kind == _NO_LOG else f"{entry.kind} with a request in it"
        entry.remark(Severity.ERROR, f"is no {what}, and the model does not load; remove it")
    except (WireError, Unreadable) as error:
        entry.remark(Severity.ERROR, f"its request cannot be read ({error}); remove it")
    return entry


def _predict(entry: Entry, body: bytes) -> None:
    if crowded(body):
        raise Unreadable("too many fields")
    call = predict_call(messages.PredictRequest.FromString(body))
    entry.take(call)
    outputs = call.signature.outputs
    if not call.signature.inputs:
        entry.remark(Severity.WARNING, "has no inputs")
    if outputs is None:
        entry.remark(Severity.NOTE, "has an empty output filter: fetches all outputs of the version that loads it")
    elif len(set(outputs)) != len(outputs):
        entry.remark(Severity.ERROR, "asks twice for an output, which TF Serving refuses: no load; remove it")
    _names_version(entry, call.version, call.version_label)


def _names_version(entry: Entry, version: str, label: str) -> None:
    entry.version = version or label
    if entry.version:
        what = "version" if version else "version label"
        entry.remark(Severity.WARNING, f"names {what} {entry.version}; a warm-up runs on the version that loads it")


def _examples(method: str) -> Callable[[Entry, bytes], None]:
    """Reads ClassificationRequest and RegressionRequest: model_spec 1, input 2."""

    def read(entry: Entry, body: bytes) -> None:
        spec = _spec(body)
        signature = wire_signature("tfserving", spec.name, method, spec.signature_name, (_EXAMPLES_INPUT,), ())
        entry.take(Call(signature, ()))
        _count_examples(entry, body)
        choice = spec.WhichOneof("version_choice")
        _names_version(entry, str(spec.version.value) if choice == "version" else "", spec.version_label)

    return read


def _multi_inference(entry: Entry, body: bytes) -> None:
    """MultiInferenceRequest: tasks 1 (model_spec 1, method_name 2), input 2."""
    models, tasks = set(), []
    for task in _values(body, 1):
        spec = _spec(task)
        method = b"".join(_values(task, 2)[-1:]).decode("utf-8", "replace")
        models.add(spec.name)
        tasks.append(f"{spec.signature_name or 'serving_default'}:{method.rpartition('/')[2]}")
    if len(models) != 1 or "" in models:
        entry.remark(Severity.ERROR, "its tasks do not name one model, which TF Serving refuses: no load; remove it")
    name = next(iter(models)) if len(models) == 1 else ""
    entry.take(
        Call(wire_signature("tfserving", name, "MultiInference", "+".join(sorted(tasks)), (_EXAMPLES_INPUT,), ()), ())
    )
    _count_examples(entry, body)


def _count_examples(entry: Entry, body: bytes) -> None:
    """Input: example_list 1 or example_list_with_context 2; of both the examples are 1."""
    message = b"".join(_values(body, 2))
    count = sum(len(_values(listed, 1)) for number in (1, 2) for listed in _values(message, number))
    entry.shapes = f"{_EXAMPLES_INPUT}:Example[{count}]"
    if not count:
        entry.remark(Severity.ERROR, "holds no example, which TF Serving refuses: no load; remove it")


def _spec(message: bytes) -> Any:
    """The ModelSpec in field 1. Raises DecodeError, WireError."""
    return messages.ModelSpec.FromString(b"".join(_values(message, 1)))


def _values(message: bytes, number: int) -> list[bytes]:
    """The payloads of a length-delimited field. Raises WireError."""
    return [
        message[field.value : field.end]
        for field in fields(message)
        if field.number == number and field.wire_type == LENGTH
    ]


_READERS: Final[dict[str, Callable[[Entry, bytes], None]]] = {
    "predict_log": _predict,
    "classify_log": _examples("Classify"),
    "regress_log": _examples("Regress"),
    "multi_inference_log": _multi_inference,
}
