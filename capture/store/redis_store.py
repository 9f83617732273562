"""The store of a fleet: a Redis or Valkey server, or a cluster, that many sidecars write.

All keys of one model version lie in one slot, and what a batch says of it is one script: all of it or nothing, once,
however often it is sent. A batch that speaks of several model versions is written part by part; what was written is not
sent again when the rest is. See docs/store.md for the keys, the bounds and what one sidecar does while the server is
away.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from capture.store.base import (
    Batch,
    HeldOut,
    ModelVersion,
    RecordKey,
    Sample,
    StoredBlock,
    StoredHeldOut,
    StoredMetadata,
    StoredRun,
    StoredSignature,
    StoredTotal,
    StoreError,
    Told,
)
from capture.store.redis_link import Link
from capture.store.redis_lock import RedisLock
from capture.store.redis_parts import (
    FORMAT,
    HeldRow,
    counts_of,
    member,
    owner_of,
    refusals_of,
    row_of,
    run_of,
    sample_of,
)
from capture.store.redis_url import parse
from capture.store.redis_writer import RedisWriter

#: Under this name stand the counters of all runs that ended long ago.
FOLDED: Final = "(ended long ago)"
#: Keys that are read in one go.
READ_AT_ONCE: Final = 64


class RedisStore:
    """See :class:`capture.store.base.Store`. One instance belongs to one thread at a time."""

    shared = True

    def __init__(self, link: Link, *, create: bool) -> None:
        self._link = link
        self._create = create
        self._checked = False
        self._prefix = link.url.prefix
        self._fleet = f"{self._prefix}:{{fleet}}"
        self._writer = RedisWriter(link, self._fleet, self._base)

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> RedisStore:
        """The store at this URL. With ``create`` nothing is asked of the server yet: who writes may begin while it is
        away. Raises StoreError with the remedy: a wrong URL, plaintext to another machine; without ``create`` also a
        server that does not answer, or has no store."""
        store = cls(Link(parse(url)), create=create)
        if not create:
            try:
                with store._errors():
                    pass
            except StoreError:
                store.close()
                raise
        return store

    def _errors(self) -> Any:
        """Errors as StoreError, after a look at what kind of store this is."""
        if not self._checked:
            with self._link.errors():
                self._check()
            self._checked = True
        return self._link.errors()

    def _check(self) -> None:
        found = self._link.client.hget(self._fleet, "format")
        shown = self._link.url.shown
        if found is None:
            if not self._create:
                raise StoreError(
                    f"store {shown}: no warmtap store under {self._prefix}:; start the sidecar with this store first,"
                    " or name another (?prefix=NAME)"
                )
            self._link.client.hsetnx(self._fleet, "format", FORMAT)
        elif not found.isdigit() or int(found) > FORMAT:
            raise StoreError(
                f"store {shown}: written by a newer warmtap (format {found.decode(errors='replace')!s}, this one reads"
                f" up to {FORMAT}); upgrade warmtap or take another prefix (?prefix=NAME)"
            )

    def _base(self, owner: ModelVersion) -> str:
        """What the keys of a model version begin with."""
        return f"{self._prefix}:{{{member(owner)}}}"

    # --- writing ---

    def apply(self, batch: Batch) -> Told:
        with self._errors():
            warnings = self._link.check(self._fleet)
            told = self._writer.apply(batch)
            told.warnings.extend(warnings)
            return told

    def lock(self, name: str, seconds: float) -> RedisLock:
        """A lock that one holder at a time has, over all machines; see :class:`capture.store.redis_lock.RedisLock`."""
        with self._errors():
            return RedisLock(self._link, f"{self._prefix}:{{lock/{name}}}", secrets.token_hex(16), seconds)

    # --- reading ---

    def _owners(self, model: str | None = None) -> list[ModelVersion]:
        found = sorted(owner_of(text) for text in self._link.client.zrange(f"{self._fleet}:owners", 0, -1))
        return [owner for owner in found if model is None or owner.model == model]

    def _each_owner(self, model: str | None, *commands: tuple[str, ...]) -> Iterator[tuple[ModelVersion, list[Any]]]:
        """Answers to these commands (name, end of the key, arguments) of every model version, several in one go."""
        owners = self._owners(model)
        for at in range(0, len(owners), READ_AT_ONCE):
            some = owners[at : at + READ_AT_ONCE]
            answers = self._link.each(
                [(name, self._base(one) + key, *rest) for one in some for name, key, *rest in commands]
            )
            for place, owner in enumerate(some):
                yield owner, answers[place * len(commands) : (place + 1) * len(commands)]

    def signatures(self, model: str | None = None) -> list[StoredSignature]:
        rows = []
        with self._errors():
            # Names first: one that comes in between has no name yet, and is left out.
            for owner, (names, found) in self._each_owner(model, ("HGETALL", ":names"), ("HGETALL", ":rows")):
                for digest, row in found.items():
                    if digest in names:
                        stored, token = row_of(RecordKey(owner, digest.decode()), row, names[digest])
                        self._writer.knows(stored.key, token)
                        rows.append(stored)
        return sorted(rows, key=lambda row: (-row.hits, row.key.digest, row.key.owner.version))

    def totals(self) -> list[StoredTotal]:
        found = []
        with self._errors():
            for owner, (count, size) in self._each_owner(None, ("HLEN", ":rows"), ("HGET", "", "bytes")):
                if count:
                    found.append(StoredTotal(owner, int(count), int(size or 0)))
        return found

    def sample(self, key: RecordKey) -> Sample | None:
        with self._errors():
            blob = self._link.client.hget(f"{self._base(key.owner)}:samples", key.digest)
            return None if blob is None else sample_of(blob)

    def _held_rows(self, owner: ModelVersion) -> dict[str, HeldRow]:
        found = self._link.client.hgetall(f"{self._base(owner)}:held")
        rows = {name.decode(): msgspec.msgpack.decode(row, type=HeldRow) for name, row in found.items()}
        for name in rows:
            self._writer.held_by(name, owner)
        return rows

    def held_out_index(self) -> list[StoredHeldOut]:
        found = []
        with self._errors():
            for owner in self._owners():
                for name, row in sorted(self._held_rows(owner).items()):
                    key = RecordKey(owner, row.digest)
                    found.append(
                        StoredHeldOut(key, name, row.drawn, row.for_signature, row.size, float(row.captured_at))
                    )
        return found

    def held_out(self, model: str | None = None) -> Iterator[tuple[RecordKey, HeldOut]]:
        with self._errors():
            index = [
                (float(row.captured_at), name, owner)
                for owner in self._owners(model)
                for name, row in self._held_rows(owner).items()
            ]
        for _, name, owner in sorted(index):
            base = self._base(owner)
            with self._errors():
                row, blob = self._link.each([("HGET", f"{base}:held", name), ("HGET", f"{base}:bodies", name)])
                # A running sidecar may have released it since.
                if row is None or blob is None:
                    continue
                held = msgspec.msgpack.decode(row, type=HeldRow)
                found = HeldOut(name, sample_of(blob), held.drawn, held.for_signature)
            yield RecordKey(owner, held.digest), found

    def refusals(self) -> list[tuple[str, str, str, str, int]]:
        with self._errors():
            return refusals_of(self._link.client.hgetall(f"{self._fleet}:refusals"))

    def ignored(self) -> list[tuple[str, int]]:
        with self._errors():
            found = self._link.client.hgetall(f"{self._fleet}:ignored")
        return sorted(((what.decode(), int(count)) for what, count in found.items()), key=lambda one: (-one[1], one[0]))

    def metadata(self, model: str | None = None) -> list[StoredMetadata]:
        found = []
        with self._errors():
            times = self._link.client.zrange(f"{self._fleet}:metadata:times", 0, -1, withscores=True)
            for name, at in times:
                owner = owner_of(name)
                if model is None or owner.model == model:
                    body = self._link.client.hget(f"{self._fleet}:metadata", name)
                    if body is not None:
                        found.append(StoredMetadata(owner, float(at), body))
        return sorted(found, key=lambda one: (-one.fetched_at, one.owner))

    def blocks(self, model: str | None = None, since_hour: int = 0) -> list[StoredBlock]:
        found: list[StoredBlock] = []
        with self._errors():
            for owner in self._owners(model):
                base = self._base(owner)
                hours = [int(hour) for hour in self._link.client.zrangebyscore(f"{base}:hours", since_hour, "+inf")]
                for at in range(0, len(hours), READ_AT_ONCE):
                    some = hours[at : at + READ_AT_ONCE]
                    answers = self._link.each([("HGETALL", f"{base}:b:{hour}") for hour in some])
                    for hour, answer in zip(some, answers, strict=True):
                        for digest, text in answer.items():
                            key = RecordKey(owner, digest.decode())
                            clients = counts_of(msgspec.msgpack.decode(text))
                            found.extend(StoredBlock(key, hour, client, calls) for client, calls in clients.items())
        return sorted(found, key=lambda one: (one.hour, one.key.digest, one.key.owner.version, one.client))

    def counted(self, since_hour: int = 0) -> dict[str, int]:
        total: Counter[str] = Counter()
        for (hour, what), count in self.counted_by_hour().items():
            if hour >= since_hour:
                total[what] += count
        return dict(total)

    def counted_by_hour(self) -> dict[tuple[int, str], int]:
        found = {}
        with self._errors():
            for field, count in self._link.client.hgetall(f"{self._fleet}:counted").items():
                hour, _, what = field.decode().partition("/")
                found[int(hour), what] = int(count)
        return found

    def counters(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for run in self.runs().values():
            total.update(run.counters)
        return dict(total)

    def runs(self) -> dict[str, StoredRun]:
        with self._errors():
            texts = self._link.client.hgetall(f"{self._fleet}:runs")
            folded = self._link.client.hget(self._fleet, "folded")
        if folded is not None:
            texts[FOLDED.encode()] = folded
        return {run.decode(): run_of(text) for run, text in sorted(texts.items())}

    def close(self) -> None:
        self._link.close()
