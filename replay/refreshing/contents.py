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

from capture.export.base import ExportError, LeftOut, OutFile, Record, Selection
from capture.export.manifest import covered_calls, manifest
from capture.export.table import FORMATS
from capture.export.tfrecord import MAX_RECORDS, WARMUP_PATH, frame, prediction_log, read_records
from capture.schema.wire import WireError
from capture.store.base import Store
from replay.expansion import Expansion, Variant, expand, within
from replay.refreshing.attempts import UNVERIFIED, Attempts, Kept, as_held, untried
from replay.refreshing.draft import Draft, raw
from replay.refreshing.present import CAPTURED, FAMILY, HAND_MADE, Present
from replay.trial import Request, Trial, run_trial

_FORM = FORMATS["tfrecord"]
Runner = Callable[[Path, str, list[Request]], Trial]
#: Records whose lines the history keeps of one change.
MAX_LINES: Final = 50


@dataclass(frozen=True, slots=True)
class Made:
    """The file's bytes (none where there is no record for it) and its manifest's. ``replaces``: a file stands there;
    ``same``: it holds the same, so there is nothing to write. ``added`` and ``removed`` name what changed, a line each,
    as far as MAX_LINES; ``level`` is the executor's that all ran on, or UNVERIFIED."""

    file: bytes
    described: bytes
    records: int
    replaces: bool
    same: bool
    level: str
    tensorflow: str
    left_out: tuple[LeftOut, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.file).hexdigest()


def make(source: Store, found: Draft, *, trial: Runner = run_trial) -> Made:
    """Run what the draft wants on its SavedModel, and put together what ran. Raises UserError where the model itself is
    at fault."""
    wanted, todo = found.wanted, found.plan
    runner: Runner = (lambda _, __, requests: untried(requests)) if wanted.unverified else trial

    def attempts() -> Attempts:
        return Attempts(
            source,
            found.version,
            partial(runner, found.directory, FAMILY),
            found.defs,
            wanted.rules,
            todo.files,
            as_they_stand=wanted.rules is None or found.standing.scrub_rules == wanted.written_rules,
        )

    tried = attempts()
    tried.run(todo.records)
    done = _sized(tried, found, runner)
    spare = attempts()
    made = {found.identity(one.record) for one in done.variants}
    # Of warmtap's own records with a batch size, those that were not made anew.
    if missing := [record for record in todo.spare if found.identity(record) not in made]:
        spare.run(missing)
    stood = {place: one.data for place, one in tried.kept.items() if one.data is not None}
    for one in spare.kept.values():
        place = len(todo.records) + len(stood)
        stood[place] = one.data or b""
        done.variants.append(Variant(place, 0, one.record, one.sample, one.seconds))
    done = within(done, MAX_RECORDS - len(todo.unrun))
    items = [_item(one, tried.kept, stood.get(one.place)) for one in done.variants]
    items += [_passed_over(one, found.model) for one in todo.unrun]
    left_out = [*todo.left_out, *tried.left_out(), *done.left_out, *spare.left_out()]
    left_out.sort(key=lambda one: (-one.hits, one.key))
    return _made(source.counters(), found, items, left_out, tried)


@dataclass(slots=True)
class _Item:
    """A record of the file: as the manifest tells it, its bytes, and what its first call took."""

    record: Record
    data: bytes
    seconds: float


def _item(one: Variant, kept: Mapping[int, Kept], stood: bytes | None) -> _Item:
    seconds = one.seconds if one.seconds is not None else kept[one.place].seconds
    if stood:
        return _Item(one.record, stood, seconds)
    try:
        log = prediction_log(one.sample.body, as_held(one.record.signature.method))
    except WireError as error:
        raise ExportError(f"{one.record.key.digest}: its stored request cannot be written ({error})") from None
    return _Item(one.record, log, seconds)


def _passed_over(one: Present, model: str) -> _Item:
    return _Item(Record(one.key(model), one.signature, 0, "", one.shapes), one.data, 0.0)


def _sized(tried: Attempts, found: Draft, trial: Runner) -> Expansion:
    """What ran, in the order of the plan, with the batch sizes but where it stood in the file."""
    places = [place for place in sorted(tried.kept) if tried.kept[place].data is None]
    pairs = [(tried.kept[place].record, tried.kept[place].sample) for place in places]
    wanted = found.wanted
    discreet = wanted.rules is not None
    done = expand(pairs, found.defs, wanted.sizes, found.directory, trial=trial, discreet=discreet)
    variants = [replace(one, place=places[one.place]) for one in done.variants]
    stood = [(place, one) for place, one in tried.kept.items() if one.data is not None]
    variants += [Variant(place, 0, one.record, one.sample) for place, one in stood]
    return replace(done, variants=sorted(variants, key=lambda one: (one.place, one.rank)))


def _made(
    counters: Mapping[str, int], found: Draft, items: Sequence[_Item], left_out: list[LeftOut], tried: Attempts
) -> Made:
    by_hand = found.by_hand
    unrun = {one.key(found.model) for one in found.plan.unrun}
    new = [raw(item.data) if item.record.key in unrun else found.identity(item.record) for item in items]
    old = [found.before(one) for one in found.standing.records]
    more, less = Counter(new) - Counter(old), Counter(old) - Counter(new)
    added = [str(item.record.signature) for item, identity in zip(items, new, strict=True) if identity in more]
    removed = [str(one.signature) for one, gone in zip(found.standing.records, old, strict=True) if gone in less]
    file = b"".join(frame(item.data) for item in items)
    if [*read_records(file)] != [item.data for item in items]:
        raise ExportError("the file that was made does not read back")
    selection = Selection([item.record for item in items], left_out)
    rules = found.wanted.written_rules
    proof: dict[str, Any] = {
        "level": tried.level if tried.level in ("runs", UNVERIFIED) else "executor",
        "verdict": "unverified: nothing was run" if found.wanted.unverified else "every record ran",
        "tensorflow": tried.tensorflow or None,
        "warmup_seconds": round(sum(item.seconds for item in items), 3),
    }
    described = manifest(
        warmtap=installed_version("warmtap"),
        created_at=_stamp(found.now),
        form=_FORM,
        model=found.model,
        version=found.version,
        fitted=True,
        selection=selection,
        files=[OutFile(PurePosixPath(WARMUP_PATH).name, file)],
        calls=covered_calls(selection, found.rows, _FORM),
        counters=counters,
        proof=proof,
        note="records that were made by hand are as they were" if rules is not None and by_hand else "",
        scrub_rules=rules,
        told=[_told(item, item.record.key in by_hand, found.plan.last_seen) for item in items],
    )
    same = found.standing.exists and not more and not less and not found.told_otherwise
    return Made(
        file,
        described,
        len(items),
        found.standing.exists,
        same,
        tried.level,
        tried.tensorflow,
        tuple(left_out),
        tuple(added[:MAX_LINES]),
        tuple(removed[:MAX_LINES]),
    )


def _told(item: _Item, by_hand: bool, last_seen: Mapping[str, float]) -> dict[str, Any]:
    """What a later refresh needs to know of a record."""
    seen = max(last_seen.get(digest, 0.0) for digest in (item.record.key.digest, *item.record.covers))
    return {
        "sha256": hashlib.sha256(item.data).hexdigest(),
        "origin": HAND_MADE if by_hand else CAPTURED,
        "last_seen": _stamp(seen) if 0 < seen < math.inf else None,
    }


def _stamp(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
