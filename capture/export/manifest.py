"""The manifest: a JSON file beside every export that says what is in it, what is not, and how far that is proven."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from capture.counters import LOSSES
from capture.export.base import Format, OutFile, Selection
from capture.store.base import StoredSignature

MANIFEST_VERSION: Final = 1
#: Appended to PATH of a file; the name inside a directory.
MANIFEST_SUFFIX: Final = ".manifest.json"
MANIFEST_NAME: Final = "manifest.json"


def losses(counters: Mapping[str, int]) -> dict[str, int]:
    """What production sent and warmtap did not see or could not keep, by counter."""
    return {name: counters.get(name, 0) for name in LOSSES}


class Calls(NamedTuple):
    """Calls of production: ``covered`` by the files that a server loads, ``in_files`` by all files of the export,
    ``seen`` in all."""

    covered: int
    in_files: int
    seen: int


def covered_calls(selection: Selection, rows: Iterable[StoredSignature], form: Format) -> Calls:
    """Count by wire signature: those of the records, and those that share an executor key with one."""
    inside: set[str] = set()
    loaded: set[str] = set()
    for place, record in enumerate(selection.records):
        digests = {record.key.digest, *record.covers}
        inside |= digests
        if form.loads is None or place < form.loads:
            loaded |= digests
    covered = in_files = seen = 0
    for row in rows:
        if form.families is None or row.key.owner.family in form.families:
            seen += row.hits
            in_files += row.hits if row.key.digest in inside else 0
            covered += row.hits if row.key.digest in loaded else 0
    return Calls(covered, in_files, seen)


def manifest(
    *,
    warmtap: str,
    created_at: str,
    form: Format,
    model: str,
    version: str | None,
    fitted: bool,
    selection: Selection,
    files: list[OutFile],
    calls: Calls,
    counters: Mapping[str, int],
    proof: Mapping[str, Any],
    note: str = "",
    dialect: str = "",
    scrub_rules: Sequence[str] | None = None,
    told: Sequence[Mapping[str, Any]] | None = None,
) -> bytes:
    """The manifest as indented JSON. ``dialect`` is that of an EAS service, "" otherwise; ``note`` is said beside the
    format's own; ``scrub_rules`` are those that values were replaced by, None where they were not. ``proof`` says what
    was run: ``{"level": "none"}``, or the level with TensorFlow's version and figures. ``told`` is said beside each
    record, in their order."""
    value = {
        "manifest_version": MANIFEST_VERSION,
        "warmtap": warmtap,
        "created_at": created_at,
        "format": form.name,
        "model": model,
        "dialect": dialect or None,
        "model_version": version,
        "fitted_to_saved_model": fitted,
        "note": "; ".join(filter(None, (form.note, note))),
        "scrubbed": scrub_rules is not None,
        "scrub_rules": list(scrub_rules or ()),
        "proof": dict(proof),
        "coverage": {
            "calls_covered": calls.covered,
            "calls_in_files": calls.in_files,
            "calls_seen": calls.seen,
            "share": calls.covered / calls.seen if calls.seen else None,
            "condition": "if traffic stays like what was seen; losses below count as not covered",
        },
        "losses": losses(counters),
        "files": [
            {"name": file.name, "bytes": len(file.data), "sha256": hashlib.sha256(file.data).hexdigest()}
            for file in files
        ],
        "records": [
            {
                "signature": record.key.digest,
                "line": str(record.signature),
                "from_version": record.key.owner.version,
                "hits": record.hits,
                "outcome": record.outcome,
                "shapes": record.shapes,
                "batch": record.batch,
                "executor_key": None
                if record.executor_key is None
                else {"feeds": list(record.executor_key.feeds), "fetches": list(record.executor_key.fetches)},
                "also_covers": record.covers,
                **more,
            }
            for record, more in zip(selection.records, told or [{}] * len(selection.records), strict=True)
        ],
        "left_out": [
            {"signature": one.key.digest, "line": str(one.signature), "hits": one.hits, "reason": one.reason}
            for one in selection.left_out
        ],
    }
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def with_proof(described: bytes, sha256: str, proof: Mapping[str, Any]) -> bytes | None:
    """The manifest with a ``proof`` of the file that has this SHA-256: of the whole export where that is its only file,
    otherwise in the file's own entry. What was proved on the same model stays where this one only says less. None if
    these bytes are no manifest of such a file."""
    entries = own_files(described)
    if entries is None or sha256 not in entries.values():
        return None
    value = msgspec.json.decode(described)
    places = [value] if len(entries) == 1 else [entry for entry in value["files"] if entry["sha256"] == sha256]
    for place in places:
        if not _says_less(proof, place.get("proof")):
            place["proof"] = dict(proof)
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _says_less(proof: Mapping[str, Any], than: Any) -> bool:
    """Names that fit, or a run without a judge, take back nothing that was proved on this model; a failure does."""
    proved = isinstance(than, dict) and than.get("verdict") == "proved"
    return (
        proved
        and proof.get("verdict") not in ("proved", "failed")
        and proof.get("saved_model_sha256") == than.get("saved_model_sha256")
    )


def described_as_scrubbed(described: bytes, sha256: str) -> bool:
    """Whether these bytes are a manifest which says that the file with this SHA-256 was scrubbed."""
    entries = own_files(described) or {}
    return sha256 in entries.values() and bool(msgspec.json.decode(described).get("scrubbed"))


def own_files(described: bytes, form: str | None = None) -> dict[str, str] | None:
    """SHA-256 by name of the files that a manifest of warmtap (of this format) lists, plain names only; None if it is
    none."""
    try:
        found = msgspec.json.decode(described, type=_Listed)
    except msgspec.MsgspecError:
        return None
    if found.manifest_version != MANIFEST_VERSION or form not in (None, found.format):
        return None
    names = {entry.name: entry.sha256 for entry in found.files}
    return {name: sha for name, sha in names.items() if "/" not in name and name not in ("", ".", "..", MANIFEST_NAME)}


class _Entry(msgspec.Struct):
    name: str
    sha256: str


class _Listed(msgspec.Struct):
    manifest_version: int
    warmtap: str
    format: str
    files: list[_Entry]
