"""What a version's warm-up file is to become, before anything is run: the plan, and what it would change."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from capture.errors import UserError
from capture.export.base import Record
from capture.export.scrub_rules import Rules
from capture.export.table import FORMATS
from capture.levels import split
from capture.savedmodel import read_saved_model
from capture.signature import Misfit, SignatureDef, executor_key
from capture.store.base import RecordKey, StoredSignature
from replay.refreshing.attempts import UNVERIFIED
from replay.refreshing.present import Present, Standing
from replay.refreshing.union import Plan, plan

#: What a record is to the server: equal ones warm the same.
Identity = tuple[str, str, int | None]
#: Levels of proof at which every record of a file was run.
RUN: Final = ("runs", "executor", "server", "production")


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a model's files are made. ``rules`` None: requests as they are; ``retire_after`` in seconds, 0 is never;
    ``unverified``: nothing is run, and then only a version's own captures that were seen to succeed are written."""

    sizes: tuple[int, ...] = ()
    rules: Rules | None = None
    retire_after: float = 0.0
    unverified: bool = False

    def __post_init__(self) -> None:
        if self.unverified and (self.sizes or self.rules is not None):
            raise UserError(
                "unverified: nothing is run then, so neither batch sizes nor scrub can be had; leave it out"
            )

    @property
    def written_rules(self) -> tuple[str, ...] | None:
        """The rules as they were written, None where nothing is scrubbed."""
        return None if self.rules is None else tuple(self.rules.written)


@dataclass(frozen=True, slots=True)
class Draft:
    """Of ``version`` of ``model``, whose SavedModel is in ``directory``. ``now`` in seconds since the epoch."""

    model: str
    version: str
    directory: Path
    standing: Standing
    wanted: Wanted
    now: float
    rows: list[StoredSignature]
    defs: Mapping[str, SignatureDef]
    plan: Plan

    @property
    def by_hand(self) -> set[RecordKey]:
        """The records that warmtap did not write."""
        return {one.key(self.model) for one in self.standing.records if not one.ours}

    @property
    def told_otherwise(self) -> bool:
        """What stands there was made in another way than is wanted now."""
        if not any(one.ours for one in self.standing.records):
            return False
        unverified = self.standing.proof == UNVERIFIED
        return self.standing.scrub_rules != self.wanted.written_rules or unverified != self.wanted.unverified

    @property
    def settled(self) -> bool:
        """The file holds all that it should, whatever a trial would say: each of its records was run on this version
        before. Of batch sizes this is not known before they are made."""
        stands = self.standing
        if not stands.exists or self.told_otherwise or self.wanted.sizes or stands.proof not in (*RUN, UNVERIFIED):
            return False
        wanted = Counter(self.identity(record) for record in (*self.plan.records, *self.plan.spare))
        wanted.update(raw(one.data) for one in self.plan.unrun)
        known = all(one.known for one in stands.records)
        return known and wanted == Counter(self.before(one) for one in stands.records)

    @property
    def fingerprint(self) -> str:
        """The same where a trial would say the same again: same requests, same file, same model."""
        model = os.stat(self.directory / "saved_model.pb")
        hashed = hashlib.sha256()
        parts: list[object] = [model.st_size, model.st_mtime_ns, self.wanted.written_rules, self.wanted.sizes]
        parts += [self.wanted.unverified, [one.key for one in self.plan.records]]
        parts += sorted((*row.key.owner, row.key.digest, row.sample_at, row.sample_outcome) for row in self.rows)
        for part in parts:
            hashed.update(repr(part).encode("utf-8", "surrogatepass") + b"\n")
        for one in self.standing.records:
            hashed.update(hashlib.sha256(one.data).digest())
        return hashed.hexdigest()

    def identity(self, record: Record) -> Identity:
        """What a record of the new file is; one that was made by hand is its bytes."""
        stood = self.plan.files.get(record.key)
        if stood is not None and not stood.ours:
            return raw(stood.data)
        return str(record.executor_key), split(record.key.digest)[1], record.batch

    def before(self, one: Present) -> Identity:
        """What a record that stands in the file is."""
        if not one.ours:
            return raw(one.data)
        try:
            return str(executor_key(one.signature, self.defs)), one.level, one.batch
        except Misfit:
            return raw(one.data)


def raw(data: bytes) -> Identity:
    """What a record is that is known by its bytes alone."""
    return hashlib.sha256(data).hexdigest(), "", None


def draft(
    rows: list[StoredSignature],
    model: str,
    version: str,
    directory: Path,
    standing: Standing,
    wanted: Wanted,
    now: float,
    ages: Mapping[str, float] | None = None,
) -> Draft:
    """Read the model, and choose among the ``rows`` of a store. ``ages`` are when signatures were last seen that the
    store may have forgotten. Raises UserError where the model itself is at fault."""
    defs = read_saved_model(directory).signatures
    found = plan(
        rows,
        standing.records,
        model=model,
        version=version,
        defs=defs,
        refuses=FORMATS["tfrecord"].refuses,
        retire_before=now - wanted.retire_after if wanted.retire_after else 0.0,
        unverified=wanted.unverified,
        sizes=bool(wanted.sizes),
        ages=ages or {},
    )
    return Draft(model, version, directory, standing, wanted, now, rows, defs, found)
