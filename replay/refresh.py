"""Writing the warm-up file of each new model version: the union of what was captured, all of it run on that version
before anything is written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path

from capture.errors import UserError
from capture.export.base import LeftOut, OutFile, Record, Selection
from capture.export.files import write_atomically
from capture.export.manifest import MANIFEST_SUFFIX, covered_calls, manifest
from capture.export.select import select
from capture.export.table import FORMATS
from capture.export.tfrecord import MAX_RECORDS, WARMUP_PATH
from capture.savedmodel import SavedModelError, read_saved_model
from capture.store.base import Sample, Store, StoredSignature
from replay.trial import Trial, run_trial

_FORM = FORMATS["tfrecord"]


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What happened to one version. ``records`` is 0 where no file was written; ``text`` says what or why."""

    version: str
    written: bool
    failed: bool
    records: int
    text: str
    left_out: tuple[LeftOut, ...] = ()


def new_versions(base: Path) -> tuple[list[Path], list[str]]:
    """The version directories below ``base`` that have no warm-up file yet, lowest first, and a line for each that is
    passed over. Raises UserError if ``base`` holds no version at all."""
    if not base.is_dir():
        raise UserError(f"{base}: no such directory; give the one that holds the version directories")
    versions = sorted((path for path in base.iterdir() if path.name.isdigit() and path.is_dir()), key=_number)
    if not versions:
        raise UserError(f"{base}: no version directory in it (a directory whose name is a number)")
    new, passed = [], []
    for path in versions:
        if (path / WARMUP_PATH).exists():
            passed.append(f"version {path.name}: has a warm-up file already")
        elif not (path / "saved_model.pb").exists():
            passed.append(f"version {path.name}: no saved_model.pb yet")
        else:
            new.append(path)
    return new, passed


def _number(path: Path) -> int:
    return int(path.name)


def refresh_version(
    source: Store, model: str, directory: Path, *, trial: Callable[[Path, str, list[bytes]], Trial] = run_trial
) -> Refreshed:
    """Write ``directory``'s warm-up file. Raises UserError where the model itself is at fault, OSError."""
    version = directory.name
    rows = source.signatures(model)
    selection = select(
        rows,
        family=_FORM.family,
        version=version,
        defs=read_saved_model(directory).signatures,
        # All of them are run below: what failed in production may have failed because it was cold.
        unproven=True,
    )
    records, missing = _samples(source, selection.records)
    selection.left_out += missing
    tried = trial(directory, _FORM.family, [sample.body for _, sample in records])
    kept: list[tuple[Record, Sample]] = []
    for (record, sample), result in zip(records, tried.results, strict=True):
        if result.error:
            reason = f"does not run on version {version}: {result.error}"
            selection.left_out.append(LeftOut(record.key, record.signature, record.hits, reason))
        else:
            kept.append((record, sample))
    for record, _ in kept[MAX_RECORDS:]:
        reason = f"a warm-up file holds at most {MAX_RECORDS} records"
        selection.left_out.append(LeftOut(record.key, record.signature, record.hits, reason))
    kept = kept[:MAX_RECORDS]
    left_out = tuple(selection.left_out)
    if not kept:
        text = f"no warm-up file written: nothing captured for model {model} runs on it"
        return Refreshed(version, False, False, 0, text, left_out)
    seconds = sum(result.seconds for result in tried.results if not result.error)
    _write(source, model, directory, rows, kept, selection, tried, seconds)
    text = f"{len(kept)} records, each run on it with TensorFlow {tried.tensorflow} (level {tried.level})"
    return Refreshed(version, True, False, len(kept), text, left_out)


def _samples(source: Store, records: list[Record]) -> tuple[list[tuple[Record, Sample]], list[LeftOut]]:
    found: list[tuple[Record, Sample]] = []
    missing = []
    for record in records:
        sample = source.sample(record.key)
        if sample is None:
            missing.append(LeftOut(record.key, record.signature, record.hits, "its request was evicted just now"))
        else:
            found.append((record, sample))
    return found, missing


def _write(
    source: Store,
    model: str,
    directory: Path,
    rows: list[StoredSignature],
    kept: list[tuple[Record, Sample]],
    selection: Selection,
    tried: Trial,
    seconds: float,
) -> None:
    path = directory / WARMUP_PATH
    selection = Selection([record for record, _ in kept], selection.left_out)
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
            "level": "runs" if tried.level == "runs" else "executor",
            "verdict": "every record ran",
            "tensorflow": tried.tensorflow,
            "warmup_seconds": round(seconds, 3),
        },
    )
    # The server reads it as the user that reads the model: readable as saved_model.pb is, no more.
    mode = os.stat(directory / "saved_model.pb").st_mode & 0o666
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, file.data, check=lambda data: _FORM.check([OutFile("", data)], kept), mode=mode)
    write_atomically(path.with_name(path.name + MANIFEST_SUFFIX), described, check=lambda _: None, mode=mode)


def refresh(source: Store, base: Path, model: str) -> tuple[list[Refreshed], list[str]]:
    """Every new version below ``base``; one that fails does not stop the others."""
    new, passed = new_versions(base)
    done = []
    for directory in new:
        try:
            done.append(refresh_version(source, model, directory))
        except (UserError, SavedModelError) as error:
            done.append(Refreshed(directory.name, False, True, 0, str(error)))
        except OSError as error:
            text = f"{error.filename or directory}: {error.strerror}; no warm-up file was written"
            done.append(Refreshed(directory.name, False, True, 0, text))
    return done, passed
