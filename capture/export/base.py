"""Words that every export format shares, and the errors that users see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from capture.errors import UserError
from capture.signature import ExecutorKey, SignatureDef, WireSignature
from capture.store.base import RecordKey, Sample


class ExportError(UserError):
    """Nothing was written; the text names the place and the remedy."""


class Unfit(ValueError):
    """A request that cannot stand in a file for this model; the text says why, without an end."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A stored request that could stand for a record. ``hits`` counts its wire signature over all versions, ``proven``
    those of them that succeeded."""

    key: RecordKey
    signature: WireSignature
    hits: int
    outcome: str
    shapes: str
    proven: int = 0


@dataclass(slots=True)
class Record:
    """One sample that goes into a file. ``hits`` counts the calls that it stands for, over all versions: those of its
    wire signature and of the others in ``covers``, which share its executor key. ``candidates`` are the stored requests
    that could stand here, the best first; the record is the first of them until another one takes its place. ``batch``
    is the number of rows that its request was brought to, None where it is as it was sent."""

    key: RecordKey
    signature: WireSignature
    hits: int
    outcome: str
    shapes: str
    executor_key: ExecutorKey | None = None
    covers: list[str] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    #: Of ``hits``, those that succeeded.
    proven: int = 0
    batch: int | None = None

    def replaced(self, other: Candidate) -> Record:
        """The same record with another of its candidates as the request."""
        digests = dict.fromkeys(one.key.digest for one in self.candidates)
        covers = [digest for digest in digests if digest != other.key.digest]
        return Record(
            other.key,
            other.signature,
            self.hits,
            other.outcome,
            other.shapes,
            self.executor_key,
            covers,
            self.candidates,
            self.proven,
        )

    def left_out(self, reason: str) -> list[LeftOut]:
        """Every wire signature that the record stands for, as not in the file."""
        best: dict[str, Candidate] = {}
        for one in self.candidates:
            best.setdefault(one.key.digest, one)
        out = [LeftOut(one.key, one.signature, one.hits, reason) for one in best.values()]
        return out or [LeftOut(self.key, self.signature, self.hits, reason)]


@dataclass(slots=True)
class LeftOut:
    """A signature that is not in the file, and why."""

    key: RecordKey
    signature: WireSignature
    hits: int
    reason: str


@dataclass(slots=True)
class Selection:
    """What goes into a file, most used first, and what does not."""

    records: list[Record]
    left_out: list[LeftOut]


@dataclass(slots=True)
class OutFile:
    """One file of an export: its name (relative to PATH when the format writes a directory, else empty) and bytes."""

    name: str
    data: bytes


class Format(Protocol):
    """An export format. Formats are pure: they turn records into bytes and check bytes."""

    #: As in ``--format``.
    name: str
    #: The server families whose records it takes; None for any.
    families: frozenset[str] | None
    #: True when PATH is a directory of files.
    directory: bool
    #: Records that one file may hold; None for no bound.
    max_records: int | None
    #: How many of the files a server loads; None for all.
    loads: int | None
    #: A sentence for the manifest about how the server uses these files; may be empty.
    note: str

    def refuses(self, signature: WireSignature) -> str:
        """Why no record of this signature can stand in a file of this format; "" if it can."""

    def fitted(self, signature: WireSignature, sample: Sample, defs: Mapping[str, SignatureDef] | None) -> Sample:
        """The sample as a file of this format holds it, for a model with these SignatureDefs (None: not known). Raises
        Unfit."""

    def write(self, records: list[tuple[Record, Sample]]) -> list[OutFile]:
        """The files. The samples are as :meth:`fitted` returns them. Raises ExportError, naming the signature, for a
        record that this format cannot hold."""

    def check(self, files: list[OutFile], records: list[tuple[Record, Sample]]) -> None:
        """Read the files back (from the disk's bytes) and compare. Raises ExportError."""
