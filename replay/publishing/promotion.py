"""Letting a model server see a staged version in a place that cannot rename a directory: object by object.

TF Serving turns to a version as soon as anything is below its number, and can load it once its saved_model.pb is there
(tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc lists names alone; the loader tries again
every minute, --max_num_load_retries times). So everything is brought near first, under a name that is no number; what
goes out then is copied by the store itself: the model's files, the manifest, the warm-up file, and saved_model.pb last.

A journal is written before the first copy and after those that took time. Killed at any point, the next promotion goes
on there; what was let out stays whole, and what is left of the staged version is removed then.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from capture.errors import UserError
from capture.export.manifest import MANIFEST_SUFFIX
from capture.export.tfrecord import WARMUP_PATH
from replay.publishing.local_target import LocalTarget
from replay.publishing.target import Found, Target

SAVED_MODEL: Final = "saved_model.pb"
#: What goes out last, in this order. saved_model.pbtxt is the other name that the loader looks for.
LAST: Final = (WARMUP_PATH + MANIFEST_SUFFIX, WARMUP_PATH, "saved_model.pbtxt", SAVED_MODEL)
#: Below a base path: no number, so no version to the server.
STATE: Final = ".warmtap"
#: The journal is written anew after a file of this many bytes, and after this many smaller ones.
_NOTED_BYTES: Final = 1 << 20
_NOTED_FILES: Final = 20


@dataclass(frozen=True, slots=True)
class Area:
    """A prefix of a target: where versions lie below their numbers. ``prefix`` is "" or ends without a slash."""

    target: Target
    prefix: str = ""

    def at(self, path: str) -> str:
        """A path of the area as the target names it."""
        return f"{self.prefix}/{path}" if self.prefix else path

    def files(self, version: str) -> dict[str, Found]:
        """The files of a version, by their path in it."""
        begin = self.at(version) + "/"
        return {one.path.removeprefix(begin): one for one in self.target.files(self.at(version))}

    def below(self, path: str) -> Area:
        """The area at a path of this one."""
        return Area(self.target, self.at(path))

    def name(self, path: str) -> str:
        """For people."""
        return f"{self.target.url}/{self.at(path)}"


class Copied(msgspec.Struct):
    """The tags of one file: there, and here once it is copied."""

    source: str
    size: int
    here: str = ""


class Journal(msgspec.Struct, forbid_unknown_fields=True):
    """What a copying is about: by path in the version. ``others`` are paths that an earlier attempt may have written,
    of files that the version does not have any more."""

    files: dict[str, Copied] = {}
    others: list[str] = []


def promote(staged: Area, base: Area, version: str) -> None:
    """Bring a version into ``base`` and remove it from ``staged``. Raises UserError: the number is in use, somebody
    else writes there, the staged version changes meanwhile; OSError."""
    if finish(staged, base, version):
        return
    if SAVED_MODEL in base.files(version):
        text = f"{base.name(version)}: is there already; stage it under another number, or remove the staged one"
        raise UserError(text)
    near = staged
    if staged.target is not base.target:
        near = base.below(f"{STATE}/arriving")
        _copy(staged, near, version, _journal(base, version, "arriving"), _transfer)
    _copy(near, base, version, _journal(base, version, "promoting"), _within)
    finish(staged, base, version)


def finish(staged: Area, base: Area, version: str) -> bool:
    """Remove what is left of a staged version that was let out before its promotion was killed. False where there is no
    such thing."""
    if not under_way(base, version) or SAVED_MODEL not in base.files(version):
        return False
    apart = staged.target is not base.target
    path = _journal(base, version, "arriving" if apart else "promoting")
    journal = _read(base.target, path)
    there = staged.files(version)
    # saved_model.pb first: what is half removed is no staged version any more.
    for name in reversed(_in_order(journal.files)):
        if name in there and there[name].tag == journal.files[name].source:
            staged.target.remove(staged.at(f"{version}/{name}"))
    if apart:
        arriving = base.below(f"{STATE}/arriving")
        for name in arriving.files(version):
            base.target.remove(arriving.at(f"{version}/{name}"))
        base.target.remove(_journal(base, version, "arriving"))
    base.target.remove(_journal(base, version, "promoting"))
    return True


def begun(base: Area) -> list[str]:
    """Versions of which a promotion was begun and not finished."""
    end = ".promoting.json"
    names = (one.path.rpartition("/")[2] for one in base.target.files(base.at(STATE)))
    return sorted(name.removesuffix(end) for name in names if name.endswith(end))


def under_way(base: Area, version: str) -> bool:
    """Whether a promotion of this version was begun and not finished."""
    return base.target.find(_journal(base, version, "promoting")) is not None


def _journal(base: Area, version: str, what: str) -> str:
    return base.at(f"{STATE}/{version}.{what}.json")


def _read(target: Target, path: str) -> Journal:
    data = target.read(path)
    if data is None:
        return Journal()
    try:
        return msgspec.json.decode(data, type=Journal)
    except msgspec.MsgspecError:
        raise UserError(f"{target.url}/{path}: is no journal of warmtap; remove it") from None


def _in_order(names: Iterable[str]) -> list[str]:
    places = {name: place for place, name in enumerate(LAST, 1)}
    return sorted(names, key=lambda name: (places.get(name, 0), name))


def _copy(
    source: Area, destination: Area, version: str, path: str, copy: Callable[[Target, str, Target, str], Found]
) -> None:
    """Copy a version's files, those that are not there yet, saved_model.pb last. ``path`` is the journal's."""
    target = destination.target
    there = source.files(version)
    if SAVED_MODEL not in there:
        raise UserError(f"{source.name(version)}: no {SAVED_MODEL} in it any more; was it removed?")
    here = destination.files(version)
    before = _read(target, path)
    journal = _planned(before, there, here)
    if strangers := sorted(here.keys() - journal.files.keys() - set(journal.others)):
        raise UserError(
            f"{destination.name(version)}: {strangers[0]} is there and warmtap did not write it; somebody else writes"
            " this version: remove what is there, or stage under another number"
        )
    if journal != before:
        target.write(path, msgspec.json.encode(journal))
    for name in journal.others:
        target.remove(destination.at(f"{version}/{name}"))
    noted = 0
    for name in _in_order(journal.files):
        entry = journal.files[name]
        if entry.here and name in here and here[name].tag == entry.here:
            continue
        if name == SAVED_MODEL:
            _check(source, destination, version, journal)
        done = copy(source.target, source.at(f"{version}/{name}"), target, destination.at(f"{version}/{name}"))
        entry.here = done.tag
        noted += 1
        if name != SAVED_MODEL and (entry.size >= _NOTED_BYTES or noted % _NOTED_FILES == 0):
            target.write(path, msgspec.json.encode(journal))


def _planned(before: Journal, there: dict[str, Found], here: dict[str, Found]) -> Journal:
    """The journal of what is staged now, with what an earlier attempt did for the same files."""
    files = {}
    for name, found in there.items():
        known = before.files.get(name)
        same = known is not None and known.source == found.tag and known.size == found.size
        files[name] = Copied(found.tag, found.size, known.here if known is not None and same else "")
    gone = (before.files.keys() | set(before.others)) - files.keys()
    return Journal(files, sorted(gone & here.keys()))


def _check(source: Area, destination: Area, version: str, journal: Journal) -> None:
    """All but saved_model.pb is there, and the staged version is still the one that was copied."""
    now = {name: found.tag for name, found in source.files(version).items()}
    if now != {name: entry.source for name, entry in journal.files.items()}:
        raise UserError(
            f"{source.name(version)}: changed while it was copied; write {SAVED_MODEL} last, or name the file that is"
            " written last as complete_when"
        )
    sizes = {name: found.size for name, found in destination.files(version).items() if name != SAVED_MODEL}
    wanted = {name: entry.size for name, entry in journal.files.items() if name != SAVED_MODEL}
    if sizes != wanted:
        raise UserError(f"{destination.name(version)}: changed while it was written; is another job at work there?")


def _within(source: Target, path: str, destination: Target, there: str) -> Found:
    return destination.copy(path, there)


def _transfer(source: Target, path: str, destination: Target, there: str) -> Found:
    """From one place to another, through the disk: one file at a time."""
    if isinstance(source, LocalTarget):
        return destination.put(there, source.local(path))
    with tempfile.TemporaryDirectory(prefix="warmtap-") as scratch:
        file = Path(scratch) / os.path.basename(path)
        source.get(path, file)
        return destination.put(there, file)
