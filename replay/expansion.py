"""Records with other batch sizes, each run on the model before it goes into a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from capture.dialects.tfserving_calls import READERS
from capture.export.base import LeftOut, Record
from capture.export.batch import Unexpandable, batch_of, expanded
from capture.signature import REST_METHODS, SignatureDef, WireSignature
from capture.store.base import Sample
from replay.trial import Request, Trial, run_trial

_FAMILY = "tfserving"


@dataclass(frozen=True, slots=True)
class Variant:
    """A record as it goes into the file. ``place`` is that of the record it was made from; ``rank`` how many variants
    of that one come before it; ``seconds`` what its first call took, None where it was not run here."""

    place: int
    rank: int
    record: Record
    sample: Sample
    seconds: float | None = None


@dataclass(slots=True)
class Expansion:
    """What came of it: the variants in the order of their records, what could not be made or did not run, and what it
    was run on (empty where nothing had to be)."""

    variants: list[Variant]
    left_out: list[LeftOut]
    level: str = ""
    tensorflow: str = ""


def expand(
    records: Sequence[tuple[Record, Sample]],
    defs: Mapping[str, SignatureDef],
    sizes: Sequence[int],
    saved_model: Path,
    *,
    trial: Callable[[Path, str, list[Request]], Trial] = run_trial,
    discreet: bool = False,
) -> Expansion:
    """Bring each record to these batch sizes, and run what is new on ``saved_model``. A record that has no one batch,
    or of which no size runs, stays as it is; without sizes all do. ``discreet``: no error quotes a value. Raises
    TrialError, TensorFlowMissing."""
    found = Expansion([], [])
    made: list[Variant] = []
    refused: list[tuple[int, str]] = []
    for place, (record, sample) in enumerate(records if sizes else ()):
        signature = _as_held(record, sample)
        try:
            batch = batch_of(sample.body, signature, defs)
        except Unexpandable as why:
            refused.append((place, f"not expanded to batch sizes: {why}"))
            continue
        for size in sizes:
            try:
                body = expanded(sample.body, signature, defs, size)
            except Unexpandable as why:
                refused.append((place, f"batch {size}: {why}"))
                continue
            if size == batch:
                made.append(Variant(place, 0, replace(record, batch=size), sample))
                continue
            shapes = READERS[signature.method](body).shapes
            changed = replace(sample, body=body, wire_body=None, shapes=shapes)
            made.append(Variant(place, 0, replace(record, batch=size, shapes=shapes), changed))
    new = [one for one in made if one.sample is not records[one.place][1]]
    ran: dict[int, float] = {}
    if new:
        done = trial(
            saved_model,
            _FAMILY,
            [Request(_as_held(one.record, one.sample).method, one.sample.body, discreet) for one in new],
        )
        found.level, found.tensorflow = done.level, done.tensorflow
        for one, result in zip(new, done.results, strict=True):
            if result.error:
                refused.append((one.place, f"batch {one.record.batch}: does not run: {result.error}"))
            else:
                ran[id(one)] = result.seconds
    kept: dict[int, list[Variant]] = {}
    for one in made:
        if one.sample is records[one.place][1] or id(one) in ran:
            mine = kept.setdefault(one.place, [])
            mine.append(replace(one, rank=len(mine), seconds=ran.get(id(one))))
    for place, (record, sample) in enumerate(records):
        found.variants += kept.get(place, [Variant(place, 0, record, sample)])
    found.left_out = [_left_out(records[place][0], reason, kept.get(place)) for place, reason in refused]
    return found


def _as_held(record: Record, sample: Sample) -> WireSignature:
    """The signature of the request as a file holds it: of a REST call, that of the request made of it."""
    method = record.signature.method
    return READERS[REST_METHODS[method]](sample.body).signature if method in REST_METHODS else record.signature


def _left_out(record: Record, reason: str, kept: list[Variant] | None) -> LeftOut:
    stays = "the record itself is in the file"
    if kept:
        stays = f"the record is in the file with batch {', '.join(str(one.record.batch) for one in kept)}"
    return LeftOut(record.key, record.signature, record.hits, f"{reason}; {stays}")


def within(found: Expansion, most: int) -> Expansion:
    """Cut to ``most`` records: the last sizes of each go first, so that no signature goes before another one's further
    sizes."""
    order = sorted(found.variants, key=lambda one: (one.rank, one.place))
    cut = {id(one) for one in order[most:]}
    reason = f"a warm-up file holds at most {most} records"
    for one in found.variants:
        if id(one) in cut:
            batch = "" if one.record.batch is None else f"batch {one.record.batch}: "
            if one.rank:
                found.left_out.append(LeftOut(one.record.key, one.record.signature, one.record.hits, batch + reason))
            else:
                found.left_out += one.record.left_out(reason)
    return replace(found, variants=[one for one in found.variants if id(one) not in cut])
