"""Where a model's versions are: what the job needs of such a place, whatever it is made of.

A version is **served** once it is where the model server looks, **staged** while it is not. The server loads a version
as soon as it sees its saved_model.pb, so a place lets that become visible last, or everything at once.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from capture.export.manifest import MANIFEST_SUFFIX
from capture.export.tfrecord import WARMUP_PATH

PREVIOUS: Final = ".prev"
MANIFEST: Final = WARMUP_PATH + MANIFEST_SUFFIX
#: What of a version is no part of its SavedModel: it changes while the model does not.
WARMUP: Final = (WARMUP_PATH, MANIFEST, WARMUP_PATH + PREVIOUS, MANIFEST + PREVIOUS)


@dataclass(frozen=True, slots=True)
class Version:
    """One version: its number as its directory is named, and whether it can be used: ``missing`` names what a complete
    one would have, "" for a complete one. ``warmed``: it has a warm-up file."""

    name: str
    staged: bool
    missing: str = ""
    warmed: bool = False
    #: What it could not be looked at for.
    fault: str = ""


class Files(NamedTuple):
    """A version's warm-up file and the manifests beside it, the newest first; None where there is no file."""

    warmup: bytes | None
    manifests: tuple[bytes, ...]


class Place(Protocol):
    """A base path of versions, with or without a staging area. Every method raises UserError or OSError."""

    #: Where it is, for people.
    name: str

    def served(self) -> list[Version]:
        """What the model server sees, lowest first."""

    def staged(self) -> list[Version]:
        """What waits to be served, lowest first."""

    def model(self, version: Version) -> AbstractContextManager[Path]:
        """A local directory with the version's SavedModel, to be run and not to be changed."""

    def tags(self, version: Version) -> dict[str, str]:
        """What tells the files of its SavedModel from others that may take their place, by path."""

    def read(self, version: Version) -> Files:
        """What it has already."""

    def write(self, version: Version, warmup: bytes, manifest: bytes) -> None:
        """Write both, each whole or not at all, and the manifest first. What was there stays as ``.prev``."""

    def promote(self, version: Version) -> None:
        """Let the server see a staged version, with everything in it."""
