"""What stands in a version's warm-up file before it is refreshed: which records warmtap wrote, which were made by hand.

Pure. A record is warmtap's own where the manifest beside the file lists its bytes; whatever else is in the file stays.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

import msgspec

from capture.errors import UserError
from capture.export.entries import Entry, Severity
from capture.export.read_tfrecord import read_tfrecord
from capture.export.tfrecord import read_records
from capture.levels import split
from capture.signature import WireSignature
from capture.store.base import ModelVersion, RecordKey

FAMILY: Final = "tfserving"
#: A manifest's ``origin`` of a record that warmtap did not write. Written by warmtap: captured.
HAND_MADE: Final = "hand-made"
CAPTURED: Final = "captured"


@dataclass(frozen=True, slots=True)
class Present:
    """One record that stands in a file. ``data`` are its bytes there; ``fault`` says why the server would refuse it, ""
    if it would not; ``runs`` is False for one that the server passes over. ``ours``: written by warmtap, then with the
    class of its ``level``, the ``batch`` that it was brought to, and when its signature was ``last_seen`` (seconds
    since the epoch; infinity where nothing tells); ``digests`` are those of the records that it stands for.
    ``known``: the manifest tells of it, whoever made it."""

    number: int
    data: bytes
    signature: WireSignature
    body: bytes
    shapes: str
    fault: str = ""
    runs: bool = True
    ours: bool = False
    level: str = ""
    batch: int | None = None
    last_seen: float = math.inf
    digests: tuple[str, ...] = ()
    known: bool = False

    def key(self, model: str) -> RecordKey:
        """Its place among the records of a store."""
        digest = self.signature.digest + (f".{self.level}" if self.level else "")
        return RecordKey(ModelVersion(FAMILY, model, f"file:{self.number}"), digest)


@dataclass(slots=True)
class Standing:
    """The whole file. ``exists`` is False where there is none; ``scrub_rules`` are those that warmtap's own records
    were scrubbed by, None where they were not; ``proof`` is the level that the manifest states."""

    exists: bool = False
    records: list[Present] = field(default_factory=list)
    scrub_rules: tuple[str, ...] | None = None
    proof: str = ""


class _Record(msgspec.Struct):
    signature: str
    batch: int | None = None
    sha256: str = ""
    origin: str = CAPTURED
    last_seen: str | None = None
    also_covers: list[str] = []


class _File(msgspec.Struct):
    sha256: str


class _Proof(msgspec.Struct):
    level: str = ""


class _Manifest(msgspec.Struct):
    created_at: str
    files: list[_File]
    records: list[_Record]
    scrubbed: bool = False
    scrub_rules: list[str] = []
    proof: _Proof = msgspec.field(default_factory=_Proof)


def read_standing(place: str, data: bytes | None, manifests: Iterable[bytes]) -> Standing:
    """What is in the file ``data`` (None: there is none), with what the ``manifests`` beside it tell, the newest first:
    a run that was killed leaves one that is ahead of the file. Raises UserError where the server could not read it; its
    text begins with ``place``."""
    if data is None:
        return Standing()
    contents = read_tfrecord(data)
    if contents.broken:
        raise UserError(f"{place}: {contents.broken}: no server would load it; mend or remove it")
    found = Standing(True)
    listed: dict[str, tuple[_Manifest, _Record]] = {}
    sha256 = hashlib.sha256(data).hexdigest()
    raw = list(read_records(data))
    digests = [hashlib.sha256(record).hexdigest() for record in raw]
    for described in map(_read, manifests):
        if described is None:
            continue
        if [file.sha256 for file in described.files] == [sha256] and not found.proof:
            found.proof = described.proof.level
        for digest, about in _listed(described, sha256, digests):
            listed.setdefault(digest, (described, about))
    seen = set[tuple[str, int | None]]()
    for entry, record, digest in zip(contents.entries, raw, digests, strict=True):
        told = listed.get(digest)
        if told is None or told[1].origin == HAND_MADE or (told[1].signature, told[1].batch) in seen:
            found.records.append(replace(_present(entry, record), known=told is not None))
            continue
        described, about = told
        seen.add((about.signature, about.batch))
        found.scrub_rules = tuple(described.scrub_rules) if described.scrubbed else None
        found.records.append(_present(entry, record, described, about))
    return found


def _listed(described: _Manifest, sha256: str, digests: list[str]) -> list[tuple[str, _Record]]:
    """What a manifest says of records, by their SHA-256; one that does not name them tells by their order."""
    if all(record.sha256 for record in described.records):
        return [(record.sha256, record) for record in described.records]
    if [file.sha256 for file in described.files] != [sha256] or len(described.records) != len(digests):
        return []
    return list(zip(digests, described.records, strict=True))


def _read(data: bytes) -> _Manifest | None:
    try:
        return msgspec.json.decode(data, type=_Manifest)
    except msgspec.MsgspecError:
        return None


def _present(entry: Entry, record: bytes, described: _Manifest | None = None, about: _Record | None = None) -> Present:
    fault = "; ".join(one.text for one in entry.remarks if one.severity is Severity.ERROR)
    signature = entry.signature or WireSignature(FAMILY, "", entry.kind, "", (), None)
    body = b"" if entry.request is None else entry.request.body
    runs = entry.request is not None
    if described is None or about is None:
        return Present(entry.number, record, signature, body, entry.shapes, fault, runs)
    # An older manifest does not tell: it was seen at the latest when the file was made.
    last_seen = _seconds(about.last_seen or described.created_at)
    digests = (about.signature, *about.also_covers)
    return Present(
        entry.number,
        record,
        signature,
        body,
        entry.shapes,
        fault,
        runs,
        True,
        split(about.signature)[1],
        about.batch,
        last_seen,
        digests,
        True,
    )


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return math.inf
