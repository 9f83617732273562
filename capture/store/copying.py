"""One store copied into another one, of whatever kinds: everything that it holds, exactly.

Copied is what the target does not have. What it has must be the source's: a target with other signatures, or other
counts, is refused before anything is written, for its own calls and copied ones would add up to something that nobody
has seen. So a copy that was interrupted is taken up by copying again, and copying once more adds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from capture.errors import UserError
from capture.store.base import (
    OTHER,
    Batch,
    RecordKey,
    SignatureDelta,
    Store,
    StoredBlock,
    StoredHeldOut,
    StoredSignature,
)

#: Bytes of requests, and signatures, that are written at a time.
WRITE_BYTES: Final = 4 << 20
WRITE_SIGNATURES: Final = 200
#: Under this name the copying itself writes; no counters are under it.
_RUN: Final = "copy"


@dataclass(slots=True)
class Copied:
    """What was copied, and what was there before."""

    signatures: int = 0
    held_out: int = 0
    runs: int = 0
    metadata: int = 0
    payload_bytes: int = 0
    there: int = 0

    @property
    def nothing(self) -> bool:
        """The target was a copy already."""
        return not (self.signatures or self.held_out or self.runs or self.metadata)


def copy(source: Store, target: Store, told: Callable[[Copied], None]) -> Copied:
    """Copy; ``told`` is called after each write. Raises UserError where the target holds something else, or the source
    has changed meanwhile; StoreError."""
    copied = Copied()
    rows = source.signatures()
    there = {row.key: row for row in target.signatures()}
    _must_fit(rows, there, source, target)
    copied.there = len(there)
    blocks = {key: list(found) for key, found in groupby(sorted(source.blocks()), key=lambda one: one.key)}
    for batch in _signatures(source, [row for row in rows if row.key not in there], blocks, copied):
        target.apply(batch)
        told(copied)
    for batch in _held_out(source, target, copied):
        target.apply(batch)
        told(copied)
    _rest(source, target, copied)
    told(copied)
    _must_be_done(source, target)
    return copied


def _must_fit(
    rows: list[StoredSignature], there: dict[RecordKey, StoredSignature], source: Store, target: Store
) -> None:
    mine = {row.key: row for row in rows}
    strange = sum(mine.get(key) != row for key, row in there.items())
    if strange:
        raise UserError(
            f"the target holds {strange} signatures that the source does not have, or has other counts of; copy into"
            " an empty one (a server: ?prefix=NAME)"
        )
    known = source.runs()
    if any(known.get(name) != run for name, run in target.runs().items()):
        raise UserError("the target holds counters that are not the source's; copy into an empty one")
    if _counts(target) not in (_EMPTY, _counts(source)):
        raise UserError("the target holds counts that are not the source's; copy into an empty one")


#: Refusals, what was ignored, counts by the hour: what is written last, and at once.
_Counts = tuple[frozenset[object], frozenset[object], frozenset[object]]
_EMPTY: Final[_Counts] = (frozenset(), frozenset(), frozenset())


def _counts(store: Store) -> _Counts:
    return frozenset(store.refusals()), frozenset(store.ignored()), frozenset(store.counted_by_hour().items())


def _signatures(
    source: Store, rows: list[StoredSignature], blocks: dict[RecordKey, list[StoredBlock]], copied: Copied
) -> Iterator[Batch]:
    batch = Batch(_RUN)
    for row in sorted(rows, key=lambda row: row.key):
        delta = SignatureDelta(row.signature, row.first_seen, row.last_seen, row.proven, row.unproven, row.hours)
        # What stands for the rest comes last: names find room before it.
        delta.shapes.update(dict(sorted(row.shapes.items(), key=lambda one: one[0] == OTHER)))
        delta.senders.update(dict(sorted(row.senders.items(), key=lambda one: one[0] == OTHER)))
        for block in sorted(blocks.get(row.key, ()), key=lambda one: one.client == OTHER):
            delta.blocks[block.hour, block.client] = block.calls
        batch.seen[row.key] = delta
        if row.evicted:
            batch.evicted.add(row.key)
        elif (sample := source.sample(row.key)) is not None:
            batch.samples[row.key] = sample
            copied.payload_bytes += sample.size
        copied.signatures += 1
        if len(batch.seen) >= WRITE_SIGNATURES or batch.payload_bytes >= WRITE_BYTES:
            yield batch
            batch = Batch(_RUN)
    if batch.seen:
        yield batch


def _held_out(source: Store, target: Store, copied: Copied) -> Iterator[Batch]:
    there = {one.id: _roles(one) for one in target.held_out_index()}
    missing = {one.id for one in source.held_out_index() if there.get(one.id) != _roles(one)}
    if not missing:
        return
    batch = Batch(_RUN)
    for key, held in source.held_out():
        if held.id in missing:
            batch.held_out[held.id] = (key, held)
            copied.held_out += 1
            copied.payload_bytes += held.sample.size
            if batch.payload_bytes >= WRITE_BYTES:
                yield batch
                batch = Batch(_RUN)
    if batch.held_out:
        yield batch


def _roles(one: StoredHeldOut) -> tuple[RecordKey, float | None, bool]:
    return one.key, one.draw, one.for_signature


def _rest(source: Store, target: Store, copied: Copied) -> None:
    """Metadata and counters; counts last and in one transaction, so that they are there as a whole or not at all."""
    told = {one.owner: one for one in target.metadata()}
    for one in source.metadata():
        if told.get(one.owner) != one:
            target.apply(Batch(_RUN, metadata={one.owner: one}))
            copied.metadata += 1
    there = target.runs()
    for name, run in source.runs().items():
        if there.get(name) != run:
            target.apply(Batch(name, counters=run.counters, counted={}, updated_at=run.updated_at))
            copied.runs += 1
    if _counts(target) == _EMPTY != _counts(source):
        last = Batch(_RUN, counted=source.counted_by_hour())
        for family, model, outcome, reason, count in source.refusals():
            last.refusals[family, model, outcome, reason] = count
        last.ignored.update(dict(source.ignored()))
        target.apply(last)


def _must_be_done(source: Store, target: Store) -> None:
    """What came into the source meanwhile is not in the target, or only in part."""
    same = (
        {row.key: row for row in source.signatures()} == {row.key: row for row in target.signatures()}
        and source.runs() == target.runs()
        and _counts(source) == _counts(target)
    )
    if not same:
        raise UserError(
            "the source changed while it was copied (or the target did): stop the sidecars that write it, and copy"
            " into an empty one"
        )
