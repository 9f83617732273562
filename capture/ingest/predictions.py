"""PredictionLog records: warm-up files, and what TF Serving's request logger writes. Pure.

A record with a response is of a call that the server answered (tensorflow_serving/apis/prediction_log.proto). One
without, as in most warm-up files, is unproven.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from google.protobuf.message import DecodeError

from capture.export.tfrecord import LOG_METHODS, TFRecordError, read_places
from capture.ingest.recorded import Recorded, Unread, grpc_message, grpc_target
from capture.schema import messages
from capture.schema.wire import LENGTH, WireError, fields

#: Fields of each log: its request and its response.
_REQUEST, _RESPONSE = 1, 2
_METHODS: Final = LOG_METHODS | {"session_run_log": "SessionRun"}


def read_predictions(data: bytes) -> Iterator[tuple[int, Recorded | Unread]]:
    """Each record with the byte at which it ends. What follows a broken one cannot be read, which is said last."""
    number, end = 0, 0
    try:
        for number, (begin, record) in enumerate(read_places(data), 1):
            end = begin + len(record) + 16
            yield end, _record(f"record {number} at byte {begin}", record)
    except TFRecordError as error:
        yield len(data), Unread(f"record {number + 1} at byte {end}", f"{error}; nothing behind it was read")


def _record(place: str, record: bytes) -> Recorded | Unread:
    try:
        log = messages.PredictionLog.FromString(record)
        kind = log.WhichOneof("log_type")
        if kind not in _METHODS:
            return Unread(place, f"is a {kind}, which is not read" if kind else "is no PredictionLog")
        parts = _parts(getattr(log, kind))
    except (DecodeError, WireError):
        return Unread(place, "is no PredictionLog")
    if _REQUEST not in parts:
        return Unread(place, f"is a {kind} without a request")
    method, response = _METHODS[kind], parts.get(_RESPONSE)
    return Recorded(
        place=place,
        target=grpc_target(method),
        headers={"content-type": "application/grpc"},
        body=grpc_message(parts[_REQUEST]),
        status=None if response is None else 200,
        grpc_status=None if response is None else 0,
        response=b"" if response is None else grpc_message(response),
    )


def _parts(log: bytes) -> dict[int, bytes]:
    """The last of each field that holds bytes, as protobuf reads it. Raises WireError."""
    return {one.number: log[one.value : one.end] for one in fields(log) if one.wire_type == LENGTH}
