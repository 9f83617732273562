"""One pass over one model: each version that needs a warm-up file gets it, each staged version that is complete is let
out together with its file. What goes wrong with one version does not stop the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import Final, Literal

from capture.errors import UserError
from capture.export.base import LeftOut
from capture.export.tfrecord import frame
from capture.levels import short
from capture.savedmodel import SavedModelError
from capture.store.base import Store
from replay.executor.api import ExecutorError
from replay.refreshing.ages import Ages
from replay.refreshing.contents import Made, Runner, make
from replay.refreshing.draft import Draft, Wanted, draft
from replay.refreshing.history import Event, History
from replay.refreshing.judgement import Judge, judge_file, replacing
from replay.refreshing.lock import Lock, held
from replay.refreshing.place import Place, Version
from replay.refreshing.present import FAMILY, read_standing
from replay.services import refuse_other_services
from replay.tf_protos import TensorFlowMissing
from replay.trial import RECORD_SECONDS, TrialError, run_trial

#: When a staged version is let out without a file, because nothing that was captured runs on it.
PromoteCold = Literal["first", "always", "never"]


class What(StrEnum):
    """What happened to a version, or to the model as a whole."""

    PUBLISHED = "published"
    PROMOTED = "promoted"
    UNCHANGED = "unchanged"
    NOTHING = "nothing"
    HELD = "held"
    FAILED = "failed"
    PASSED = "passed"
    BUSY = "busy"


#: Lines about signatures that are left out that are kept with an event; the manifest has all.
MAX_LEFT_OUT: Final = 50
#: A model that does not load, or whose file cannot be written, is run again by a job that repeats itself after so many
#: seconds, and not in every pass: it may be large.
RETRY_SECONDS: Final = 600.0
#: What is no success: the exit code tells.
BAD = frozenset({What.FAILED, What.HELD})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to one version; to the model, or EAS ``service``, where ``version`` is empty. ``records`` are those
    of its file, 0 where none was written or found the same. ``text`` says what or why."""

    model: str
    version: str
    what: What
    text: str
    records: int = 0
    left_out: tuple[LeftOut, ...] = ()
    at: float = 0.0
    service: bool = False


@dataclass(slots=True)
class Job:
    """What is to be done for one model. ``in_place``: the files of served versions are brought up to date, too.
    ``tried`` is what the last pass over a version came to, by what it was about."""

    model: str
    place: Place
    history: History | None = None
    locks: Sequence[Lock] = ()
    wanted: Wanted = field(default_factory=Wanted)
    in_place: bool = False
    promote_cold: PromoteCold = "first"
    staging: bool = False
    ages: Ages | None = None
    tried: dict[str, tuple[str, Outcome]] = field(default_factory=dict)
    #: Seconds.
    record_timeout: float = RECORD_SECONDS


def run_job(
    job: Job,
    source: Store,
    *,
    trial: Runner | None = None,
    judge: Judge | None = None,
    now: Callable[[], float] = time.time,
) -> list[Outcome]:
    """Every version, lowest first. ``trial`` runs records and ``judge`` what replaces the file of a served version; by
    default both use TensorFlow, and where only the first is given nothing is judged. Raises UserError where none can be
    done: no version, a model that the store does not know, no TensorFlow."""
    with held(job.locks) as in_the_way:
        if in_the_way:
            return [Outcome(job.model, "", What.BUSY, f"{in_the_way} works on it: nothing was done", at=now())]
        if trial is None:
            trial, judge = partial(run_trial, record_seconds=job.record_timeout), judge or judge_file
        return _Pass(job, source, trial, judge, now).run()


class _Pass:
    def __init__(self, job: Job, source: Store, trial: Runner, judge: Judge | None, now: Callable[[], float]) -> None:
        self._job = job
        self._source = source
        self._trial = trial
        self._judge = judge
        self._now = now
        self._ages: Mapping[str, float] = {}
        #: What the store has of the model: read once, so that all versions are judged by the same.
        self._rows = source.signatures(job.model)
        self._wrote = False
        #: The files of the version that is worked on.
        self._tags: dict[str, str] = {}

    def run(self) -> list[Outcome]:
        job = self._job
        served, staged = job.place.served(), job.place.staged()
        if not served and not job.staging:
            raise UserError(f"{job.place.name}: no version directory in it (a directory whose name is a number)")
        if not (self._known or job.staging):
            refuse_other_services(self._source, job.model)
            raise UserError(f"{self._unknown()}; say --model")
        if job.ages is not None and job.wanted.retire_after:
            self._ages = job.ages.update(self._rows, self._now() - job.wanted.retire_after)
        names = {one.name for one in served}
        found = []
        for version in sorted([*served, *staged], key=lambda one: (int(one.name), one.staged)):
            self._wrote = False
            try:
                found.append(self._one(version, names))
                if found[-1].what is What.PROMOTED:
                    names.add(version.name)
            except TensorFlowMissing:
                raise
            except (UserError, SavedModelError, OSError) as error:
                found.append(self._failed(version, error))
        return found

    def _one(self, version: Version, served: set[str]) -> Outcome:
        if version.fault:
            raise UserError(f"{version.fault}; no warm-up file was written")
        if version.missing:
            return self._outcome(version, What.PASSED, f"no {version.missing} yet")
        if version.staged and version.name in served:
            raise UserError("is served already; stage it under another number, or remove the staged one")
        if not version.staged and version.warmed and not self._job.in_place:
            return self._outcome(version, What.PASSED, "has a warm-up file already")
        files = self._job.place.read(version)
        self._tags = self._job.place.tags(version)
        if files.warmup is None and not self._known:
            return self._cold(version, None, served)
        standing = read_standing(f"version {version.name}", *files)
        with self._job.place.model(version) as directory:
            found = draft(
                self._rows,
                self._job.model,
                version.name,
                directory,
                standing,
                self._job.wanted,
                self._now(),
                self._ages,
            )
            return self._drafted(version, found, served)

    def _drafted(self, version: Version, found: Draft, served: set[str]) -> Outcome:
        fingerprint = found.fingerprint
        if not version.staged and found.settled:
            count = len(found.standing.records)
            left_out = tuple(found.plan.left_out)
            text = f"{count} records, and nothing to add"
            return Outcome(self._job.model, version.name, What.UNCHANGED, text, count, left_out, self._now())
        known, outcome = self._job.tried.get(version.name, ("", None))
        if outcome is not None and known == fingerprint:
            if outcome.what is What.FAILED and self._now() < outcome.at + RETRY_SECONDS:
                return outcome
            # What is held back goes out once nothing is served any more.
            if outcome.what is not What.FAILED and not self._may_be_cold(version, served):
                return replace(outcome, at=self._now())
        try:
            made = make(self._source, found, trial=self._trial)
        except TrialError as error:
            self._job.tried[version.name] = (fingerprint, self._failed(version, error))
            return self._job.tried[version.name][1]
        try:
            outcome = self._tried(version, found, made, served)
        except (OSError, ExecutorError) as error:
            # A disk that is full or not ours stays so for a while, as does a request that ends the process in which
            # the file is judged; and the model may be large.
            outcome = self._failed(version, error)
            self._job.tried[version.name] = (fingerprint, outcome)
        if outcome.what in (What.UNCHANGED, What.NOTHING, What.HELD):
            self._job.tried[version.name] = (fingerprint, outcome)
        return outcome

    def _tried(self, version: Version, found: Draft, made: Made, served: set[str]) -> Outcome:
        if not made.records and (version.staged or not made.replaces):
            return self._cold(version, made, served)
        how = f"with TensorFlow {made.tensorflow} (level {made.level})"
        ran = "as they are: none was run" if self._job.wanted.unverified else f"each run on it {how}"
        scrubbed = "" if self._job.wanted.rules is None else "scrubbed, "
        text = f"{made.records} records, {scrubbed}{ran}"
        if not made.records:
            text = "0 records: nothing that stood there or was captured is to stay and runs on it"
        if not made.same:
            may, judged = self._judged(version, found, made)
            text += judged
            if not may:
                text = f"the file that is there stays: {text}"
                self._note("held", version, text, made, news=True)
                return self._outcome(version, What.HELD, text, made)
            self._publish(version, made)
        elif not version.staged:
            return self._outcome(version, What.UNCHANGED, f"{made.records} records, and nothing to add", made)
        if version.staged:
            self._promote(version, made, text)
            return self._outcome(version, What.PROMOTED, text, made)
        return self._outcome(version, What.PUBLISHED, text, made)

    def _judged(self, version: Version, found: Draft, made: Made) -> tuple[bool, str]:
        """Whether the file may be written, and what to add to what is said of it."""
        replaces = made.replaces and made.records and not version.staged and not self._job.wanted.unverified
        if not replaces or self._judge is None:
            return True, ""
        standing = b"".join(frame(one.data) for one in found.standing.records)
        may, said = replacing(self._source, found, made, standing, self._judge)
        return may, f"; {said}"

    @property
    def _known(self) -> bool:
        """Whether anything of the model was captured."""
        return any(row.key.owner.family == FAMILY for row in self._rows)

    def _unknown(self) -> str:
        owners = {row.key.owner for row in self._source.signatures()}
        have = ", ".join(sorted({owner.model for owner in owners if owner.family == FAMILY})) or "none"
        return f"nothing captured of model {self._job.model}; the store has of TF Serving: {have}"

    def _may_be_cold(self, version: Version, served: set[str]) -> bool:
        cold = self._job.promote_cold
        return version.staged and (cold == "always" or (cold == "first" and not served))

    def _cold(self, version: Version, made: Made | None, served: set[str]) -> Outcome:
        text = f"nothing captured for model {self._job.model} runs on it" if made is not None else self._unknown()
        if self._may_be_cold(version, served):
            if made is not None and made.replaces and not made.same:
                # What stands there would stop the server from loading it; an empty file does not.
                self._publish(version, made)
            self._promote(version, made, f"without a warm-up file: {text}")
            return self._outcome(version, What.PROMOTED, f"without a warm-up file: {text}", made)
        if version.staged:
            text = f"stays staged, or it would be cold: {text}; promote_cold: always lets it out"
            self._note("held", version, text, made, news=True)
            return self._outcome(version, What.HELD, text, made)
        return self._outcome(version, What.NOTHING, f"no warm-up file written: {text}", made)

    def _publish(self, version: Version, made: Made) -> None:
        self._still_the_same(version)
        why = f"{len(made.added)} added, {len(made.removed)} removed"
        self._note("publishing", version, why, made, news=True)
        self._job.place.write(version, made.file, made.described)
        self._wrote = True
        self._note("published", version, why, made)

    def _promote(self, version: Version, made: Made | None, why: str) -> None:
        self._still_the_same(version)
        self._job.place.promote(version)
        self._note("promoted", version, why, made)

    def _still_the_same(self, version: Version) -> None:
        if self._job.place.tags(version) != self._tags:
            raise UserError(
                "changed while it was worked on, and nothing was published; what is written last is to be"
                " saved_model.pb, or the file that complete_when names"
            )
        if not all(lock.holds() for lock in self._job.locks):
            raise UserError("another job has taken the lock meanwhile; nothing was published")

    def _failed(self, version: Version, error: UserError | OSError) -> Outcome:
        text = str(error)
        if isinstance(error, OSError):
            what = "its warm-up file is written" if self._wrote else "no warm-up file was written"
            text = f"{error.filename or self._job.place.name}: {error.strerror}; {what}"
        try:
            self._note("failed", version, text, None, news=True)
        except OSError as second:
            text += f"; and the history: {second.strerror}"
        return self._outcome(version, What.FAILED, text)

    def _outcome(self, version: Version, what: What, text: str, made: Made | None = None) -> Outcome:
        staged = "staged, " if version.staged and what is What.PASSED else ""
        records, left_out = (0, ()) if made is None else (made.records, made.left_out)
        return Outcome(self._job.model, version.name, what, staged + text, records, left_out, self._now())

    def _note(self, event: str, version: Version, why: str, made: Made | None, *, news: bool = False) -> None:
        history = self._job.history
        if history is None:
            return
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._now()))
        noted = Event(at, event, self._job.model, version.name, why)
        if made is not None:
            left_out = tuple(f"{short(one.key.digest)}: {one.reason}" for one in made.left_out)
            noted = Event(
                at,
                event,
                self._job.model,
                version.name,
                why,
                made.records,
                made.sha256 if made.records else "",
                made.added,
                made.removed,
                left_out[:MAX_LEFT_OUT],
            )
        (history.add_news if news else history.add)(noted)
