"""JSON lines: for people, `jq`, and other programs. No server reads it. The form is in docs/formats.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from capture.dialects.table import stored_route
from capture.export.base import ExportError, OutFile, Record
from capture.signature import SignatureDef, WireSignature
from capture.store.base import Sample

#: The version of a line; raised when a reader of the older form would misread it.
LINE_VERSION: Final = 1


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One request. ``body`` is base64 of the bytes that the model server reads, ``wire_body`` of those that were sent
    where they differ (compression); ``body_json`` is the body where it is a JSON object or list, for reading only."""

    warmtap_jsonl: int
    signature: str
    line: str = ""
    family: str
    dialect: str = ""
    model: str
    version: str = ""
    method: str
    signature_name: str = ""
    inputs: list[str] = []
    #: None: the filter was empty, all outputs.
    outputs: list[str] | None
    shapes: str = ""
    outcome: str = ""
    hits: int = 0
    #: Of them, those that succeeded.
    proven: int = 0
    captured_at: float = 0.0
    path: str = ""
    headers: dict[str, str] = {}
    body: bytes
    wire_body: bytes | None = None
    body_json: Any = None


class JsonlFormat:
    """``--format jsonl``."""

    name = "jsonl"
    families: frozenset[str] | None = None
    directory = False
    max_records: int | None = None
    loads: int | None = None
    note = "for reading, `capture inspect` and `capture diff`; no server warms up from it"

    def refuses(self, signature: WireSignature) -> str:
        return ""

    def fitted(self, signature: WireSignature, sample: Sample, defs: Mapping[str, SignatureDef] | None) -> Sample:
        return sample

    def write(self, records: list[tuple[Record, Sample]]) -> list[OutFile]:
        return [OutFile("", b"".join(msgspec.json.encode(_line(*one)) + b"\n" for one in records))]

    def check(self, files: list[OutFile], records: list[tuple[Record, Sample]]) -> None:
        try:
            found = [msgspec.json.decode(line, type=Line) for line in files[0].data.splitlines()]
        except msgspec.MsgspecError as error:
            raise ExportError(f"the written file does not read back: {error}") from None
        wanted = [(record.key.digest, sample.body) for record, sample in records]
        if [(line.signature, line.body) for line in found] != wanted:
            raise ExportError("the written file does not read back: its lines differ from what was written")


def _line(record: Record, sample: Sample) -> Line:
    one, owner = record.signature, record.key.owner
    route = stored_route(owner.family, owner.model, sample.path, one.method)
    return Line(
        warmtap_jsonl=LINE_VERSION,
        signature=record.key.digest,
        line=str(one),
        family=owner.family,
        dialect="" if route is None else route.dialect.name,
        model=owner.model,
        version=owner.version,
        method=one.method,
        signature_name=one.signature_name,
        inputs=list(one.inputs),
        outputs=None if one.outputs is None else list(one.outputs),
        shapes=sample.shapes,
        outcome=record.outcome,
        hits=record.hits,
        proven=record.proven,
        captured_at=sample.captured_at,
        path=sample.path,
        headers=sample.headers,
        body=sample.body,
        wire_body=sample.wire_body,
        body_json=_json(sample.body),
    )


def _json(body: bytes) -> Any:
    """The body as JSON where it is an object or a list; None otherwise."""
    if body.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
