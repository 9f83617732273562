"""The manifest: a JSON file beside every export that says what is in it, what is not, and how far that is proven."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from capture.export.base import Format, OutFile, Selection
from capture.store.base import StoredSignature

MANIFEST_VERSION: Final = 1
#: Appended to PATH of a file; the name inside a directory.
MANIFEST_SUFFIX: Final = ".manifest.json"
MANIFEST_NAME: Final = "manifest.json"

#: Counters of requests that were sent and that no signature stands for: part of what a file cannot cover.
_LOSSES: Final = (
    "tap_lost_client_bytes",
    "tap_lost_server_bytes",
    "tap_lost_flows",
    "requests_lost",
    "requests_missed",
    "requests_undecodable",
    "requests_oversized",
    "flows_undecodable",
    "flows_blind",
    "signatures_turned_away",
    "store_dropped",
)


def losses(counters: Mapping[str, int]) -> dict[str, int]:
    """What production sent and warmtap did not see or could not keep, by counter."""
    return {name: counters.get(name, 0) for name in _LOSSES}


def covered_calls(selection: Selection, rows: Iterable[StoredSignature], family: str) -> tuple[int, int]:
    """(calls whose wire signature is in the file, or shares an executor key with one that is; all calls seen)."""
    inside = {record.key.digest for record in selection.records}
    for record in selection.records:
        inside.update(record.covers)
    covered = total = 0
    for row in rows:
        if row.key.owner.family == family:
            total += row.hits
            covered += row.hits if row.key.digest in inside else 0
    return covered, total


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
    calls: tuple[int, int],
    counters: Mapping[str, int],
    proof: Mapping[str, Any],
) -> bytes:
    """The manifest as indented JSON. ``calls`` is what :func:`covered_calls` returns; ``proof`` says what was run:
    ``{"level": "none"}``, or the level with TensorFlow's version and figures."""
    covered, total = calls
    value = {
        "manifest_version": MANIFEST_VERSION,
        "warmtap": warmtap,
        "created_at": created_at,
        "format": form.name,
        "model": model,
        "model_version": version,
        "fitted_to_saved_model": fitted,
        "note": form.note,
        "proof": dict(proof),
        "coverage": {
            "calls_covered": covered,
            "calls_seen": total,
            "share": covered / total if total else None,
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
                "executor_key": None
                if record.executor_key is None
                else {"feeds": list(record.executor_key.feeds), "fetches": list(record.executor_key.fetches)},
                "also_covers": record.covers,
            }
            for record in selection.records
        ],
        "left_out": [
            {"signature": one.key.digest, "line": str(one.signature), "hits": one.hits, "reason": one.reason}
            for one in selection.left_out
        ],
    }
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def with_proof(described: bytes, file: bytes, proof: Mapping[str, Any]) -> bytes | None:
    """The manifest with another ``proof``; None if it is no manifest, or not of a file with these bytes."""
    try:
        value = msgspec.json.decode(described)
        hashes = {entry["sha256"] for entry in value["files"]}
    except (msgspec.MsgspecError, KeyError, TypeError):
        return None
    if hashlib.sha256(file).hexdigest() not in hashes:
        return None
    value["proof"] = dict(proof)
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
