"""TF Serving's warm-up file read for people: also one that was written by hand, or is not right.

What the server makes of each record: tensorflow/serving servables/tensorflow/saved_model_warmup.cc (log types) and
saved_model_warmup_util.cc (reading, the bound of 1,000 records).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from capture.dialects.base import Unreadable
from capture.dialects.tfserving_calls import READERS
from capture.export.entries import Contents, Entry, Request, Severity
from capture.export.tfrecord import LOG_METHODS, MAX_RECORDS, TFRecordError, read_places
from capture.schema import messages
from capture.signature import Call

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
        if kind not in LOG_METHODS:
            entry.remark(Severity.ERROR, f"is a {kind}, which TF Serving refuses: no load; remove it")
            return entry
        method = LOG_METHODS[kind]
        body = messages.PredictLog.FromString(getattr(log, kind)).request
        call = READERS[method](body)
    except DecodeError:
        what = "PredictionLog" if entry.kind == _NO_LOG else f"{entry.kind} with a request in it"
        entry.remark(Severity.ERROR, f"is no {what}, and the model does not load; remove it")
    except Unreadable as error:
        entry.remark(Severity.ERROR, f"its request cannot be read ({error}); remove it")
    else:
        entry.take(call)
        entry.request = Request(body)
        _REMARKS[method](entry, call)
        _names_version(entry, call.version, call.version_label)
    return entry


def _predict(entry: Entry, call: Call) -> None:
    outputs = call.signature.outputs
    if not call.signature.inputs:
        entry.remark(Severity.WARNING, "has no inputs")
    if outputs is None:
        entry.remark(Severity.NOTE, "has an empty output filter: fetches all outputs of the version that loads it")
    elif len(set(outputs)) != len(outputs):
        entry.remark(Severity.ERROR, "asks twice for an output, which TF Serving refuses: no load; remove it")


def _examples(entry: Entry, call: Call) -> None:
    """Classify and Regress."""
    if call.tensors[0].shape == (0,):
        entry.remark(Severity.ERROR, "holds no example, which TF Serving refuses: no load; remove it")


def _multi_inference(entry: Entry, call: Call) -> None:
    _examples(entry, call)
    if not call.signature.model:
        entry.remark(Severity.ERROR, "its tasks do not name a model, which TF Serving refuses: no load; remove it")
    asked = [task.partition(":")[2] for task in call.signature.outputs or ()]
    if len(set(asked)) != len(asked):
        entry.remark(Severity.ERROR, "asks twice for a signature, which TF Serving refuses: no load; remove it")


def _names_version(entry: Entry, version: str, label: str) -> None:
    entry.version = version or label
    if entry.version:
        what = "version" if version else "version label"
        entry.remark(Severity.WARNING, f"names {what} {entry.version}; a warm-up runs on the version that loads it")


#: Method -> what to say of its records.
_REMARKS: Final[dict[str, Callable[[Entry, Call], None]]] = {
    "Predict": _predict,
    "Classify": _examples,
    "Regress": _examples,
    "MultiInference": _multi_inference,
}
