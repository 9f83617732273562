"""What is in a warm-up file, whoever wrote it: the words that its readers, `inspect` and `diff` share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from capture.signature import REST_METHODS, Call, WireSignature

#: The form of a store, beside those of the export formats.
STORE: Final = "store"


class Severity(StrEnum):
    """``ERROR``: the server refuses the file or the record, or warmtap cannot read it. ``WARNING``: it does not do what
    was probably meant. ``NOTE``: good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Remark(NamedTuple):
    """A sentence about a record, or about the file where ``place`` is empty."""

    severity: Severity
    place: str
    text: str


@dataclass(frozen=True, slots=True)
class Request:
    """A request as its client sent it: ``body`` is the HTTP body (compressed if it was), or the message of a gRPC call.
    ``path`` and ``headers`` are empty where the file does not tell them."""

    body: bytes
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def as_sent(
    signature: WireSignature, body: bytes, wire_body: bytes | None, path: str, headers: Mapping[str, str]
) -> Request:
    """The request that was kept so. gRPC compresses messages, not requests: there ``body`` is the message, whatever was
    on the wire."""
    grpc = signature.family == "tfserving" and signature.method not in REST_METHODS
    return Request(body if grpc or wire_body is None else wire_body, path, headers)


@dataclass(slots=True)
class Entry:
    """One record. ``place`` says where it is. ``signature`` is None where it is no call whose signature is known; then
    ``identity`` is a hash of its bytes, otherwise the digest. ``version`` is the one that the request itself names, ""
    if none; in a store and in JSON lines the one that answered. ``hits`` is None where the file does not tell.
    ``request`` is None where there is none that a server could be sent, and for a store, which has it."""

    number: int
    place: str
    kind: str
    size: int
    identity: str
    signature: WireSignature | None = None
    shapes: str = ""
    version: str = ""
    hits: int | None = None
    outcome: str = ""
    remarks: list[Remark] = field(default_factory=list)
    request: Request | None = None

    def remark(self, severity: Severity, text: str) -> None:
        """Say something about it."""
        self.remarks.append(Remark(severity, self.place, text))

    def take(self, call: Call) -> None:
        """It is this call."""
        self.signature = call.signature
        self.identity = call.signature.digest
        self.shapes = call.shapes


@dataclass(slots=True)
class Contents:
    """A whole file, as far as it can be read; ``broken`` says where and why it ends before its end, "" if it does not.
    ``form`` is as in ``--format``, or ``store``."""

    form: str
    entries: list[Entry] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    broken: str = ""

    def all_remarks(self) -> list[Remark]:
        """Those of the records in their order, then those of the file."""
        return [one for entry in self.entries for one in entry.remarks] + self.remarks

    def remark(self, severity: Severity, text: str) -> None:
        """Say something about the file."""
        self.remarks.append(Remark(severity, "", text))

    def remark_repetitions(self) -> None:
        """A second record of a signature warms nothing that the first did not."""
        first: dict[str, str] = {}
        for entry in self.entries:
            if entry.signature is not None and first.setdefault(entry.identity, entry.place) != entry.place:
                entry.remark(Severity.NOTE, f"has the same signature as {first[entry.identity]}")
