"""What of production a warm-up file covers, and what it does not: pure functions of what a store lists.

A call is covered if its executor key is that of a record. Without SignatureDefs the wire signature stands for it, which
is finer: what it calls covered is covered, what it calls missing may not be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from capture.differences import nearest
from capture.export.tfrecord import UNWARMED
from capture.signature import ExecutorKey, Misfit, SignatureDef, WireSignature, executor_key
from capture.store.base import RecordKey, StoredBlock, StoredSignature

#: An executor key, or the digest of a wire signature where the model is not known.
Key = ExecutorKey | str


@dataclass(slots=True)
class Missing:
    """A key that production uses and no record has. ``signatures`` are those that lead to it, most used first;
    ``explained`` says how the first differs from the record nearest to it."""

    key: Key
    signatures: list[WireSignature] = field(default_factory=list)
    hits: int = 0
    senders: Counter[str] = field(default_factory=Counter)
    first_seen: float = 0.0
    explained: str = ""


class Excluded(NamedTuple):
    """A signature that is neither covered nor missing: this model refuses its calls before it looks for an executor."""

    signature: WireSignature
    hits: int
    reason: str


@dataclass(slots=True)
class Coverage:
    """Calls and keys of production by what a file does for them. ``useless`` are records that this model refuses."""

    calls_covered: int = 0
    calls_missing: int = 0
    keys_covered: int = 0
    missing: list[Missing] = field(default_factory=list)
    excluded: list[Excluded] = field(default_factory=list)
    useless: list[Excluded] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """All that could be covered."""
        return self.calls_covered + self.calls_missing

    @property
    def share(self) -> float:
        """Of the calls; 1 where there are none."""
        return self.calls_covered / self.calls if self.calls else 1.0

    def reaches(self, least: float) -> bool:
        """Whether the share is at least that much. By whole numbers at 1, where one call of billions decides."""
        return not self.missing if least >= 1 else self.share >= least


def coverage(
    rows: Iterable[StoredSignature], recorded: Iterable[WireSignature], defs: Mapping[str, SignatureDef] | None
) -> Coverage:
    """Judge a file with records of the signatures ``recorded`` by what production called. ``defs`` are the
    SignatureDefs of the version that the file is for, None if not known."""
    records = list(recorded)
    found = Coverage()
    inside: dict[Key, None] = {}
    for signature in records:
        try:
            inside[key_of(signature, defs)] = None
        except Misfit as misfit:
            found.useless.append(Excluded(signature, 0, str(misfit)))
    covered: set[Key] = set()
    missing: dict[Key, Missing] = {}
    refused: dict[WireSignature, Excluded] = {}
    for row in sorted(rows, key=lambda row: (-row.hits, row.key.digest, row.key.owner)):
        try:
            key = key_of(row.signature, defs)
        except Misfit as misfit:
            before = refused.get(row.signature, Excluded(row.signature, 0, str(misfit)))
            refused[row.signature] = before._replace(hits=before.hits + row.hits)
            continue
        if key in inside:
            covered.add(key)
            found.calls_covered += row.hits
            continue
        found.calls_missing += row.hits
        one = missing.setdefault(key, Missing(key, first_seen=row.first_seen))
        one.hits += row.hits
        one.first_seen = min(one.first_seen, row.first_seen)
        one.senders.update(row.senders)
        if row.signature not in one.signatures:
            one.signatures.append(row.signature)
    found.keys_covered = len(covered)
    found.excluded = sorted(refused.values(), key=lambda one: (-one.hits, one.signature.digest))
    found.missing = sorted(missing.values(), key=lambda one: (-one.hits, one.signatures[0].digest))
    useless = {one.signature for one in found.useless}
    for one in found.missing:
        one.explained = explanation(one.signatures[0], [record for record in records if record not in useless])
    return found


def key_of(signature: WireSignature, defs: Mapping[str, SignatureDef] | None) -> Key:
    """Raises Misfit where this model refuses such a call."""
    return signature.digest if defs is None else executor_key(signature, defs)


def explanation(signature: WireSignature, records: Collection[WireSignature]) -> str:
    """Why a file does not help a request: what it cannot hold, or how the request differs from the nearest record."""
    if signature.family == "tfserving" and signature.method in UNWARMED:
        return UNWARMED[signature.method]
    if signature in records:
        return "a record of the same signature is in the file: its names are not enough to find the executor"
    found = nearest(signature, records)
    if found is None:
        return "the file has no record"
    other, differences = found
    return f"nearest record {other.digest[:15]}: {'; '.join(differences)}"


class Call(NamedTuple):
    """Calls of one client in one hour, by what a file does for them."""

    hour: int
    client: str
    calls: int
    missed: bool


def calls_of(blocks: Iterable[StoredBlock], rows: Iterable[StoredSignature], found: Coverage) -> tuple[list[Call], int]:
    """What :func:`capture.forward.hold_out` counts, and the calls among it of signatures that are excluded."""
    signatures = {row.key: row.signature for row in rows}
    missing = {signature for one in found.missing for signature in one.signatures}
    excluded = {one.signature for one in found.excluded}
    calls, left_out = [], 0
    for block in blocks:
        signature = signatures.get(RecordKey(*block.key))
        if signature is None:
            continue
        if signature in excluded:
            left_out += block.calls
        else:
            calls.append(Call(block.hour, block.client, block.calls, signature in missing))
    return calls, left_out
