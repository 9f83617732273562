"""Warm-up on start, as each server does it.

TF Serving (``servables/tensorflow/saved_model_warmup_util.cc``, single thread): every record of
``assets.extra/tf_serving_warmup_requests`` is run in order, the first failure fails the load, and so does the 1,001st
record, after it ran. The server would try again every minute; the host fails at once.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError

from capture.errors import UserError
from capture.export.tfrecord import LOG_METHODS, MAX_RECORDS, WARMUP_PATH, masked_crc
from replay import inference, tf_protos
from replay.executor import api
from replay.predict import RequestError
from replay.servable import Servable

_HEADER = 12  #: bytes before a record: length and its checksum
_FOOTER = 4
_HINT = ". Please verify your warmup data is in TFRecord format."


class WarmupError(UserError):
    """The warm-up failed, and with it the load. The text is one line: the server's own, after its code."""


def read_records(file: BinaryIO) -> Iterator[bytes]:
    """The records of an uncompressed TFRecord file, by the rules and with the texts of TensorFlow 2.21's RecordReader
    (core/lib/io/record_reader.cc): a file that ends inside a record's 12-byte header ends there, without a word.
    Raises RequestError(DATA_LOSS)."""
    offset = 0
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    while end - offset >= _HEADER:
        length = struct.unpack("<Q", _checked(file.read(_HEADER), offset))[0]
        if end - offset < _HEADER + length + _FOOTER:
            raise RequestError(
                api.DATA_LOSS, f"truncated record at {offset}' failed with Read less bytes than requested"
            )
        yield _checked(file.read(length + _FOOTER), offset + _HEADER)
        offset += _HEADER + length + _FOOTER


def _checked(data: bytes, offset: int) -> bytes:
    """What stands before the masked CRC-32C at the end of ``data``."""
    content, stored = data[:-_FOOTER], int.from_bytes(data[-_FOOTER:], "little")
    if stored != masked_crc(content):
        suffix = " (Is this even a TFRecord file?)" if offset == 0 else ""
        raise RequestError(api.DATA_LOSS, f"corrupted record at {offset}{suffix}")
    return content


def warm_up(servable: Servable, version_dir: Path, iterations: int = 1) -> int:
    """Run the version's warm-up file, each record ``iterations`` times (0 counts as 1, as the flag's default does).

    Returns the number of records, 0 if there is no file. Raises WarmupError.
    """
    path = version_dir / WARMUP_PATH
    return warm_up_file(servable, path, iterations) if path.exists() else 0


def warm_up_file(servable: Servable, path: Path, iterations: int = 1) -> int:
    """Run a warm-up file that need not lie in the version's directory; otherwise as :func:`warm_up`."""
    try:
        with path.open("rb") as file:
            return warm_up_records(servable, file, path, iterations)
    except OSError as error:
        raise WarmupError(f"{path}: {error.strerror}") from None


def warm_up_records(servable: Servable, file: BinaryIO, path: Path, iterations: int = 1) -> int:
    """Run the records in ``file``, which texts call ``path``; otherwise as :func:`warm_up`. Raises OSError too."""
    count = 0
    try:
        for count, record in enumerate(read_records(file), start=1):
            _run_record(servable, path, record, max(iterations, 1))
            if count > MAX_RECORDS:
                raise RequestError(
                    api.INVALID_ARGUMENT,
                    f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}",
                )
    except RequestError as error:
        text = error.message + (_HINT if error.code == api.DATA_LOSS else "")
        raise WarmupError(f"{api.CODE_NAMES[error.code]}: {' '.join(text.split())}") from None
    return count


def _run_record(servable: Servable, path: Path, record: bytes, iterations: int) -> None:
    log = tf_protos.load("tensorflow_serving.apis.prediction_log_pb2").PredictionLog()
    try:
        log.ParseFromString(record)
    except DecodeError:
        text = record.decode("utf-8", "replace")
        raise RequestError(api.INVALID_ARGUMENT, f"Failed to parse warmup record: {text} from {path}") from None
    kind = log.WhichOneof("log_type")
    if kind is None:
        return  # The server does nothing with such a record, and counts it.
    if kind not in LOG_METHODS:
        number = log.DESCRIPTOR.fields_by_name[kind].number
        raise RequestError(api.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}")
    _, _, runner = inference.METHODS[LOG_METHODS[kind]]
    for _ in range(iterations):
        runner(servable, getattr(log, kind).request, live=False)
