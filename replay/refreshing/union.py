"""What a version's warm-up file is to hold: its own captures, all fitting earlier ones, and what stands in it already.

Pure decisions; what does not run on the version is found out later. A set shrinks only by age: what warmtap wrote goes
when its signature was not seen for ``retire_after`` seconds; what was made by hand never does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from capture.export.base import Candidate, LeftOut, Record, Selection
from capture.export.select import select
from capture.levels import split
from capture.signature import Misfit, SignatureDef, WireSignature, executor_key
from capture.store.base import RecordKey, StoredSignature
from replay.refreshing.present import FAMILY, Present

#: Where a record is from that stood in the file: it was seen to run, or was never in doubt.
_STOOD: Final = "proven"


@dataclass(slots=True)
class Plan:
    """``records`` are to be tried, the first to be written first; ``files`` are those of their candidates that stand in
    the file. ``unrun`` are records of the file that the server passes over: they stay. ``spare`` are warmtap's own with
    a batch size: they stay where they are not made anew. ``last_seen`` is by digest, seconds since the epoch."""

    records: list[Record]
    left_out: list[LeftOut]
    files: dict[RecordKey, Present] = field(default_factory=dict)
    unrun: list[Present] = field(default_factory=list)
    spare: list[Record] = field(default_factory=list)
    last_seen: dict[str, float] = field(default_factory=dict)


def plan(
    rows: Sequence[StoredSignature],
    present: Sequence[Present],
    *,
    model: str,
    version: str,
    defs: Mapping[str, SignatureDef],
    refuses: Callable[[WireSignature], str],
    retire_before: float = 0.0,
    unverified: bool = False,
    sizes: bool = False,
    ages: Mapping[str, float] | None = None,
) -> Plan:
    """Choose. ``unverified``: only this version's own captures that were seen to succeed, beside what stands there.
    ``sizes``: a record that was made by hand does not stand for a captured one, of which several sizes are wanted.
    ``ages`` are when signatures were last seen, by digest, that ``rows`` may not have any more."""
    found = Plan([], [], last_seen=dict(ages or {}))
    for row in rows:
        found.last_seen[row.key.digest] = max(row.last_seen, found.last_seen.get(row.key.digest, 0.0))
    own: list[StoredSignature] = []
    hand: list[Present] = []
    for one in present:
        key = one.key(model)
        found.files[key] = one
        if one.fault:
            found.left_out.append(LeftOut(key, one.signature, 0, f"stood in the file, and {one.fault}"))
        elif not one.runs:
            found.unrun.append(one)
        elif not one.ours:
            hand.append(one)
        elif one.batch is None:
            seen = _seen(one, found)
            own.append(_row(one, key, seen))
            found.last_seen[key.digest] = max(seen, found.last_seen.get(key.digest, 0.0))
    captured = [row for row in rows if row.key.owner.version == version] if unverified else list(rows)
    # What failed in production may have failed because it was cold: all of them are run.
    chosen = select(
        [*captured, *own],
        families=(FAMILY,),
        version=version,
        defs=defs,
        unproven=not unverified,
        refuses=refuses,
    )
    found.left_out += chosen.left_out
    found.records = _retired(chosen, found, retire_before)
    _add_hand_made(found, hand, model, defs, sizes)
    _add_spare(found, present, model, defs, retire_before)
    return found


def _seen(one: Present, found: Plan) -> float:
    """When any signature that a record of the file stands for was last seen."""
    return max([one.last_seen, *(found.last_seen.get(digest, 0.0) for digest in one.digests)])


def _row(one: Present, key: RecordKey, last_seen: float) -> StoredSignature:
    """A record of the file as a store would list it: never more used than one that is in the store."""
    return StoredSignature(
        key, one.signature, 0, 0, last_seen, last_seen, 0, {}, {}, False, 0.0, len(one.body), one.shapes, _STOOD
    )


def _retired(chosen: Selection, found: Plan, before: float) -> list[Record]:
    """The records that stay; the others are left out."""
    kept = []
    for record in chosen.records:
        seen = max(found.last_seen[one.key.digest] for one in record.candidates)
        if seen < before:
            found.left_out += record.left_out(_why_retired(seen))
        else:
            kept.append(record)
    return kept


def _why_retired(seen: float) -> str:
    return f"retired by retire_after: not seen since {datetime.fromtimestamp(seen, UTC):%Y-%m-%d}"


def _add_hand_made(found: Plan, hand: list[Present], model: str, defs: Mapping[str, SignatureDef], sizes: bool) -> None:
    """Each stays, before all others. The first that has a captured record's executor stands for it, and the captured
    one takes its place should it not run."""
    first: list[Record] = []
    for one in hand:
        key = one.key(model)
        mine = Candidate(key, one.signature, 0, _STOOD, one.shapes)
        try:
            executor = executor_key(one.signature, defs)
        except Misfit as misfit:
            found.left_out.append(LeftOut(key, one.signature, 0, f"stood in the file, and does not fit: {misfit}"))
            continue
        place = next(
            (
                place
                for place, record in enumerate(found.records)
                # The class of a record that was made by hand cannot be told: it covers none.
                if record.executor_key == executor and not split(record.key.digest)[1] and not sizes
            ),
            None,
        )
        if place is None:
            first.append(Record(key, one.signature, 0, _STOOD, one.shapes, executor, [], [mine]))
        else:
            record = found.records.pop(place)
            record.candidates.insert(0, mine)
            first.append(record.replaced(mine))
    found.records[:0] = first


def _add_spare(
    found: Plan, present: Sequence[Present], model: str, defs: Mapping[str, SignatureDef], before: float
) -> None:
    for one in present:
        if not one.ours or one.batch is None or one.fault or not one.runs:
            continue
        key = one.key(model)
        seen = _seen(one, found)
        found.last_seen.setdefault(key.digest, seen)
        if seen < before:
            found.left_out.append(LeftOut(key, one.signature, 0, f"batch {one.batch}: {_why_retired(seen)}"))
            continue
        try:
            executor = executor_key(one.signature, defs)
        except Misfit as misfit:
            found.left_out.append(LeftOut(key, one.signature, 0, f"stood in the file, and does not fit: {misfit}"))
            continue
        mine = Candidate(key, one.signature, 0, _STOOD, one.shapes)
        found.spare.append(Record(key, one.signature, 0, _STOOD, one.shapes, executor, [], [mine], batch=one.batch))
