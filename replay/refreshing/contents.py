"""The warm-up file of one version, made but not yet written: what is in it, what changed, and the manifest that says
so."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path, PurePosixPath
from typing import Any, Final

from capture.errors import UserError
from capture.export.base import ExportError, LeftOut, OutFile, Record, Selection
from capture.export.manifest import covered_calls, manifest
from capture.export.scrub_rules import Rules
from capture.export.table import FORMATS
from capture.export.tfrecord import MAX_RECORDS, WARMUP_PATH, frame, prediction_log, read_records
from capture.levels import split
from capture.savedmodel import read_saved_model
from capture.schema.wire import WireError
from capture.signature import Misfit, SignatureDef, executor_key
from capture.store.base import Sample, Store, StoredSignature
from replay.expansion import Expansion, Variant, expand, within
from replay.refreshing.attempts import UNVERIFIED, Attempts, Kept, as_held, untried
from replay.refreshing.present import CAPTURED, FAMILY, HAND_MADE, Present, Standing
from replay.refreshing.union import Plan, plan
from replay.trial import Request, Trial, run_trial

_FORM = FORMATS["tfrecord"]
Runner = Callable[[Path, str, list[Request]], Trial]
#: What a record is to the server: equal ones warm the same.
Identity = tuple[str, str, int | None]
#: Records whose lines the history keeps of one change.
MAX_LINES: Final = 50


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a model's files are made. ``rules`` None: requests as they are; ``retire_after`` in seconds, 0 is never;
    ``unverified``: nothing is run, and then only a version's own captures that were seen to succeed are written."""

    sizes: tuple[int, ...] = ()
    rules: Rules | None = None
    retire_after: float = 0.0
    unverified: bool = False

    def __post_init__(self) -> None:
        if self.unverified and (self.sizes or self.rules is not None):
            raise UserError(
                "unverified: nothing is run then, so neither batch sizes nor scrub can be had; leave it out"
            )


@dataclass(frozen=True, slots=True)
class Made:
    """The file's bytes (empty where there is no record for it) and its manifest's. ``same``: it holds what stands
    there already, so there is nothing to write. ``added`` and ``removed`` name what changed, a line each, as far as
    MAX_LINES; ``level`` is the executor's that all ran on, or UNVERIFIED."""

    file: bytes
    described: bytes
    records: int
    same: bool
    level: str
    tensorflow: str
    left_out: tuple[LeftOut, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    kept_by_hand: int = 0

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.file).hexdigest()


def make(
    source: Store,
    model: str,
    version: str,
    directory: Path,
    standing: Standing,
    wanted: Wanted,
    *,
    trial: Runner = run_trial,
    now: float | None = None,
) -> Made:
    """Choose, run on the SavedModel in ``directory``, and put together. Raises UserError where the model itself is at
    fault."""
    now = time.time() if now is None else now
    rows = source.signatures(model)
    defs = read_saved_model(directory).signatures
    found = plan(
        rows,
        standing.records,
        model=model,
        version=version,
        defs=defs,
        refuses=_FORM.refuses,
        retire_before=now - wanted.retire_after if wanted.retire_after else 0.0,
        unverified=wanted.unverified,
        sizes=bool(wanted.sizes),
    )
    runner: Runner = (lambda _, __, requests: untried(requests)) if wanted.unverified else trial
    rules = None if wanted.rules is None else tuple(wanted.rules.written)
    as_they_stand = rules is None or standing.scrub_rules == rules

    def attempts() -> Attempts:
        run = partial(runner, directory, FAMILY)
        return Attempts(source, version, run, defs, wanted.rules, found.files, as_they_stand=as_they_stand)

    tried = attempts()
    tried.run(found.records)
    done = _sized(tried, defs, wanted.sizes, directory, runner, discreet=rules is not None)
    spare = attempts()
    made = {_identity(one.record) for one in done.variants}
    # Of warmtap's own records with a batch size, those that were not made anew.
    if missing := [record for record in found.spare if _identity(record) not in made]:
        spare.run(missing)
    stood = {place: one.data for place, one in tried.kept.items() if one.data is not None}
    for one in spare.kept.values():
        place = len(found.records) + len(stood)
        stood[place] = one.data or b""
        done.variants.append(Variant(place, 0, one.record, one.sample, one.seconds))
    done = within(done, MAX_RECORDS - len(found.unrun))
    items = [_item(one, tried.kept, stood.get(one.place)) for one in done.variants]
    items += [_passed_over(one, model) for one in found.unrun]
    left_out = [*found.left_out, *tried.left_out(), *done.left_out, *spare.left_out()]
    left_out.sort(key=lambda one: (-one.hits, one.key))
    return _made(source, model, version, rows, defs, standing, found, items, left_out, tried, wanted, now)


@dataclass(slots=True)
class _Item:
    """A record of the file: as the manifest tells it, its bytes, and what its first call took."""

    record: Record
    sample: Sample
    data: bytes
    seconds: float
    stood: bool = False


def _item(one: Variant, kept: Mapping[int, Kept], stood: bytes | None) -> _Item:
    seconds = one.seconds if one.seconds is not None else kept[one.place].seconds
    if stood:
        return _Item(one.record, one.sample, stood, seconds, True)
    try:
        log = prediction_log(one.sample.body, as_held(one.record.signature.method))
    except WireError as error:
        raise ExportError(f"{one.record.key.digest}: its stored request cannot be written ({error})") from None
    return _Item(one.record, one.sample, log, seconds)


def _passed_over(one: Present, model: str) -> _Item:
    record = Record(one.key(model), one.signature, 0, "", one.shapes)
    return _Item(record, Sample(b"", None, {}, "", "", "", 0.0), one.data, 0.0, True)


def _sized(
    tried: Attempts,
    defs: Mapping[str, SignatureDef],
    sizes: Sequence[int],
    directory: Path,
    trial: Runner,
    *,
    discreet: bool,
) -> Expansion:
    """What ran, in the order of the plan, with these batch sizes but where it stood in the file."""
    places = [place for place in sorted(tried.kept) if tried.kept[place].data is None]
    pairs = [(tried.kept[place].record, tried.kept[place].sample) for place in places]
    done = expand(pairs, defs, sizes, directory, trial=trial, discreet=discreet)
    variants = [replace(one, place=places[one.place]) for one in done.variants]
    variants += [
        Variant(place, 0, one.record, one.sample) for place, one in tried.kept.items() if one.data is not None
    ]  # fmt: skip
    return replace(done, variants=sorted(variants, key=lambda one: (one.place, one.rank)))


def _identity(record: Record) -> Identity:
    return str(record.executor_key), split(record.key.digest)[1], record.batch


def _raw(data: bytes) -> Identity:
    return hashlib.sha256(data).hexdigest(), "", None


def _before(one: Present, defs: Mapping[str, SignatureDef]) -> Identity:
    """What a record that stands in the file is; one that was made by hand is its bytes."""
    if not one.ours:
        return _raw(one.data)
    try:
        return str(executor_key(one.signature, defs)), one.level, one.batch
    except Misfit:
        return _raw(one.data)


def _made(
    source: Store,
    model: str,
    version: str,
    rows: list[StoredSignature],
    defs: Mapping[str, SignatureDef],
    standing: Standing,
    found: Plan,
    items: list[_Item],
    left_out: list[LeftOut],
    tried: Attempts,
    wanted: Wanted,
    now: float,
) -> Made:
    by_hand = {one.key(model) for one in standing.records if not one.ours}
    new = {
        place: _raw(item.data) if item.record.key in by_hand else _identity(item.record)
        for place, item in enumerate(items)
    }
    old = [(_before(one, defs), one) for one in standing.records]
    more = Counter(new.values()) - Counter(identity for identity, _ in old)
    less = Counter(identity for identity, _ in old) - Counter(new.values())
    added = [str(items[place].record.signature) for place, identity in new.items() if identity in more]
    removed = [str(one.signature) for identity, one in old if identity in less]
    rules = None if wanted.rules is None else tuple(wanted.rules.written)
    wrote = any(one.ours for one in standing.records)
    told_otherwise = wrote and (rules != standing.scrub_rules or (standing.proof == UNVERIFIED) != wanted.unverified)
    same = standing.exists and not more and not less and not told_otherwise
    file = b"".join(frame(item.data) for item in items)
    if [*read_records(file)] != [item.data for item in items]:
        raise ExportError("the file that was made does not read back")
    selection = Selection([item.record for item in items], left_out)
    proof: dict[str, Any] = {
        "level": tried.level if tried.level in ("runs", UNVERIFIED) else "executor",
        "verdict": "unverified: nothing was run" if wanted.unverified else "every record ran",
        "tensorflow": tried.tensorflow or None,
        "warmup_seconds": round(sum(item.seconds for item in items), 3),
    }
    described = manifest(
        warmtap=installed_version("warmtap"),
        created_at=_stamp(now),
        form=_FORM,
        model=model,
        version=version,
        fitted=True,
        selection=selection,
        files=[OutFile(PurePosixPath(WARMUP_PATH).name, file)],
        calls=covered_calls(selection, rows, _FORM),
        counters=source.counters(),
        proof=proof,
        note="records that were made by hand are as they were" if rules is not None and by_hand else "",
        scrub_rules=rules,
        told=[_told(item, by_hand, found.last_seen) for item in items],
    )
    return Made(
        file,
        described,
        len(items),
        same,
        tried.level,
        tried.tensorflow,
        tuple(left_out),
        tuple(added[:MAX_LINES]),
        tuple(removed[:MAX_LINES]),
        sum(item.record.key in by_hand for item in items),
    )


def _told(item: _Item, by_hand: set[Any], last_seen: Mapping[str, float]) -> dict[str, Any]:
    """What a later refresh needs to know of a record."""
    record = item.record
    digests = [record.key.digest, *record.covers]
    seen = max((last_seen.get(digest, 0.0) for digest in digests), default=0.0)
    return {
        "sha256": hashlib.sha256(item.data).hexdigest(),
        "origin": HAND_MADE if record.key in by_hand else CAPTURED,
        "last_seen": _stamp(seen) if 0 < seen < math.inf else None,
    }


def _stamp(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
