"""The table of export formats: the one place that knows them all."""

from __future__ import annotations

from typing import Final

from capture.export.base import Format
from capture.export.eas_bin import EasBinFormat
from capture.export.eas_txt import EasTxtFormat
from capture.export.jsonl import JsonlFormat
from capture.export.tfrecord import TFRecordFormat

FORMATS: Final[dict[str, Format]] = {
    form.name: form for form in (TFRecordFormat(), EasBinFormat(), EasTxtFormat(), JsonlFormat())
}
