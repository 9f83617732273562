"""TF Serving's warm-up file: an uncompressed TFRecord of PredictionLog.

Source: tensorflow/serving servables/tensorflow/saved_model_warmup_util.cc (reader, the bound of 1,000 records) and
saved_model_warmup.cc (log types). The request's bytes are never decoded and encoded again: ``inputs`` and
``output_filter`` stay as the client sent them; of ``model_spec`` only version and version_label are cut, because the
server that warms up has no other version to look up.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import crc32c

from capture.export.base import ExportError, OutFile, Record
from capture.schema.wire import LENGTH, WireError, fields, length_delimited
from capture.store.base import Sample

#: Where TF Serving looks (saved_model_warmup_util.cc: GetWarmupRequestsFile), below the version directory.
WARMUP_PATH: Final = "assets.extra/tf_serving_warmup_requests"
#: saved_model_warmup_util.h: kMaxNumRecords. One more fails the load of the model.
MAX_RECORDS: Final = 1000

# Field numbers: PredictionLog.predict_log, PredictLog.request, PredictRequest.model_spec, ModelSpec.{version,label}.
_PREDICT_LOG: Final = 6
_REQUEST: Final = 1
_MODEL_SPEC: Final = 1
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


def strip_version(request: bytes) -> bytes:
    """A PredictRequest without the version choice of its model_spec; every other byte stays. Raises WireError."""
    spec = b""
    rest = []
    for field in fields(request):
        if field.number == _MODEL_SPEC and field.wire_type == LENGTH:
            # Occurring twice they merge, and concatenation is what merging means on the wire.
            for part in fields(request, field.value, field.end):
                if part.number not in _VERSION_CHOICE:
                    spec += request[part.start : part.end]
        else:
            rest.append(request[field.start : field.end])
    return length_delimited(_MODEL_SPEC, spec) + b"".join(rest)


def prediction_log(request: bytes) -> bytes:
    """A PredictionLog with this PredictRequest as ``predict_log.request``. Raises WireError."""
    return length_delimited(_PREDICT_LOG, length_delimited(_REQUEST, strip_version(request)))


class TFRecordFormat:
    """``--format tfrecord``."""

    name = "tfrecord"
    family: str | None = "tfserving"
    directory = False
    max_records: int | None = MAX_RECORDS
    loads: int | None = None
    note = f"TF Serving reads it as <version directory>/{WARMUP_PATH} when it loads the version"

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
        if record.signature.method != "Predict":
            raise ExportError(f"{record.key.digest}: {record.signature.method} cannot be warmed up by a warm-up file")
        try:
            return prediction_log(sample.body)
        except WireError as error:
            raise ExportError(f"{record.key.digest}: its stored request is not a PredictRequest ({error})") from None
