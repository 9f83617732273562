"""Versions in places that URLs name, as the refresh job needs them: served below one URL, staged below another, or in
a local directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from capture.export.tfrecord import WARMUP_PATH
from replay.publishing.addresses import Address, is_url, parse
from replay.publishing.promotion import SAVED_MODEL, Area, begun, finish, promote, under_way
from replay.publishing.scratch import Scratch
from replay.publishing.target import Found, open_address
from replay.refreshing.local import LocalPlace, is_of
from replay.refreshing.place import MANIFEST, PREVIOUS, WARMUP, Files, Place, Version


def open_place(base: str, staging: str = "", complete_when: str = SAVED_MODEL) -> Place:
    """The place of these paths or URLs. Raises UserError."""
    addresses = [parse(text) if is_url(text) else None for text in (base, staging)]
    if all(one is None or one.scheme == "file" for one in addresses):
        base, staging = (
            text if one is None else one.path for text, one in zip((base, staging), addresses, strict=True)
        )
        return LocalPlace(Path(base), Path(staging) if staging else None, complete_when)
    served, staged = (
        one or (Address("file", "", str(Path(text).resolve())) if text else None)
        for text, one in zip((base, staging), addresses, strict=True)
    )
    assert served is not None
    if staged is not None and (staged.scheme, staged.bucket, staged.endpoint) == (
        served.scheme,
        served.bucket,
        served.endpoint,
    ):
        # One target, so that the store itself copies.
        both = open_address(Address(served.scheme, served.bucket, "", served.endpoint))
        return RemotePlace(Area(both, served.path), Area(both, staged.path), complete_when)
    return RemotePlace(
        Area(open_address(served)), None if staged is None else Area(open_address(staged)), complete_when
    )


class RemotePlace:
    """Versions of which at least the served ones or the staged ones are in an object store."""

    def __init__(self, base: Area, staging: Area | None = None, complete_when: str = SAVED_MODEL) -> None:
        self.name = base.name("").rstrip("/")
        self._base = base
        self._staging = staging
        self._complete_when = complete_when
        self._scratch = Scratch()

    def served(self) -> list[Version]:
        """Without those that are on their way: to the server they are no versions yet."""
        found = []
        for name in _numbers(self._base):
            files = self._base.files(name)
            if files and (SAVED_MODEL in files or not under_way(self._base, name)):
                found.append(_looked_at(name, False, files, SAVED_MODEL))
        return found

    def staged(self) -> list[Version]:
        """What is left of versions that were let out before is removed."""
        if self._staging is None:
            return []
        for name in begun(self._base):
            finish(self._staging, self._base, name)
        found = []
        for name in _numbers(self._staging):
            if files := self._staging.files(name):
                found.append(_looked_at(name, True, files, self._complete_when))
        return found

    @contextmanager
    def model(self, version: Version) -> Iterator[Path]:
        """A copy on the local disk. Raises UserError where it has no room."""
        area = self._area(version)
        yield self._scratch.version(area.target, _begin(area, version), list(self._model_files(version).values()))

    def tags(self, version: Version) -> dict[str, str]:
        return {name: found.tag for name, found in self._model_files(version).items()}

    def _model_files(self, version: Version) -> dict[str, Found]:
        files = self._area(version).files(version.name)
        return {name: found for name, found in files.items() if name not in WARMUP}

    def read(self, version: Version) -> Files:
        area, target = self._area(version), self._area(version).target
        manifests = [target.read(area.at(f"{version.name}/{name}")) for name in (MANIFEST, MANIFEST + PREVIOUS)]
        warmup = target.read(area.at(f"{version.name}/{WARMUP_PATH}"))
        return Files(warmup, tuple(one for one in manifests if one is not None))

    def write(self, version: Version, warmup: bytes, manifest: bytes) -> None:
        """As in a local directory: the manifest first; and a manifest that a killed run left does not replace the one
        of the file that is there."""
        area, target = self._area(version), self._area(version).target
        file, described = (area.at(f"{version.name}/{name}") for name in (WARMUP_PATH, MANIFEST))
        there, told = target.read(file), target.read(described)
        if told is not None and is_of(told, there):
            target.write(described + PREVIOUS, told)
        target.write(described, manifest)
        if there is not None:
            target.write(file + PREVIOUS, there)
        target.write(file, warmup)

    def promote(self, version: Version) -> None:
        assert self._staging is not None
        promote(self._staging, self._base, version.name)
        self._scratch.forget(_begin(self._staging, version))

    def _area(self, version: Version) -> Area:
        area = self._staging if version.staged else self._base
        assert area is not None
        return area


def _begin(area: Area, version: Version) -> str:
    return area.at(version.name) + "/"


def _numbers(area: Area) -> list[str]:
    # As the server reads names: digits, and only those of ASCII.
    return sorted((name for name in area.target.children(area.prefix) if name.isascii() and name.isdigit()), key=int)


def _looked_at(name: str, staged: bool, files: Mapping[str, Found], complete_when: str) -> Version:
    missing = next((file for file in (complete_when, SAVED_MODEL) if file not in files), "")
    return Version(name, staged, missing, WARMUP_PATH in files)
