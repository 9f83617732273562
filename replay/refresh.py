"""Writing the warm-up file of each new model version: the union of what was captured, all of it run on that version
before anything is written."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Final

from capture.errors import UserError
from capture.export.base import Candidate, LeftOut, OutFile, Record, Selection, Unfit
from capture.export.files import write_atomically
from capture.export.manifest import MANIFEST_SUFFIX, covered_calls, manifest
from capture.export.scrub import scrubbed_sample
from capture.export.scrub_rules import Rules
from capture.export.scrub_values import Unscrubbable
from capture.export.select import select
from capture.export.table import FORMATS
from capture.export.tfrecord import MAX_RECORDS, WARMUP_PATH
from capture.savedmodel import SavedModelError, read_saved_model
from capture.signature import REST_METHODS, SignatureDef
from capture.store.base import Sample, Store, StoredSignature
from replay.expansion import expand, within
from replay.services import refuse_other_services
from replay.tf_protos import TensorFlowMissing
from replay.trial import Request, Trial, run_trial

_FORM = FORMATS["tfrecord"]
_FAMILY = "tfserving"
#: A temporary file that is older belongs to a run that was killed: writing one takes seconds.
STALE_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What happened to one version. ``records`` is 0 where no file was written; ``text`` says what or why."""

    version: str
    written: bool
    failed: bool
    records: int
    text: str
    left_out: tuple[LeftOut, ...] = ()


@dataclass(slots=True)
class Versions:
    """What lies below a base directory: versions that have no warm-up file yet, lowest first, a line for each that is
    passed over, and those that cannot be looked at."""

    new: list[Path]
    passed: list[str]
    unreadable: list[Refreshed]


def find_versions(base: Path) -> Versions:
    """Look at every version directory below ``base``. Raises UserError if there is none, or no ``base``."""
    if not base.is_dir():
        raise UserError(f"{base}: no such directory; give the one that holds the version directories")
    try:
        # As the server reads names: digits, and only those of ASCII.
        names = sorted((name for name in os.listdir(base) if name.isascii() and name.isdigit()), key=int)
    except OSError as error:
        raise UserError(f"{base}: {error.strerror}") from None
    found = Versions([], [], [])
    for name in names:
        path = base / name
        try:
            if not path.is_dir():
                continue
            if (path / WARMUP_PATH).exists():
                found.passed.append(f"version {name}: has a warm-up file already")
            elif not (path / "saved_model.pb").exists():
                found.passed.append(f"version {name}: no saved_model.pb yet")
            else:
                found.new.append(path)
        except OSError as error:
            found.unreadable.append(_failed(path, error))
    if not found.new and not found.passed and not found.unreadable:
        raise UserError(f"{base}: no version directory in it (a directory whose name is a number)")
    return found


def _failed(directory: Path, error: UserError | SavedModelError | OSError) -> Refreshed:
    text = str(error)
    if isinstance(error, OSError):
        text = f"{error.filename or directory}: {error.strerror}; no warm-up file was written"
    return Refreshed(directory.name, False, True, 0, text)


def refresh_version(
    source: Store,
    model: str,
    directory: Path,
    *,
    sizes: Sequence[int] = (),
    rules: Rules | None = None,
    trial: Callable[[Path, str, list[Request]], Trial] = run_trial,
) -> Refreshed:
    """Write ``directory``'s warm-up file, each record with these batch sizes where any are given, scrubbed by ``rules``
    where there are any. Raises UserError where the model itself is at fault, OSError."""
    version = directory.name
    _remove_stale(directory / WARMUP_PATH)
    rows = source.signatures(model)
    defs = read_saved_model(directory).signatures
    selection = select(
        rows,
        families=(_FAMILY,),
        version=version,
        defs=defs,
        # All of them are run below: what failed in production may have failed because it was cold.
        unproven=True,
        refuses=_FORM.refuses,
    )
    tried = _Attempts(source, version, partial(trial, directory, _FAMILY), defs, rules)
    tried.run(selection.records)
    kept = [tried.kept[place] for place in sorted(tried.kept)]
    selection.left_out += tried.left_out()
    pairs = [(record, sample) for record, sample, _ in kept]
    done = within(expand(pairs, defs, sizes, directory, trial=trial), MAX_RECORDS)
    selection.left_out += done.left_out
    kept = [
        (one.record, one.sample, kept[one.place][2] if one.seconds is None else one.seconds) for one in done.variants
    ]
    selection.left_out.sort(key=lambda one: (-one.hits, one.key))
    left_out = tuple(selection.left_out)
    if not kept:
        text = f"no warm-up file written: nothing captured for model {model} runs on it"
        return Refreshed(version, False, False, 0, text, left_out)
    selection.records = [record for record, _, _ in kept]
    seconds = sum(seconds for _, _, seconds in kept)
    samples = [(record, sample) for record, sample, _ in kept]
    _write(source, model, directory, rows, samples, selection, tried.level, tried.tensorflow, seconds, rules)
    how = f"with TensorFlow {tried.tensorflow} (level {tried.level})"
    text = f"{len(kept)} records, {'' if rules is None else 'scrubbed, '}each run on it {how}"
    return Refreshed(version, True, False, len(kept), text, left_out)


def as_held(method: str) -> str:
    """The method of a request as the file holds it."""
    return REST_METHODS.get(method, method)


class _Attempts:
    """Running the candidates of each record, round by round, until one runs or none is left."""

    def __init__(
        self,
        source: Store,
        version: str,
        trial: Callable[[list[Request]], Trial],
        defs: Mapping[str, SignatureDef],
        rules: Rules | None,
    ) -> None:
        """``rules``: run requests scrubbed by them; None: as they are stored."""
        self._defs = defs
        self._rules = rules
        self._source = source
        self._version = version
        self._trial = trial
        self._failed: list[tuple[int, Candidate, str]] = []
        self.level = ""
        self.tensorflow = ""
        #: By the record's place: the record as it ran, its request, and the seconds of its first call.
        self.kept: dict[int, tuple[Record, Sample, float]] = {}

    def run(self, records: list[Record]) -> None:
        """Try all of them. Raises TrialError. The model is loaded even where there is nothing to run on it."""
        waiting = {place: iter(record.candidates) for place, record in enumerate(records)}
        first = True
        while waiting or first:
            now: list[tuple[int, Candidate, Sample]] = []
            for place, candidates in list(waiting.items()):
                found = self._next(place, candidates)
                if found is None:
                    del waiting[place]
                else:
                    now.append((place, *found))
            if not now and not first:
                break
            first = False
            done = self._trial(
                [Request(as_held(candidate.signature.method), sample.body) for _, candidate, sample in now]
            )
            self.level, self.tensorflow = done.level, done.tensorflow
            for (place, candidate, sample), result in zip(now, done.results, strict=True):
                if result.error:
                    reason = f"does not run on version {self._version}: {result.error}"
                    self._failed.append((place, candidate, reason))
                else:
                    self.kept[place] = (records[place].replaced(candidate), sample, result.seconds)
                    del waiting[place]

    def _next(self, place: int, candidates: Iterator[Candidate]) -> tuple[Candidate, Sample] | None:
        for candidate in candidates:
            sample = self._source.sample(candidate.key)
            if sample is None:
                self._failed.append((place, candidate, "its request was evicted just now"))
                continue
            try:
                fitted = _FORM.fitted(candidate.signature, sample, self._defs)
                if self._rules is not None:
                    fitted = scrubbed_sample(candidate.key, as_held(candidate.signature.method), fitted, self._rules)
                return candidate, fitted
            except Unfit as error:
                self._failed.append((place, candidate, str(error)))
            except Unscrubbable as error:
                self._failed.append((place, candidate, f"cannot be scrubbed: {error}"))
        return None

    def left_out(self) -> list[LeftOut]:
        """Every candidate that failed, with its error."""
        out = []
        for place, candidate, reason in self._failed:
            if place in self.kept:
                reason += "; another request of the same executor is in the file"
            out.append(LeftOut(candidate.key, candidate.signature, candidate.hits, reason))
        return out


def _remove_stale(path: Path) -> None:
    """Remove what killed runs left beside the warm-up file ``path``."""
    for temporary in path.parent.glob(f".{path.name}*.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - temporary.stat().st_mtime > STALE_SECONDS:
                temporary.unlink()


def _write(
    source: Store,
    model: str,
    directory: Path,
    rows: list[StoredSignature],
    kept: list[tuple[Record, Sample]],
    selection: Selection,
    level: str,
    tensorflow: str,
    seconds: float,
    rules: Rules | None,
) -> None:
    path = directory / WARMUP_PATH
    file = _FORM.write(kept)[0]
    described = manifest(
        warmtap=installed_version("warmtap"),
        created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        form=_FORM,
        model=model,
        version=directory.name,
        fitted=True,
        selection=selection,
        files=[OutFile(path.name, file.data)],
        calls=covered_calls(selection, rows, _FORM),
        counters=source.counters(),
        proof={
            "level": "runs" if level == "runs" else "executor",
            "verdict": "every record ran",
            "tensorflow": tensorflow,
            "warmup_seconds": round(seconds, 3),
        },
        scrub_rules=None if rules is None else rules.written,
    )
    # The server reads it as the user that reads the model: readable as saved_model.pb is, no more.
    mode = os.stat(directory / "saved_model.pb").st_mode & 0o666
    if not path.parent.exists():
        path.parent.mkdir()
        path.parent.chmod(stat.S_IMODE(directory.stat().st_mode))
    # The manifest first: a version is done once it has its file, and then nothing may be missing.
    write_atomically(path.with_name(path.name + MANIFEST_SUFFIX), described, check=lambda _: None, mode=mode)
    write_atomically(path, file.data, check=lambda data: _FORM.check([OutFile("", data)], kept), mode=mode)


def refresh(
    source: Store,
    base: Path,
    model: str,
    *,
    sizes: Sequence[int] = (),
    rules: Rules | None = None,
    trial: Callable[[Path, str, list[Request]], Trial] = run_trial,
) -> tuple[list[Refreshed], list[str]]:
    """Every new version below ``base``; one that fails does not stop the others. Raises UserError where none can be
    done: no version, a model that the store does not know, no TensorFlow."""
    found = find_versions(base)
    known = {row.key.owner.model for row in source.signatures() if row.key.owner.family == _FAMILY}
    if model not in known:
        refuse_other_services(source, model)
        have = ", ".join(sorted(known)) or "none"
        raise UserError(f"nothing captured of model {model}; the store has of TF Serving: {have}; say --model")
    done = found.unreadable
    for directory in found.new:
        try:
            done.append(refresh_version(source, model, directory, sizes=sizes, rules=rules, trial=trial))
        except TensorFlowMissing:
            raise
        except (UserError, SavedModelError, OSError) as error:
            done.append(_failed(directory, error))
    return sorted(done, key=lambda one: int(one.version)), found.passed
