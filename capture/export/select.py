"""Which records go into a file: pure decisions over what the store lists.

The source is the union over model versions: a signature that clients used on version 7 will be used on version 8. Given
the SignatureDefs of the version to warm, what does not fit is left out with the reason, and of several wire signatures
with one executor key the most used stands for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from capture.export.base import LeftOut, Record, Selection
from capture.signature import ExecutorKey, Misfit, SignatureDef, executor_key
from capture.store.base import StoredSignature


def select(
    rows: Iterable[StoredSignature],
    *,
    family: str,
    version: str | None = None,
    only_version: bool = False,
    defs: Mapping[str, SignatureDef] | None = None,
    unproven: bool = False,
    limit: int | None = None,
) -> Selection:
    """Choose. ``version`` is the one to warm: its own samples win over carried ones, and with ``only_version`` no
    others are used. ``unproven`` lets requests in that were never seen to succeed. ``limit`` cuts the least used."""
    groups: dict[str, list[StoredSignature]] = {}
    for row in rows:
        if row.key.owner.family == family and (not only_version or row.key.owner.version == version):
            groups.setdefault(row.key.digest, []).append(row)
    records: list[Record] = []
    left_out: list[LeftOut] = []
    for group in groups.values():
        hits = sum(row.hits for row in group)
        best = min(group, key=lambda row: _preference(row, version))
        if best.sample_at is None:
            left_out.append(LeftOut(best.key, best.signature, hits, "no request of it is stored"))
        elif best.sample_outcome != "proven" and not unproven:
            left_out.append(LeftOut(best.key, best.signature, hits, "never seen to succeed (unproven)"))
        else:
            records.append(Record(best.key, best.signature, hits, best.sample_outcome, best.sample_shapes))
    records.sort(key=lambda record: (-record.hits, record.key.digest))
    if defs is not None:
        records = _fit(records, defs, left_out)
    if limit is not None and len(records) > limit:
        for record in records[limit:]:
            left_out.append(LeftOut(record.key, record.signature, record.hits, f"cut by the limit of {limit}"))
        records = records[:limit]
    left_out.sort(key=lambda one: (-one.hits, one.key.digest))
    return Selection(records, left_out)


def _preference(row: StoredSignature, version: str | None) -> tuple[bool, bool, bool, float]:
    """The smallest is taken: with a sample, proven, of the version to warm, newest."""
    return (
        row.sample_at is None,
        row.sample_outcome != "proven",
        row.key.owner.version != version,
        -(row.sample_at or 0.0),
    )


def _fit(records: list[Record], defs: Mapping[str, SignatureDef], left_out: list[LeftOut]) -> list[Record]:
    """Those that this model version takes, one for each executor key. ``records`` come most used first."""
    by_key: dict[ExecutorKey, Record] = {}
    calls: Counter[ExecutorKey] = Counter()
    for record in records:
        try:
            key = executor_key(record.signature, defs)
        except Misfit as misfit:
            left_out.append(LeftOut(record.key, record.signature, record.hits, f"does not fit: {misfit}"))
            continue
        calls[key] += record.hits
        known = by_key.get(key)
        if known is None:
            record.executor_key = key
            by_key[key] = record
        else:
            known.covers.append(record.key.digest)
    # Most used first is meant of executors: several signatures may share one.
    return [by_key[key] for key in sorted(by_key, key=lambda key: -calls[key])]
