"""Which records go into a file: pure decisions over what the store lists.

The source is the union over model versions: a signature that clients used on version 7 will be used on version 8. Given
the SignatureDefs of the version to warm, what does not fit is left out with the reason, and of several wire signatures
with one executor key (and one class, where a level tells them apart) one stands for all: one that was seen to succeed
before one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from capture.export.base import Candidate, LeftOut, Record, Selection
from capture.levels import split
from capture.signature import ExecutorKey, Misfit, SignatureDef, WireSignature, executor_key
from capture.store.base import StoredSignature


def select(
    rows: Iterable[StoredSignature],
    *,
    families: Collection[str] | None,
    version: str | None = None,
    only_version: bool = False,
    defs: Mapping[str, SignatureDef] | None = None,
    unproven: bool = False,
    limit: int | None = None,
    refuses: Callable[[WireSignature], str] = lambda _: "",
) -> Selection:
    """Choose among the signatures of these server families, None for any. ``version`` is the one to warm: its own
    samples win over carried ones, and with ``only_version`` no others are used. ``unproven`` lets requests in that were
    never seen to succeed. ``limit`` cuts the least used. ``refuses`` says why a file cannot hold a signature, "" if it
    can.

    Every wire signature of it is accounted for: it is a record, covered by one, or left out with the reason."""
    groups: dict[str, list[StoredSignature]] = {}
    for row in rows:
        if (families is None or row.key.owner.family in families) and (
            not only_version or row.key.owner.version == version
        ):
            groups.setdefault(row.key.digest, []).append(row)
    found: dict[tuple[ExecutorKey | str, str], list[_Choice]] = {}
    left_out: list[LeftOut] = []
    for digest, group in groups.items():
        hits = sum(row.hits for row in group)
        if why := refuses(group[0].signature):
            left_out.append(LeftOut(group[0].key, group[0].signature, hits, why))
            continue
        proven = sum(row.proven for row in group)
        choices = sorted(_Choice(row, hits, proven, version) for row in group if row.sample_at is not None)
        usable = [choice for choice in choices if choice.proven or unproven]
        if not usable:
            reason = "never seen to succeed (unproven)" if choices else "no request of it is stored"
            first = choices[0].row if choices else group[0]
            left_out.append(LeftOut(first.key, first.signature, hits, reason))
            continue
        try:
            key = digest if defs is None else executor_key(group[0].signature, defs)
        except Misfit as misfit:
            best = usable[0].row
            left_out.append(LeftOut(best.key, best.signature, hits, f"does not fit: {misfit}"))
            continue
        # What a level tells apart is never merged: each class is compiled for.
        found.setdefault((key, split(digest)[1]), []).extend(usable)
    records = [_record(choices, key) for (key, _), choices in found.items()]
    # Most used first is meant of executors: several signatures may share one.
    records.sort(key=lambda record: (-record.hits, record.key.digest))
    if limit is not None and len(records) > limit:
        for record in records[limit:]:
            left_out += record.left_out(f"cut by the limit of {limit}")
        records = records[:limit]
    left_out.sort(key=lambda one: (-one.hits, one.key.digest))
    return Selection(records, left_out)


class _Choice:
    """A stored request with what makes it better than others: the smallest comes first."""

    def __init__(self, row: StoredSignature, hits: int, calls_proven: int, version: str | None) -> None:
        self.row = row
        self.hits = hits
        self.calls_proven = calls_proven
        self.proven = row.sample_outcome == "proven"
        # Proven, of the version to warm, of the most used signature, newest; then one order for equals.
        self.order = (
            not self.proven,
            row.key.owner.version != version,
            -hits,
            -(row.sample_at or 0.0),
            row.key.digest,
            row.key.owner.version,
        )

    def __lt__(self, other: _Choice) -> bool:
        return self.order < other.order


def _record(choices: list[_Choice], key: ExecutorKey | str) -> Record:
    """The record that all these requests could be."""
    candidates = [
        Candidate(
            one.row.key, one.row.signature, one.hits, one.row.sample_outcome, one.row.sample_shapes, one.calls_proven
        )
        for one in sorted(choices)
    ]
    hits = sum({one.key.digest: one.hits for one in candidates}.values())
    proven = sum({one.key.digest: one.proven for one in candidates}.values())
    best = candidates[0]
    executor = None if isinstance(key, str) else key
    record = Record(best.key, best.signature, hits, best.outcome, best.shapes, executor, [], candidates, proven)
    return record.replaced(best)
