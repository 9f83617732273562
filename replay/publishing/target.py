"""What is asked of a place of files, whatever it is made of; and the one function that knows the kinds.

Paths are relative to the place, with ``/``. A file appears whole or not at all. Every method raises UserError, one
line that names the place and the remedy, or OSError where a local disk is at fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from replay.publishing.addresses import Address, parse


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a place: its path, its size in bytes, and its ``tag``: another one when the content is another."""

    path: str
    size: int
    tag: str


class Target(Protocol):
    """A place of files."""

    #: Where it is, for people.
    url: str

    def children(self, below: str = "") -> list[str]:
        """Names of the directories right below a path, sorted; empty where there is none."""

    def files(self, below: str) -> list[Found]:
        """All files below a path, however deep, sorted by path; empty where there is none."""

    def find(self, path: str) -> Found | None:
        """One file; None where there is none."""

    def read(self, path: str) -> bytes | None:
        """A small file's bytes; None where there is none."""

    def write(self, path: str, data: bytes) -> None:
        """Write a small file, and read it back."""

    def put(self, path: str, source: Path) -> Found:
        """Bring a local file there, and check it."""

    def get(self, path: str, destination: Path) -> None:
        """Bring a file to a local one, and check its size."""

    def copy(self, source: str, destination: str) -> Found:
        """Copy within the place, and check it."""

    def remove(self, path: str) -> None:
        """Remove a file; nothing where there is none."""


def open_target(url: str) -> Target:
    """The place that a URL names; nothing is asked of it yet. Raises UserError: no such scheme, credentials in the URL,
    a client that is not installed, no credentials in the environment."""
    return open_address(parse(url))


def open_address(address: Address) -> Target:
    """The same of an address."""
    if address.scheme == "file":
        from replay.publishing.local_target import LocalTarget

        return LocalTarget(Path(address.path))
    from replay.publishing.object_target import ObjectTarget

    return ObjectTarget(address)
