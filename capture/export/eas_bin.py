"""EAS's binary warm-up data: a file is the verbatim body of one request.

Source: help.aliyun.com document 264606 (warm_up_data_path). A ``.bin`` file cannot hold two requests: protobuf messages
carry no length, and two of them behind each other read as one merged message.
"""

from __future__ import annotations

from collections.abc import Mapping

from capture.dialects.table import EAS
from capture.export.base import ExportError, OutFile, Record
from capture.signature import SignatureDef, WireSignature
from capture.store.base import Sample

#: Digits of the digest in a file name: enough to find the signature again.
_NAME_DIGITS = 15


class EasBinFormat:
    """``--format eas-bin``."""

    name = "eas-bin"
    families: frozenset[str] | None = frozenset(dialect.family for dialect in EAS.values())
    directory = True
    max_records: int | None = None
    loads: int | None = 1
    note = (
        "EAS documents one file per service as warm_up_data_path: the first record, the most used, is the one to name "
        "there; the other signatures build on their first request unless they are replayed before traffic"
    )

    def refuses(self, signature: WireSignature) -> str:
        return ""

    def fitted(self, signature: WireSignature, sample: Sample, defs: Mapping[str, SignatureDef] | None) -> Sample:
        return sample

    def write(self, records: list[tuple[Record, Sample]]) -> list[OutFile]:
        return [
            OutFile(f"{place:03d}-{record.key.digest[:_NAME_DIGITS]}.bin", sample.body)
            for place, (record, sample) in enumerate(records, 1)
        ]

    def check(self, files: list[OutFile], records: list[tuple[Record, Sample]]) -> None:
        for file, (record, sample) in zip(files, records, strict=True):
            if file.data != sample.body:
                raise ExportError(f"{file.name}: does not read back as the request of {record.key.digest}")
