"""TF Serving's warm-up file: an uncompressed TFRecord of PredictionLog.

Source: tensorflow/serving servables/tensorflow/saved_model_warmup_util.cc (reader, the bound of 1,000 records) and
saved_model_warmup.cc (log types). The request's bytes are never decoded and encoded again: ``inputs`` and
``output_filter`` stay as the client sent them; of ``model_spec`` only version and version_label are cut, because the
server that warms up has no other version to look up. A REST request is made the request that the server makes of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import crc32c

from capture.convert.rest import grpc_request
from capture.convert.values import ConversionError
from capture.export.base import ExportError, OutFile, Record, Unfit
from capture.schema.wire import LENGTH, WireError, fields, length_delimited
from capture.signature import REST_METHODS, SignatureDef, WireSignature
from capture.store.base import Sample

#: Where TF Serving looks (saved_model_warmup_util.cc: GetWarmupRequestsFile), below the version directory.
WARMUP_PATH: Final = "assets.extra/tf_serving_warmup_requests"
#: saved_model_warmup_util.h: kMaxNumRecords. One more fails the load of the model.
MAX_RECORDS: Final = 1000

#: Method -> field number of its log in PredictionLog: those that the server runs (saved_model_warmup.cc); any other
#: fails the load.
LOG_FIELDS: Final = {"Predict": 6, "Classify": 2, "Regress": 3, "MultiInference": 4}
#: The same by the log's name.
LOG_METHODS: Final = {
    "predict_log": "Predict",
    "classify_log": "Classify",
    "regress_log": "Regress",
    "multi_inference_log": "MultiInference",
}
#: Why other methods cannot stand in a warm-up file.
UNWARMED: Final = {
    "SessionRun": (
        "a warm-up file cannot hold SessionRun: the server answers UNIMPLEMENTED (Unsupported log_type for warmup: 5)"
        " and the model does not load"
    )
}

#: Why a predict call over REST cannot be written without the model.
WITHOUT_DEFS: Final = (
    "a REST request: what its tensors are is known by the model's SignatureDefs alone; say --saved-model DIR or"
    " --metadata FILE"
)

# Field numbers: PredictLog.request (the same in every log), model_spec (of a request, and of an InferenceTask),
# MultiInferenceRequest.tasks, ModelSpec.{version,label}.
_REQUEST: Final = 1
_MODEL_SPEC: Final = 1
_TASKS: Final = 1
_VERSION_CHOICE: Final = frozenset({2, 4})

_LENGTH: Final = struct.Struct("<Q")
_CRC: Final = struct.Struct("<I")
#: A length, its checksum, and the checksum behind the data.
_OVERHEAD: Final = _LENGTH.size + 2 * _CRC.size


class TFRecordError(ValueError):
    """The bytes are not an uncompressed TFRecord file; the text says at which byte."""


def masked_crc(data: bytes) -> int:
    """CRC-32C as TFRecord stores it (tensorflow/core/lib/hash/crc32c.h: Mask)."""
    crc = crc32c.crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """One record: length, checksum of the length, data, checksum of the data."""
    length = _LENGTH.pack(len(data))
    return length + _CRC.pack(masked_crc(length)) + data + _CRC.pack(masked_crc(data))


def read_records(data: bytes) -> Iterator[bytes]:
    """The records of a file. Raises TFRecordError where TF's reader would report DATA_LOSS."""
    for _, record in read_places(data):
        yield record


def read_places(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The same, each with the byte at which it begins."""
    at = 0
    while at < len(data):
        begin = at
        head = data[at : at + 12]
        if len(head) < 12 or _CRC.unpack_from(head, 8)[0] != masked_crc(head[:8]):
            hint = (
                "; it is gzip-compressed, and servers read uncompressed files only" if data[:2] == b"\x1f\x8b" else ""
            )
            raise TFRecordError(f"corrupted record at byte {begin}{hint}")
        size = _LENGTH.unpack_from(head)[0]
        at += 12
        record = data[at : at + size]
        at += size
        if at + 4 > len(data) or _CRC.unpack_from(data, at)[0] != masked_crc(record):
            raise TFRecordError(f"corrupted record at byte {begin}: cut off, or its checksum is wrong")
        at += 4
        yield begin, record


def strip_version(request: bytes, method: str = "Predict") -> bytes:
    """A request without the version choice of its model_spec (MultiInference: of each task's); every other byte stays.
    Raises WireError."""
    if method != "MultiInference":
        return _strip(request)
    return b"".join(
        length_delimited(_TASKS, _strip(request[field.value : field.end]))
        if field.number == _TASKS and field.wire_type == LENGTH
        else request[field.start : field.end]
        for field in fields(request)
    )


def _strip(message: bytes) -> bytes:
    spec = b""
    rest = []
    for field in fields(message):
        if field.number == _MODEL_SPEC and field.wire_type == LENGTH:
            # Occurring twice they merge, and concatenation is what merging means on the wire.
            for part in fields(message, field.value, field.end):
                if part.number not in _VERSION_CHOICE:
                    spec += message[part.start : part.end]
        else:
            rest.append(message[field.start : field.end])
    return length_delimited(_MODEL_SPEC, spec) + b"".join(rest)


def prediction_log(request: bytes, method: str = "Predict") -> bytes:
    """A PredictionLog with this method's request as ``<method>_log.request``. Raises WireError."""
    return length_delimited(LOG_FIELDS[method], length_delimited(_REQUEST, strip_version(request, method)))


class TFRecordFormat:
    """``--format tfrecord``."""

    name = "tfrecord"
    families: frozenset[str] | None = frozenset({"tfserving"})
    directory = False
    max_records: int | None = MAX_RECORDS
    loads: int | None = None
    note = f"TF Serving reads it as <version directory>/{WARMUP_PATH} when it loads the version"

    def refuses(self, signature: WireSignature) -> str:
        method = REST_METHODS.get(signature.method, signature.method)
        return "" if method in LOG_FIELDS else UNWARMED.get(method, f"a warm-up file cannot hold {method}")

    def fitted(self, signature: WireSignature, sample: Sample, defs: Mapping[str, SignatureDef] | None) -> Sample:
        if signature.method not in REST_METHODS:
            return sample
        if defs is None and REST_METHODS[signature.method] == "Predict":
            raise Unfit(WITHOUT_DEFS)
        try:
            body = grpc_request(signature.method, sample.body, signature.model, defs or {})
        except ConversionError as error:
            raise Unfit(f"does not convert to a gRPC request: {error}") from None
        return replace(sample, body=body, wire_body=None)

    def write(self, records: list[tuple[Record, Sample]]) -> list[OutFile]:
        return [OutFile("", b"".join(frame(self._log(record, sample)) for record, sample in records))]

    def check(self, files: list[OutFile], records: list[tuple[Record, Sample]]) -> None:
        try:
            found = list(read_records(files[0].data))
        except TFRecordError as error:
            raise ExportError(f"the written file does not read back: {error}") from None
        if found != [self._log(record, sample) for record, sample in records]:
            raise ExportError("the written file does not read back: its records differ from what was written")

    @staticmethod
    def _log(record: Record, sample: Sample) -> bytes:
        method = REST_METHODS.get(record.signature.method, record.signature.method)
        if why := TFRecordFormat().refuses(record.signature):
            raise ExportError(f"{record.key.digest}: {why}")
        try:
            return prediction_log(sample.body, method)
        except WireError as error:
            raise ExportError(f"{record.key.digest}: its stored request is none of {method} ({error})") from None
