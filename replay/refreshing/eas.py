"""One pass over one PAI-EAS service: its warm-up data made from the store, run where its model is at hand, brought to
OSS and named in its JSON; only when the set of signatures changed, or another one became the most used by far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Final

import msgspec

from capture.commands.export import dialect_of, families_of
from capture.commands.scrubbing import scrubbed
from capture.errors import UserError
from capture.export.base import LeftOut, Record, Selection
from capture.export.manifest import MANIFEST_NAME, covered_calls, manifest
from capture.export.samples import read_samples
from capture.export.scrub_rules import Rules
from capture.export.select import select
from capture.export.table import FORMATS
from capture.store.base import Sample, Store
from replay.publishing.addresses import Address
from replay.publishing.eas import Export, signature_line, upload, write_service
from replay.publishing.target import open_address
from replay.refreshing.contents import Runner
from replay.refreshing.history import Event, History
from replay.refreshing.job import Outcome, What
from replay.refreshing.lock import Lock, held
from replay.trial import Request, run_trial

#: The one family whose requests can be run: the TensorFlow processor's.
_TENSORFLOW: Final = "eas"
#: Another signature is named once it has that many times the calls of the one that is: two that are about as frequent
#: do not take turns.
OVERTAKES: Final = 1.25


@dataclass(slots=True)
class EasJob:
    """What is to be done for one service; ``model`` is its name. ``saved_model`` None: nothing can be run, so only
    requests that were seen to succeed are published."""

    model: str
    to: Address
    form: str = "eas-bin"
    service_json: Path | None = None
    count: int | None = None
    dialect: str = ""
    saved_model: Path | None = None
    rules: Rules | None = None
    history: History | None = None
    locks: Sequence[Lock] = ()


class _Told(msgspec.Struct):
    signature: str


class _Published(msgspec.Struct):
    format: str
    records: list[_Told]
    scrubbed: bool = False
    scrub_rules: list[str] = []
    files: list[dict[str, Any]] = []


def run_eas_job(
    job: EasJob, source: Store, *, trial: Runner = run_trial, now: Callable[[], float] = time.time
) -> list[Outcome]:
    """What came of it. Raises UserError where it cannot be done, OSError."""
    with held(job.locks) as in_the_way:
        if in_the_way:
            return [
                Outcome(job.model, "", What.BUSY, f"{in_the_way} works on it: nothing was done", at=now(), service=True)
            ]
        return [_run(job, source, trial, now())]


def _run(job: EasJob, source: Store, trial: Runner, now: float) -> Outcome:
    made, selection = _made(job, source, trial, now)
    left_out = tuple(selection.left_out)
    count = len(selection.records)
    if made is None:
        return Outcome(
            job.model, "", What.NOTHING, "nothing to publish: no request of it may be", 0, left_out, now, True
        )
    if not all(lock.holds() for lock in job.locks):
        raise UserError("another job has taken the lock meanwhile; nothing was published")
    before = _read(job, made)
    if before is not None and _same(before, selection, job.rules):
        url = str(job.to.below(before.files[0]["name"]))
        text, written = f"{count} signatures, and nothing to change", 0
    else:
        url, written = upload(made, job.to)
        text = f"{count} signatures at {job.to}"
    named = job.service_json is not None and write_service(job.service_json, url, job.count)
    if named:
        text += f"; {job.service_json} names {url}: deploy it"
    if count > 1 and made.share is not None:
        text += f"; the file that is named covers {made.share:.1%} of the calls, the gate is for the others"
    if not written and not named:
        return Outcome(job.model, "", What.UNCHANGED, text, count, left_out, now, True)
    if job.history is not None:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        job.history.add(Event(at, "uploaded", job.model, "", text, count, added=made.lines[:50]))
    return Outcome(job.model, "", What.PUBLISHED, text, count, left_out, now, True)


def _read(job: EasJob, made: Export) -> _Published | None:
    """The manifest of what is there; None where there is none, or no whole one."""
    target = open_address(job.to)
    described = target.read(made.manifest[0])
    try:
        found = None if described is None else msgspec.json.decode(described, type=_Published)
    except msgspec.MsgspecError:
        return None
    if found is None or not found.files or found.format != made.form:
        return None
    return found if all(target.find(str(file["name"])) for file in found.files) else None


def _same(before: _Published, selection: Selection, rules: Rules | None) -> bool:
    """Whether what is there will do."""
    hits = {record.key.digest: record.hits for record in selection.records}
    there = [one.signature for one in before.records]
    scrubbed = (False, []) if rules is None else (True, list(rules.written))
    if set(there) != set(hits) or (before.scrubbed, before.scrub_rules) != scrubbed:
        return False
    return max(hits.values()) <= OVERTAKES * hits[there[0]]


def _made(job: EasJob, source: Store, trial: Runner, now: float) -> tuple[Export | None, Selection]:
    form = FORMATS[job.form]
    rows = source.signatures(job.model)
    families = families_of(rows, form, job.model, job.dialect)
    if job.saved_model is not None and families != frozenset({_TENSORFLOW}):
        raise UserError(f"{job.model}: only requests of the TensorFlow processor can be run; leave saved_model out")
    rows = [row for row in rows if families is None or row.key.owner.family in families]
    if not rows:
        raise UserError(f"nothing captured of service {job.model}; `capture ls` says what was")
    selection = select(rows, families=families, unproven=job.saved_model is not None, refuses=form.refuses)
    records = scrubbed(form, read_samples(source, form, selection, lambda _: None), job.rules)
    proof: dict[str, Any] = {"level": "none"}
    if job.saved_model is not None and records:
        records, proof = _tried(job.saved_model, records, selection, trial)
    selection.records = [record for record, _ in records]
    if not records:
        return None, selection
    files = form.write(records)
    name = MANIFEST_NAME
    if not form.directory:
        files[0].name, name = "warmup.txt", "warmup.txt.manifest.json"
    form.check(files, records)
    calls = covered_calls(selection, rows, form)
    described = manifest(
        warmtap=installed_version("warmtap"),
        created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        form=form,
        model=job.model,
        version=None,
        fitted=False,
        selection=selection,
        files=files,
        calls=calls,
        counters=source.counters(),
        proof=proof,
        dialect="" if families is None else dialect_of(families),
        scrub_rules=None if job.rules is None else job.rules.written,
    )
    share = calls.covered / calls.seen if calls.seen else None
    lines = tuple(signature_line(str(record.signature), record.hits) for record in selection.records)
    told = tuple((file.name, file.data) for file in files)
    return Export(job.form, job.model, told, (name, described), share, lines), selection


def _tried(
    saved_model: Path, records: list[tuple[Record, Sample]], selection: Selection, trial: Runner
) -> tuple[list[tuple[Record, Sample]], dict[str, Any]]:
    """Those that run on the model; the others are left out with their error."""
    done = trial(
        saved_model, _TENSORFLOW, [Request(record.signature.method, sample.body) for record, sample in records]
    )
    kept = []
    for (record, sample), result in zip(records, done.results, strict=True):
        if result.error:
            reason = f"does not run on {saved_model}: {result.error}"
            selection.left_out.append(LeftOut(record.key, record.signature, record.hits, reason))
        else:
            kept.append((record, sample))
    level = "runs" if done.level == "runs" else "executor"
    return kept, {"level": level, "verdict": "every record ran", "tensorflow": done.tensorflow}
