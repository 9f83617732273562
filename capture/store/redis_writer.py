"""How a batch gets into a Redis store: part by part, each once, with no more on the wire than the server needs."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any, Final

import msgspec

from capture.store.base import (
    MAX_METADATA,
    OTHER,
    Batch,
    ModelVersion,
    Move,
    RecordKey,
    SampleTold,
    StoredMetadata,
    StoreError,
    Told,
)
from capture.store.redis_link import Link
from capture.store.redis_parts import (
    KEEP_SECONDS,
    HeldRow,
    OwnerPart,
    fill,
    fleet_message,
    member,
    owner_of,
    pairs,
    part_message,
    row_of,
    sample_of,
    split,
)

#: Bytes of requests that are sent without asking first whether the server has others already.
UNASKED_BYTES: Final = 8 << 10
#: The same for requests that are drawn into the reservoir.
DRAWN_BYTES: Final = 256 << 10
#: Model versions of a fleet; calls of a further one are turned away until one is forgotten. Anyone can name models.
MAX_OWNERS: Final = 4096
#: Names that a writer remembers of each kind; beyond it it forgets all, which costs bytes only.
MAX_REMEMBERED: Final = 100_000
#: A script that says twice what it lacks, and lacks it still, never has enough.
MAX_ROUNDS: Final = 4


@dataclass(slots=True)
class _Job:
    """A batch on its way: the steps that are left. ``sizes`` is what model versions hold now, for the fleet's list."""

    batch: Batch
    number: int
    told: Told = field(default_factory=Told)
    sizes: dict[ModelVersion, tuple[float, int | bool]] = field(default_factory=dict)
    steps: list[Callable[[], None]] = field(default_factory=list)
    given: int = 0

    def next_number(self) -> str:
        """The number of one more script: the same however often it is sent."""
        self.given += 1
        return f"{self.number}.{self.given}"


class RedisWriter:
    """Writes batches one after the other. What fails is taken up where it stopped when the same batch comes again."""

    def __init__(self, link: Link, fleet: str, base: Callable[[ModelVersion], str]) -> None:
        self._link = link
        self._fleet = fleet
        self._base = base
        self._name = secrets.token_hex(6)
        self._batches = 0
        self._job: _Job | None = None
        #: Tokens of the samples that the store has, as far as they are known here.
        self._tokens: dict[RecordKey, str] = {}
        self._named: set[RecordKey] = set()
        self._owner_of_held: dict[str, ModelVersion] = {}
        self._listed: set[ModelVersion] = set()
        #: Model versions whose threshold the server told.
        self._told_cuts: set[ModelVersion] = set()

    def knows(self, key: RecordKey, token: str) -> None:
        """The store has this signature, with a sample of this token."""
        for kept in (self._tokens, self._named):
            if len(kept) >= MAX_REMEMBERED:
                kept.clear()
        self._tokens[key] = token
        self._named.add(key)

    def held_by(self, held_id: str, owner: ModelVersion) -> None:
        """A held-out request belongs to this model version."""
        if len(self._owner_of_held) >= MAX_REMEMBERED:
            self._owner_of_held.clear()
        self._owner_of_held[held_id] = owner

    def apply(self, batch: Batch) -> Told:
        """Write it. Raises what the server's client raises; then the same batch may be handed over again."""
        job = self._job
        if job is None or job.batch is not batch:
            self._batches += 1
            job = _Job(batch, self._batches)
            self._plan(job)
            self._job = job
        while job.steps:
            job.steps[0]()
            del job.steps[0]
        self._job = None
        return job.told

    def _plan(self, job: _Job) -> None:
        """All steps of a batch. Everything is encoded here, so that what cannot be leaves nothing written."""
        batch = job.batch
        steps = job.steps
        for move in batch.moves:
            steps.append(partial(self._move, job, move, job.next_number(), job.next_number()))
            if batch.bounds is None:
                for key in move.evicted:
                    alone = OwnerPart(key.owner, evicted=[key.digest])
                    steps.append(partial(self._send, job, alone, job.next_number()))
                steps.append(partial(self._release, job, move.released, job.next_number()))
        for part in split(batch, self._tokens).values():
            msgspec.msgpack.encode(part_message(part, batch, ""))
            steps.append(partial(self._send, job, part, job.next_number()))
        if batch.bounds is None and batch.released:
            check = OwnerPart(ModelVersion("", "", ""))
            for held_id, roles in batch.released.items():
                check.release(held_id, *roles)
            steps.append(partial(self._release, job, batch.released, job.next_number()))
        steps.extend(partial(self._metadata, one) for one in batch.metadata.values())
        msgspec.msgpack.encode(fleet_message(batch, ()))
        steps.append(partial(self._finish, job, job.next_number()))

    # --- one model version ---

    def _send(self, job: _Job, part: OwnerPart, number: str) -> None:
        """Apply one part: first without what the server may have already."""
        owner, batch = part.owner, job.batch
        if not self._list(owner, part.last_seen, bounded=batch.bounds is not None):
            job.told.turned_away.update({RecordKey(owner, digest): calls for digest, calls in part.calls.items()})
            job.told.refused.update({row[0]: RecordKey(owner, row[1]) for row in part.held})
            return
        token = f"{self._name}-{number}"
        message = part_message(part, batch, token) | {"writer": self._name, "number": number}
        # Of what this writer has not heard of a fleet's store has most: others saw it before.
        unheard = {digest for digest in part.signatures if RecordKey(owner, digest) not in self._named}
        names = unheard if batch.bounds is None else set()
        bodies = self._unasked(part) if batch.bounds is None or unheard.isdisjoint(part.blobs) else set()
        for _ in range(MAX_ROUNDS):
            answer = self._link.run("apply", self._base(owner), message, *fill(part, names, bodies))
            if not (answer.get("names") or answer.get("bodies")):
                break
            names.update(answer["names"])
            bodies.update(answer["bodies"])
        else:
            raise StoreError(f"store {self._link.url.shown}: asks again and again for what it was sent")
        if answer.get("again"):
            # Written, and what was said of it was lost on the way.
            for digest in (*part.signatures, *(row[0] for row in part.samples)):
                self._tokens.pop(RecordKey(owner, digest), None)
            job.sizes[owner] = part.last_seen, False
            return
        self._hear(job, part, token, answer)

    def _unasked(self, part: OwnerPart) -> set[str]:
        """Whose requests are sent at once: all, if they are few bytes; and those that are drawn, where the threshold is
        known and few are drawn in vain."""
        if sum(map(len, part.blobs.values())) <= UNASKED_BYTES:
            return set(part.blobs)
        drawn = {row[0] for row in part.held if row[2] is not False} if part.owner in self._told_cuts else set()
        return drawn if sum(len(part.blobs[name]) for name in drawn) <= DRAWN_BYTES else set()

    def _hear(self, job: _Job, part: OwnerPart, token: str, answer: dict[str, Any]) -> None:
        """Take up what the server says of a part."""
        owner, told = part.owner, job.told
        turned_away = set(answer["turned_away"])
        for digest in part.signatures:
            key = RecordKey(owner, digest)
            if digest in turned_away:
                told.turned_away[key] = part.calls[digest]
            else:
                self.knows(key, self._tokens.get(key, ""))
        for row in part.samples:
            self._tokens[RecordKey(owner, row[0])] = token
        for digest, at, size, shapes, outcome, other in answer["samples"]:
            key = RecordKey(owner, digest)
            self._tokens[key] = other
            told.samples[key] = SampleTold(None if at is False else float(at), int(size), shapes, outcome)
        told.taken += len(part.samples) - len(answer["samples"])
        refused = set(answer["refused"])
        for row in part.held:
            if row[0] in refused:
                told.refused[row[0]] = RecordKey(owner, row[1])
            else:
                told.taken += row[3]
                self.held_by(row[0], owner)
        told.lacking.update({RecordKey(owner, digest): (no, further) for digest, no, further in answer["lacking"]})
        told.evicted.extend(RecordKey(owner, digest) for digest in answer["evicted"])
        if "cut" in answer:
            told.cuts[owner] = float(answer["cut"])
            self._told_cuts.add(owner)
        job.sizes[owner] = part.last_seen, int(answer["bytes"])

    def _list(self, owner: ModelVersion, last_seen: float, *, bounded: bool) -> bool:
        """The model version must be found before anything is stored of it. False where there are too many."""
        if owner not in self._listed:
            key = f"{self._fleet}:owners"
            known, count = self._link.each([("ZSCORE", key, member(owner)), ("ZCARD", key)])
            if known is None and bounded and count >= MAX_OWNERS:
                return False
            self._link.client.zadd(key, {member(owner): last_seen}, gt=True)
            self._listed.add(owner)
        return True

    def _release(self, job: _Job, released: dict[str, tuple[float | None, bool]], number: str) -> None:
        """Held-out requests lose roles. Setting them twice is setting them once."""
        parts: dict[ModelVersion, OwnerPart] = {}
        for held_id, roles in released.items():
            owner = self._owner_of_held.get(held_id) or self._find(held_id)
            if owner is not None:
                parts.setdefault(owner, OwnerPart(owner)).release(held_id, *roles)
        for place, part in enumerate(parts.values()):
            self._send(job, part, f"{number}.{place}")

    def _find(self, held_id: str) -> ModelVersion | None:
        for text in self._link.client.zrange(f"{self._fleet}:owners", 0, -1):
            owner = owner_of(text)
            if self._link.client.hexists(f"{self._base(owner)}:held", held_id):
                return owner
        return None

    # --- moves ---

    def _move(self, job: _Job, move: Move, put: str, take: str) -> None:
        """Two slots, so two scripts: first the target has what moves, then the source has it no longer. Who is killed
        in between leaves calls that are counted in both; nothing is lost."""
        source, digest = self._base(move.source.owner), move.source.digest
        found, blob, name = self._link.each(
            [("HGET", f"{source}:{what}", digest) for what in ("rows", "samples", "names")]
        )
        if found is None or name is None:
            return
        row, _ = row_of(move.source, found, name)
        part = OwnerPart(move.target.owner)
        part.add(move.target.digest, move.delta)
        if move.sample and blob is not None and row.sample_at is not None:
            part.add_sample(move.target.digest, sample_of(blob), "", force=job.batch.bounds is None)
        for held_id, (draw, for_signature) in move.held.items():
            entry, body = self._link.each([("HGET", f"{source}:{what}", held_id) for what in ("held", "bodies")])
            if entry is not None and body is not None and (draw is not None or for_signature):
                held = msgspec.msgpack.decode(entry, type=HeldRow)
                part.blobs[held_id] = body
                part.held.append(
                    [held_id, move.target.digest, False if draw is None else draw, for_signature, held.size,
                     held.captured_at, 0]
                )  # fmt: skip
        self._send(job, part, put)
        delta = move.delta
        message = {
            "writer": self._name,
            "number": take,
            "keep": KEEP_SECONDS,
            "digest": digest,
            "other": OTHER,
            "proven": delta.proven,
            "unproven": delta.unproven,
            "last": delta.last_seen,
            "shapes": pairs(delta.shapes),
            "senders": pairs(delta.senders),
            "blocks": [part for (hour, client), calls in delta.blocks.items() for part in (hour, client, calls)],
            "held": list(move.held),
            "refill": job.batch.bounds is not None,
        }
        answer = self._link.run("take", source, message)
        if "bytes" in answer:
            job.sizes[move.source.owner] = 0.0, int(answer["bytes"])

    # --- what belongs to no model version ---

    def _metadata(self, one: StoredMetadata) -> None:
        stamp = sha256(one.body).hexdigest()
        message = {"owner": member(one.owner), "at": one.fetched_at, "stamp": stamp, "most": MAX_METADATA}
        if not self._link.run("metadata", self._fleet, message):
            self._link.run("metadata", self._fleet, message, one.body)

    def _finish(self, job: _Job, number: str) -> None:
        """Counters last, with whatever follows from what all have stored."""
        batch = job.batch
        if not (job.sizes or batch.refusals or batch.ignored or batch.counters or batch.counted or batch.forget_before):
            return
        owners = [(owner, last_seen, size) for owner, (last_seen, size) in job.sizes.items()]
        message = fleet_message(batch, owners) | {"writer": self._name, "number": number}
        answer = self._link.run("fleet", self._fleet, message)
        if answer.get("again"):
            return
        job.told.writers = int(answer["writers"])
        if answer["anew"]:
            job.told.warnings.append("the server had lost the store: begun anew")
            self._listed.clear()
        if answer["forget"]:
            self._forget(batch)
        if batch.bounds is not None and answer["bytes"] > batch.bounds.store_bytes:
            self._shrink(job, batch.bounds.store_bytes)

    def _forget(self, batch: Batch) -> None:
        held_before = batch.updated_at - batch.bounds.held_out_seconds if batch.bounds else 0.0
        for text in self._link.client.zrange(f"{self._fleet}:owners", 0, -1):
            owner = owner_of(text)
            answer = self._link.run(
                "forget", self._base(owner), {"before": batch.forget_before, "held_before": held_before}
            )
            size = -1 if answer["empty"] else int(answer["bytes"])
            self._link.run("sizes", self._fleet, {"sizes": [[member(owner), size]]})
            if answer["empty"]:
                self._listed.discard(owner)
                self._list_again(owner, batch.updated_at)

    def _list_again(self, owner: ModelVersion, now: float) -> None:
        """Who wrote a model version between its end and that of its entry in the list would have written what nobody
        finds."""
        base = self._base(owner)
        rows, size = self._link.each([("EXISTS", f"{base}:rows"), ("HGET", base, "bytes")])
        if rows:
            self._link.client.zadd(f"{self._fleet}:owners", {member(owner): now}, gt=True)
            self._link.run("sizes", self._fleet, {"sizes": [[member(owner), int(size or 0)]]})

    def _shrink(self, job: _Job, most: int) -> None:
        """All together hold too much: the reservoirs of model versions seen least recently go first, then their
        signatures, and of the one seen last as little as may be. What each is left with is an absolute number: several
        writers that do this at once do it once."""
        names = self._link.client.zrange(f"{self._fleet}:owners", 0, -1)
        sizes = {name: int(size) for name, size in self._link.client.hgetall(f"{self._fleet}:sizes").items()}
        surplus = sum(sizes.values()) - most
        for reservoir_only in (True, False):
            for name in names[:-1] if reservoir_only else names:
                if surplus <= 0:
                    return
                message = {
                    "bytes": max(0, sizes.get(name, 0) - surplus),
                    "reservoir": reservoir_only,
                    "keep": MAX_REMEMBERED if reservoir_only else int(name == names[-1]),
                    "drain": not reservoir_only,
                }
                answer = self._link.run("shrink", self._base(owner_of(name)), message)
                left = int(answer["bytes"])
                self._link.run("sizes", self._fleet, {"sizes": [[name.decode(), left]]})
                surplus -= sizes.get(name, 0) - left
                sizes[name] = left
                job.told.evicted.extend(RecordKey(owner_of(name), digest) for digest in answer["evicted"])
