"""What production sent, as a verification uses it: which requests judge a file, and which signatures nothing judges.

Pure: the store is read by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from capture.convert.rest import grpc_request
from capture.convert.values import ConversionError
from capture.dialects.base import Unreadable
from capture.dialects.table import stored_route
from capture.export.tfrecord import strip_version
from capture.levels import split
from capture.schema.wire import WireError
from capture.signature import REST_METHODS, Misfit, SignatureDef, WireSignature, executor_key
from capture.store.base import HeldOut, RecordKey, Sample, StoredSignature


@dataclass(frozen=True, slots=True)
class Judged:
    """A request that a file is judged by. ``group`` names what shares an executor on this model version. ``held_out``
    is False for a stored sample, used where a signature that the file does not cover has no held-out request;
    ``proven`` says whether production saw such a request succeed; ``level`` is the class that a level put it in, "" at
    level names."""

    signature: WireSignature
    group: str
    body: bytes
    byte_identical: bool = False
    held_out: bool = True
    proven: bool = True
    level: str = ""

    @property
    def key(self) -> str:
        """The executor's key alone."""
        return self.group.removesuffix(_class(self.level))


@dataclass(slots=True)
class Evidence:
    """What a file is judged by, and what cannot be judged. ``refused`` maps a signature that this model would refuse to
    the reason and its held-out requests; ``unreadable`` counts held-out requests that cannot be read; ``missing`` are
    signatures that production used, that no record covers and of which no request is stored, with their calls;
    ``by_record_only`` counts signatures in the file that no held-out request judges. Times are seconds since the
    epoch."""

    judged: list[Judged] = field(default_factory=list)
    refused: dict[WireSignature, tuple[str, int]] = field(default_factory=dict)
    unreadable: int = 0
    missing: list[tuple[WireSignature, int]] = field(default_factory=list)
    by_record_only: int = 0
    oldest: float | None = None
    newest: float | None = None


def read_signature(family: str, model: str, body: bytes, *, path: str = "", method: str = "") -> WireSignature | None:
    """The wire signature of a request body that went to ``path``, or is one of ``method``; without either, of the
    family's usual method. None if it is not one."""
    route = stored_route(family, model, path, method)
    try:
        return None if route is None else route.dialect.read(route, body).signature
    except Unreadable:
        return None


def comparable(family: str, body: bytes, method: str) -> bytes:
    """The bytes by which a held-out request and a record are the same one."""
    if family != "tfserving":
        return body
    try:
        return strip_version(body, method)
    except WireError:
        return body


def gather(
    family: str,
    model: str,
    defs: Mapping[str, SignatureDef],
    *,
    records: Iterable[tuple[str, bytes]],
    recorded: Iterable[WireSignature],
    held_out: Iterable[tuple[RecordKey, HeldOut]],
    signatures: Iterable[StoredSignature],
    sample: Callable[[RecordKey], Sample | None],
) -> Evidence:
    """Sort production's requests by what they can say about a file with these ``records`` (method, request), whose
    signatures are ``recorded``, on a model with these SignatureDefs. Every signature that production used is accounted
    for: it is judged, covered by a record, refused by the model, or missing."""
    found = Evidence()
    same = {comparable(family, record, method) for method, record in records}
    for record, held in held_out:
        at = held.sample.captured_at
        found.oldest = at if found.oldest is None else min(at, found.oldest)
        found.newest = at if found.newest is None else max(at, found.newest)
        signature = read_signature(family, model, held.sample.body, path=held.sample.path)
        if signature is None:
            found.unreadable += 1
            continue
        try:
            key = str(executor_key(signature, defs))
        except Misfit as misfit:
            found.refused[signature] = (str(misfit), found.refused.get(signature, ("", 0))[1] + 1)
            continue
        try:
            method, request = _as_recorded(signature, held.sample.body, defs)
        except ConversionError as error:
            found.refused[signature] = (str(error), found.refused.get(signature, ("", 0))[1] + 1)
            continue
        identical = comparable(family, request, method) in same
        level = split(record.digest)[1]
        found.judged.append(Judged(signature, _group(key, level), held.sample.body, identical, level=level))
    covered = groups(recorded, defs)
    judged = {one.group for one in found.judged}
    found.by_record_only = len(covered - {one.key for one in found.judged})
    for (signature, level), rows in _by_digest(signatures).items():
        try:
            group = _group(str(executor_key(signature, defs)), level)
        except Misfit as misfit:
            found.refused.setdefault(signature, (str(misfit), 0))
            continue
        if group in covered or group in judged:
            continue
        best = min(rows, key=lambda row: (row.sample_at is None, row.sample_outcome != "proven"))
        stored = sample(best.key)
        if stored is None:
            found.missing.append((signature, sum(row.hits for row in rows)))
        else:
            proven = best.sample_outcome == "proven"
            found.judged.append(Judged(signature, group, stored.body, held_out=False, proven=proven, level=level))
    return found


def _as_recorded(signature: WireSignature, body: bytes, defs: Mapping[str, SignatureDef]) -> tuple[str, bytes]:
    """(method, request) as a record of a warm-up file has them. Raises ConversionError for a REST body that this model
    would refuse."""
    if signature.method not in REST_METHODS:
        return signature.method, body
    # The records of a file are compared as they are exported: under the model's name.
    return REST_METHODS[signature.method], grpc_request(signature.method, body, signature.model, defs)


def groups(signatures: Iterable[WireSignature], defs: Mapping[str, SignatureDef]) -> set[str]:
    """What shares an executor, of those signatures that fit these SignatureDefs."""
    found = set()
    for signature in signatures:
        try:
            found.add(str(executor_key(signature, defs)))
        except Misfit:
            # The warm-up of such a record fails, and says so itself.
            continue
    return found


def _group(key: str, level: str) -> str:
    """What is warm together. A record's class cannot be told from a file, so none covers one unrun."""
    return key + _class(level)


def _class(level: str) -> str:
    return f" class {level}" if level else ""


def _by_digest(rows: Iterable[StoredSignature]) -> dict[tuple[WireSignature, str], list[StoredSignature]]:
    found: dict[tuple[WireSignature, str], list[StoredSignature]] = {}
    for row in rows:
        found.setdefault((row.signature, split(row.key.digest)[1]), []).append(row)
    return found
