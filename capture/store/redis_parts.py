"""What is said to the scripts of a Redis store, and how their rows are read. Pure: no connection, no clock.

A batch becomes one message for each model version that it speaks of, and one for what belongs to none. The scripts in
``capture/store/lua`` have the other half; docs/store.md has the keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec

from capture.admission_state import SHAPE_LEAD
from capture.signature import WireSignature
from capture.store.base import (
    COUNTED,
    MAX_SENDERS,
    OTHER,
    Batch,
    HeldOut,
    ModelVersion,
    RecordKey,
    Sample,
    SignatureDelta,
    StoredRun,
    StoredSignature,
)

#: Raised with every change to the keys; a newer one is refused.
FORMAT: Final = 1
#: Calls by signature, hour and client that are kept of one model version; beyond it the oldest hours are deleted.
MAX_BLOCKS: Final = 300_000
#: Refusals and ignored requests that are counted by their own name, over all sidecars.
MAX_REASONS: Final = 10_000
#: Counts by hour and name; beyond it the oldest tenth is deleted. Nine names make 90 days of it.
MAX_COUNTED: Final = 20_000
#: Seconds that the number of a batch is remembered: a writer that is cut off tries it again for so long.
KEEP_SECONDS: Final = 86400
#: Seconds after which the counters of a run that says nothing are put together with those of others: longer than a
#: writer is cut off, and no longer, for each restart of each sidecar is a run.
RUN_SECONDS: Final = 2 * 86400
#: Seconds within which each writer is heard of: it writes when something has grown old, if nothing else.
LATELY_SECONDS: Final = 3600
#: Runs that begin so stay for ever: each says what part of a file was ingested.
KEPT_RUNS: Final = "ingest "
#: Seconds between two times that something is forgotten, where many writers ask for it.
FORGET_SECONDS: Final = 3600


class Blob(msgspec.Struct, array_like=True, frozen=True):
    """A request as the server keeps it, opaque to it."""

    body: bytes
    wire_body: bytes | None
    headers: dict[str, str]
    path: str
    shapes: str
    outcome: str
    captured_at: float


class HeldRow(msgspec.Struct, array_like=True, frozen=True):
    """An entry of the held-out requests, without its body."""

    digest: str
    draw: float | bool
    for_signature: bool
    size: int
    captured_at: float

    @property
    def drawn(self) -> float | None:
        """Its draw while it is in the reservoir."""
        return None if isinstance(self.draw, bool) else float(self.draw)


@dataclass(slots=True)
class OwnerPart:
    """What a batch says of one model version. ``signatures`` are texts by digest, ``blobs`` requests by digest or
    held-out id; both are sent where the server needs them."""

    owner: ModelVersion
    seen: list[list[Any]] = field(default_factory=list)
    samples: list[list[Any]] = field(default_factory=list)
    held: list[list[Any]] = field(default_factory=list)
    released: list[list[Any]] = field(default_factory=list)
    evicted: list[str] = field(default_factory=list)
    signatures: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    last_seen: float = 0.0

    def add(self, digest: str, delta: SignatureDelta) -> None:
        """Count what was seen of a signature."""
        self.signatures[digest] = msgspec.json.encode(delta.signature).decode()
        self.calls[digest] = delta.proven + delta.unproven
        self.last_seen = max(self.last_seen, delta.last_seen)
        self.seen.append(
            [
                digest,
                False,
                _number(delta.first_seen),
                _number(delta.last_seen),
                _whole(delta.proven),
                _whole(delta.unproven),
                _whole(delta.hours),
                pairs(delta.shapes),
                pairs(delta.senders),
                [part for (hour, client), calls in delta.blocks.items() for part in (hour, client, calls)],
            ]
        )

    def add_sample(self, digest: str, sample: Sample, known: str, *, force: bool = False) -> None:
        """Store a request as the sample of a signature; ``known`` is the token of the one it is to replace."""
        self.blobs[digest] = encode_blob(sample)
        self.samples.append(
            [digest, known, _number(sample.captured_at), sample.size, sample.shapes, sample.outcome, force, 0]
        )

    def add_held(self, digest: str, held: HeldOut) -> None:
        """Hold a request out."""
        self.blobs[held.id] = encode_blob(held.sample)
        self.held.append([held.id, digest, *_roles(held.draw, held.for_signature), held.sample.size,
                          _number(held.sample.captured_at), 0])  # fmt: skip

    def release(self, held_id: str, draw: float | None, for_signature: bool) -> None:
        """Give a held-out request these roles."""
        self.released.append([held_id, *_roles(draw, for_signature)])


def _number(value: float) -> float:
    """A number, or TypeError here rather than on the server."""
    return value + 0.0


def _whole(value: int) -> int:
    return value + 0


def _roles(draw: float | None, for_signature: bool) -> tuple[float | bool, bool]:
    return False if draw is None else _number(draw), bool(for_signature)


def pairs(counts: Mapping[str, int]) -> list[str | int]:
    """Name, count, name, count ..., what stands for the rest last: so that names that are there find room first."""
    ordered = sorted(counts.items(), key=lambda item: item[0] == OTHER)
    return [part for name, count in ordered for part in (name, _whole(count))]


def split(batch: Batch, known: Mapping[RecordKey, str]) -> dict[ModelVersion, OwnerPart]:
    """The parts of a batch but its moves and what it releases. Raises what encoding raises."""
    parts: dict[ModelVersion, OwnerPart] = {}

    def part(owner: ModelVersion) -> OwnerPart:
        return parts.setdefault(owner, OwnerPart(owner))

    for key, delta in batch.seen.items():
        part(key.owner).add(key.digest, delta)
    if batch.bounds is None:
        for key in batch.evicted:
            part(key.owner).evicted.append(key.digest)
    for key, sample in batch.samples.items():
        part(key.owner).add_sample(key.digest, sample, known.get(key, ""))
    for key, held in batch.held_out.values():
        part(key.owner).add_held(key.digest, held)
    return parts


def bounds_message(batch: Batch) -> dict[str, float] | bool:
    """The bounds as the scripts read them."""
    bounds = batch.bounds
    if bounds is None:
        return False
    return {
        "signatures": bounds.signatures_per_version,
        "new_per_hour": bounds.new_signatures_per_hour,
        "requests": bounds.held_out_requests,
        "bytes": bounds.held_out_bytes,
        "seconds": bounds.held_out_seconds,
        "refresh": bounds.refresh_after,
        "lead": SHAPE_LEAD,
    }


def part_message(part: OwnerPart, batch: Batch, token: str) -> dict[str, Any]:
    """The message of apply.lua, with neither signatures nor requests yet."""
    return {
        "token": token,
        "keep": KEEP_SECONDS,
        "now": _number(batch.updated_at or part.last_seen),
        "most": MAX_SENDERS,
        "other": OTHER,
        "max_blocks": MAX_BLOCKS,
        "bounds": bounds_message(batch),
        "seen": part.seen,
        "samples": part.samples,
        "held": part.held,
        "released": part.released,
        "evicted": part.evicted,
    }


def fill(part: OwnerPart, names: Iterable[str], bodies: Iterable[str]) -> list[bytes]:
    """Put the texts of these signatures, and places of these requests, into a part; the requests in that order."""
    wanted_names, blobs = set(names), []
    for one in part.seen:
        if one[0] in wanted_names:
            one[1] = part.signatures[one[0]]
    wanted = set(bodies)
    for row, name in [(row, row[0]) for row in (*part.samples, *part.held)]:
        if name in wanted:
            blobs.append(part.blobs[name])
            row[-1] = len(blobs)
        else:
            row[-1] = 0
    return blobs


def fleet_message(batch: Batch, owners: Iterable[tuple[ModelVersion, float, int | bool]]) -> dict[str, Any]:
    """The message of fleet.lua: what belongs to no model version."""
    refusals = [
        [_field(family, model, outcome, reason), _whole(count), _field(family, OTHER, outcome, reason)]
        for (family, model, outcome, reason), count in batch.refusals.items()
    ]
    return {
        "keep": KEEP_SECONDS,
        "format": FORMAT,
        "refusals": refusals,
        "ignored": [[what, _whole(count)] for what, count in batch.ignored.items()],
        "most": MAX_REASONS,
        "other": OTHER,
        "owners": [[member(owner), last_seen, size] for owner, last_seen, size in owners],
        "run": batch.run if batch.counters else False,
        "counters": {name: _whole(value) for name, value in batch.counters.items()},
        # Of what they have grown, where it is not said by hours.
        "counted": COUNTED if batch.counted is None else [],
        "by_hour": [[f"{hour}/{what}", _whole(count)] for (hour, what), count in (batch.counted or {}).items()],
        "at": _number(batch.updated_at),
        # Who copies or reads old recordings brings runs of long ago, and each as it was.
        "run_seconds": RUN_SECONDS if batch.bounds else 1e18,
        "lately": LATELY_SECONDS,
        "kept": KEPT_RUNS,
        "max_counted": MAX_COUNTED,
        "forget_before": _number(batch.forget_before),
        "forget_every": FORGET_SECONDS if batch.bounds else -1e18,
    }


def _field(*parts: str) -> str:
    return msgspec.json.encode(parts).decode()


def refusals_of(counts: Mapping[bytes, bytes]) -> list[tuple[str, str, str, str, int]]:
    """What fleet.lua has counted."""
    rows = []
    for text, count in counts.items():
        names = [OTHER] * 4 if text == OTHER.encode() else msgspec.json.decode(text, type=list[str])
        rows.append((names[0], names[1], names[2], names[3], int(count)))
    return sorted(rows, key=lambda row: (-row[4], row[3], row))


def member(owner: ModelVersion) -> str:
    """A model version in one word, as keys hold it: any name, no brace."""
    return "/".join(quote(part, safe="") for part in owner)


def owner_of(text: bytes) -> ModelVersion:
    """What :func:`member` has made a word of."""
    family, model, version = (unquote(part) for part in text.decode().split("/"))
    return ModelVersion(family, model, version)


def encode_blob(sample: Sample) -> bytes:
    """A request for the server."""
    return msgspec.msgpack.encode(
        Blob(sample.body, sample.wire_body, sample.headers, sample.path, sample.shapes, sample.outcome,
             sample.captured_at)
    )  # fmt: skip


def sample_of(blob: bytes) -> Sample:
    """What :func:`encode_blob` has packed."""
    one = msgspec.msgpack.decode(blob, type=Blob)
    return Sample(one.body, one.wire_body, one.headers, one.path, one.shapes, one.outcome, one.captured_at)


def row_of(key: RecordKey, row: bytes, name: bytes) -> tuple[StoredSignature, str]:
    """A signature from its row and its text, and the token of its sample."""
    (
        proven, unproven, first_seen, last_seen, hours, evicted, sample_at, size, sample_shapes, outcome, token, _, _,
        shapes, senders, *_,
    ) = msgspec.msgpack.decode(row, type=list[Any])  # fmt: skip
    return StoredSignature(
        key=key,
        signature=msgspec.json.decode(name, type=WireSignature),
        proven=int(proven),
        unproven=int(unproven),
        first_seen=float(first_seen),
        last_seen=float(last_seen),
        hours=int(hours),
        # An empty map is an empty array to Lua.
        shapes=counts_of(shapes),
        senders=counts_of(senders),
        evicted=bool(evicted),
        sample_at=None if sample_at is False else float(sample_at),
        sample_size=int(size),
        sample_shapes=sample_shapes,
        sample_outcome=outcome,
    ), token


def counts_of(found: Any) -> dict[str, int]:
    """Counts by name as Lua packs them, most first."""
    if not found:
        return {}
    return {name: int(count) for name, count in sorted(found.items(), key=lambda item: (-item[1], item[0]))}


def run_of(text: bytes) -> StoredRun:
    """The counters of a run."""
    at, counters = msgspec.msgpack.decode(text, type=tuple[float, Any])
    return StoredRun(float(at), counts_of(counters))
