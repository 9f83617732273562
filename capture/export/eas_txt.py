"""EAS's text warm-up data: a file of requests, one a line, for services that take text.

Source: help.aliyun.com document 264606 (warm_up_data_path). Nothing is documented about encoding, empty lines or line
ends, so only what cannot be misread is written: UTF-8, no line break within a request, no empty one, one at the end of
each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from capture.dialects.eas_string import EasString
from capture.export.base import ExportError, OutFile, Record
from capture.signature import SignatureDef, WireSignature
from capture.store.base import Sample

#: The kind of service that takes text.
TEXT: Final = EasString()


class EasTxtFormat:
    """``--format eas-txt``."""

    name = "eas-txt"
    families: frozenset[str] | None = frozenset({TEXT.family})
    directory = False
    max_records: int | None = None
    loads: int | None = None
    note = "EAS sends each line as one request when it starts the service (warm_up_data_path); text services only"

    def refuses(self, signature: WireSignature) -> str:
        return ""

    def fitted(self, signature: WireSignature, sample: Sample, defs: Mapping[str, SignatureDef] | None) -> Sample:
        return sample

    def write(self, records: list[tuple[Record, Sample]]) -> list[OutFile]:
        return [OutFile("", b"".join(_line(record, sample) for record, sample in records))]

    def check(self, files: list[OutFile], records: list[tuple[Record, Sample]]) -> None:
        lines = files[0].data.split(b"\n")
        if lines.pop() or lines != [sample.body for _, sample in records]:
            raise ExportError("the written file does not read back: its lines differ from the requests")


def _line(record: Record, sample: Sample) -> bytes:
    """Raises ExportError where the request is no line of text."""
    wrong = text_fault(sample.body)
    if wrong:
        raise ExportError(
            f"{record.key.digest}: its request {wrong}, and a .txt holds one request per line; use --format eas-bin"
        )
    return sample.body + b"\n"


def text_fault(body: bytes) -> str:
    """Why these bytes are no line of text; "" if they are."""
    if not body.strip():
        return "is empty"
    try:
        body.decode()
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    # What else str.splitlines breaks at stays: only these two are line ends to any reader of bytes.
    return "holds a line break" if b"\n" in body or b"\r" in body else ""
