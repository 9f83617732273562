"""The embedded store: one SQLite file in WAL mode, mode 0600.

Write-ahead logging with ``synchronous=NORMAL`` survives a kill at any point (sqlite.org/wal.html); a power cut may cost
the last transactions, never the file. Names of tensors, shapes and senders are small JSON texts; bodies are blobs in
tables of their own, so that listing never reads them.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from capture.store.base import (
    HOUR,
    MAX_METADATA,
    MAX_SENDERS,
    MAX_SHAPES,
    Batch,
    HeldOut,
    ModelVersion,
    Move,
    RecordKey,
    Sample,
    SignatureDelta,
    StoredBlock,
    StoredHeldOut,
    StoredMetadata,
    StoredRun,
    StoredSignature,
    StoredTotal,
    StoreError,
    StoreGone,
)
from capture.store.sqlite_blocks import add_blocks, add_counted, prune, restore_counted, take_blocks
from capture.store.sqlite_file import open_file
from capture.store.sqlite_rows import less, merged, sample_of, sample_row, stored_signature

_SAMPLE_COLUMNS: Final = "size, shapes, outcome, captured_at, path, headers, wire_body, body"


class SqliteStore:
    """See :class:`capture.store.base.Store`. One instance belongs to one thread at a time."""

    shared = False

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._db = connection
        self._file = _file_id(path)
        #: The hour in which the tables with a bound were last brought within it.
        self._pruned = 0

    @classmethod
    def open(cls, path: Path, *, create: bool = False, allow_shared: bool = False) -> SqliteStore:
        """Open or create the file. Raises StoreError with the remedy: absent, no warmtap store, of a newer warmtap,
        open to others (unless ``allow_shared``)."""
        return cls(path, open_file(path, create=create, allow_shared=allow_shared))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.rollback()
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            if self._db.in_transaction:
                self._db.rollback()
            raise StoreError(f"store {self.path}: {error}") from None

    def _rows(self, sql: str, *values: Any) -> list[Any]:
        with self._errors():
            return self._db.execute(sql, values).fetchall()

    # --- writing ---

    def _insist(self) -> None:
        """Raise StoreGone where the path is another file by now: SQLite would go on writing to one without a name."""
        if (found := _file_id(self.path)) != self._file or found is None:
            what = "deleted or moved" if found is None else "replaced by another file"
            raise StoreGone(f"store {self.path}: {what} while it was open")

    def apply(self, batch: Batch) -> None:
        self._insist()
        with self._transaction() as db:
            for move in batch.moves:
                _move(db, move)
            ids = {key: _count(db, key, delta) for key, delta in batch.seen.items()}
            _evict(db, batch.evicted)
            for key, sample in batch.samples.items():
                row = ids.get(key) or _signature_id(db, key)
                if row is not None:
                    db.execute(
                        f"INSERT INTO samples (signature_id, {_SAMPLE_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?)"  # noqa: S608
                        " ON CONFLICT (signature_id) DO UPDATE SET size=excluded.size, shapes=excluded.shapes,"
                        " outcome=excluded.outcome, captured_at=excluded.captured_at, path=excluded.path,"
                        " headers=excluded.headers, wire_body=excluded.wire_body, body=excluded.body",
                        (row, *sample_row(sample)),
                    )
                    db.execute("UPDATE signatures SET evicted=0 WHERE id=?", (row,))
            for key, held in batch.held_out.values():
                row = ids.get(key) or _signature_id(db, key)
                if row is not None:
                    db.execute(
                        f"INSERT OR REPLACE INTO held_out (id, signature_id, draw, for_signature, {_SAMPLE_COLUMNS})"  # noqa: S608
                        " VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                        (held.id, row, held.draw, held.for_signature, *sample_row(held.sample)),
                    )
            _release(db, batch.released)
            db.executemany(
                "INSERT INTO refusals VALUES (?,?,?,?,?) ON CONFLICT DO UPDATE SET count=count+excluded.count",
                [(*key, count) for key, count in batch.refusals.items()],
            )
            db.executemany(
                "INSERT INTO ignored VALUES (?,?) ON CONFLICT DO UPDATE SET count=count+excluded.count",
                list(batch.ignored.items()),
            )
            _keep_metadata(db, batch.metadata.values())
            if (hour := int(batch.updated_at // HOUR)) > self._pruned:
                prune(db)
                self._pruned = hour
            if batch.forget_before:
                db.execute("DELETE FROM signatures WHERE last_seen < ?", (batch.forget_before,))
            if batch.counted:
                restore_counted(db, batch.counted)
            if batch.counters:
                before = db.execute("SELECT counters FROM runs WHERE run=?", (batch.run,)).fetchone()
                known = {} if before is None else msgspec.json.decode(before[0], type=dict[str, int])
                if batch.counted is None:
                    add_counted(db, known, batch.counters, batch.updated_at)
                db.execute(
                    "INSERT OR REPLACE INTO runs VALUES (?,?,?)",
                    (batch.run, batch.updated_at, msgspec.json.encode(batch.counters).decode()),
                )

    # --- reading ---

    def signatures(self, model: str | None = None) -> list[StoredSignature]:
        rows = self._rows(
            "SELECT s.family, s.model, s.version, s.digest, s.signature, s.proven, s.unproven, s.first_seen,"
            " s.last_seen, s.hours, s.shapes, s.senders, s.evicted, p.captured_at, p.size, p.shapes, p.outcome"
            " FROM signatures s LEFT JOIN samples p ON p.signature_id = s.id WHERE ?1 IS NULL OR s.model = ?1"
            " ORDER BY s.proven + s.unproven DESC, s.digest, s.version",
            model,
        )
        with self._errors():
            return [stored_signature(row) for row in rows]

    def totals(self) -> list[StoredTotal]:
        rows = self._rows(
            "SELECT family, model, version, count(*),"
            " coalesce(sum((SELECT size FROM samples WHERE signature_id=s.id)), 0)"
            " + coalesce(sum((SELECT sum(size) FROM held_out WHERE signature_id=s.id)), 0)"
            " FROM signatures s GROUP BY family, model, version ORDER BY family, model, version"
        )
        return [StoredTotal(ModelVersion(*row[:3]), *row[3:]) for row in rows]

    def sample(self, key: RecordKey) -> Sample | None:
        rows = self._rows(
            f"SELECT {_SAMPLE_COLUMNS} FROM samples WHERE signature_id ="  # noqa: S608
            " (SELECT id FROM signatures WHERE family=? AND model=? AND version=? AND digest=?)",
            *key.owner,
            key.digest,
        )
        return sample_of(rows[0]) if rows else None

    def held_out_index(self) -> list[StoredHeldOut]:
        rows = self._rows(
            "SELECT s.family, s.model, s.version, s.digest, h.id, h.draw, h.for_signature, h.size, h.captured_at"
            " FROM held_out h JOIN signatures s ON s.id = h.signature_id"
        )
        return [
            StoredHeldOut(RecordKey(ModelVersion(*row[:3]), row[3]), row[4], row[5], bool(row[6]), row[7], row[8])
            for row in rows
        ]

    def held_out(self, model: str | None = None) -> Iterator[tuple[RecordKey, HeldOut]]:
        rows = self._rows(
            "SELECT s.family, s.model, s.version, s.digest, h.id FROM held_out h"
            " JOIN signatures s ON s.id = h.signature_id WHERE ?1 IS NULL OR s.model = ?1"
            " ORDER BY h.captured_at, h.id",
            model,
        )
        for family, name, version, digest, held_id in rows:
            found = self._rows(
                f"SELECT {_SAMPLE_COLUMNS}, draw, for_signature FROM held_out WHERE id=?",  # noqa: S608
                held_id,
            )
            # A running sidecar may have released it since.
            for row in found:
                held = HeldOut(held_id, sample_of(row[:-2]), row[-2], bool(row[-1]))
                yield RecordKey(ModelVersion(family, name, version), digest), held

    def refusals(self) -> list[tuple[str, str, str, str, int]]:
        return self._rows(
            "SELECT family, model, outcome, reason, count FROM refusals"
            " ORDER BY count DESC, reason, family, model, outcome"
        )

    def ignored(self) -> list[tuple[str, int]]:
        return self._rows("SELECT what, count FROM ignored ORDER BY count DESC, what")

    def metadata(self, model: str | None = None) -> list[StoredMetadata]:
        rows = self._rows(
            "SELECT family, model, version, fetched_at, body FROM metadata WHERE ?1 IS NULL OR model = ?1"
            " ORDER BY fetched_at DESC, family, model, version",
            model,
        )
        return [StoredMetadata(ModelVersion(*row[:3]), *row[3:]) for row in rows]

    def blocks(self, model: str | None = None, since_hour: int = 0) -> list[StoredBlock]:
        rows = self._rows(
            "SELECT s.family, s.model, s.version, s.digest, b.hour, b.client, b.calls FROM blocks b"
            " JOIN signatures s ON s.id = b.signature_id WHERE b.hour >= ?2 AND (?1 IS NULL OR s.model = ?1)"
            " ORDER BY b.hour, s.digest, s.version, b.client",
            model,
            since_hour,
        )
        return [StoredBlock(RecordKey(ModelVersion(*row[:3]), row[3]), *row[4:]) for row in rows]

    def counted(self, since_hour: int = 0) -> dict[str, int]:
        return dict(self._rows("SELECT what, sum(count) FROM counted WHERE hour >= ? GROUP BY what", since_hour))

    def counted_by_hour(self) -> dict[tuple[int, str], int]:
        return {(hour, what): count for hour, what, count in self._rows("SELECT hour, what, count FROM counted")}

    def counters(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for (text,) in self._rows("SELECT counters FROM runs"):
            total.update(msgspec.json.decode(text, type=dict[str, int]))
        return dict(total)

    def runs(self) -> dict[str, StoredRun]:
        rows = self._rows("SELECT run, updated_at, counters FROM runs ORDER BY run")
        return {run: StoredRun(at, msgspec.json.decode(text, type=dict[str, int])) for run, at, text in rows}

    def close(self) -> None:
        self._db.close()


def _file_id(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one at the same path; None where there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"store {path}: {error.strerror}") from None
    return found.st_dev, found.st_ino


def _signature_id(db: sqlite3.Connection, key: RecordKey) -> int | None:
    row = db.execute(
        "SELECT id FROM signatures WHERE family=? AND model=? AND version=? AND digest=?", (*key.owner, key.digest)
    ).fetchone()
    return None if row is None else int(row[0])


def _evict(db: sqlite3.Connection, keys: Iterable[RecordKey]) -> None:
    for key in keys:
        row = _signature_id(db, key)
        db.execute("UPDATE signatures SET evicted=1, shapes='{}', senders='{}' WHERE id=?", (row,))
        db.execute("DELETE FROM samples WHERE signature_id=?", (row,))


def _release(db: sqlite3.Connection, released: dict[str, tuple[float | None, bool]]) -> None:
    for held_id, (draw, for_signature) in released.items():
        if draw is None and not for_signature:
            db.execute("DELETE FROM held_out WHERE id=?", (held_id,))
        else:
            db.execute("UPDATE held_out SET draw=?, for_signature=? WHERE id=?", (draw, for_signature, held_id))


def _move(db: sqlite3.Connection, move: Move) -> None:
    """Of what has gone from the source since (by its age, by another writer) nothing is moved."""
    delta = move.delta
    found = db.execute(
        "SELECT id, shapes, senders, proven, unproven FROM signatures"
        " WHERE family=? AND model=? AND version=? AND digest=?",
        (*move.source.owner, move.source.digest),
    ).fetchone()
    _evict(db, move.evicted)
    _release(db, move.released)
    if found is None:
        return
    source, shapes, senders, proven, unproven = found
    target = _count(db, move.target, delta)
    take_blocks(db, source, delta)
    proven, unproven = max(0, proven - delta.proven), max(0, unproven - delta.unproven)
    db.execute(
        "UPDATE signatures SET proven=?, unproven=?, shapes=?, senders=? WHERE id=?",
        (proven, unproven, less(shapes, delta.shapes), less(senders, delta.senders), source),
    )
    if move.sample:
        db.execute(
            f"INSERT OR REPLACE INTO samples (signature_id, {_SAMPLE_COLUMNS})"  # noqa: S608
            f" SELECT ?, {_SAMPLE_COLUMNS} FROM samples WHERE signature_id=?",
            (target, source),
        )
        db.execute("UPDATE signatures SET evicted=0 WHERE id=?", (target,))
    for held_id, roles in move.held.items():
        db.execute("UPDATE held_out SET signature_id=? WHERE id=?", (target, held_id))
        _release(db, {held_id: roles})
    if not proven and not unproven:
        db.execute(
            "DELETE FROM signatures WHERE id=?1 AND NOT EXISTS (SELECT 1 FROM held_out WHERE signature_id=?1)",
            (source,),
        )


def _keep_metadata(db: sqlite3.Connection, found: Collection[StoredMetadata]) -> None:
    if found:
        db.executemany(
            "INSERT OR REPLACE INTO metadata VALUES (?,?,?,?,?)",
            [(*one.owner, one.fetched_at, one.body) for one in found],
        )
        db.execute(
            "DELETE FROM metadata WHERE (family, model, version) IN (SELECT family, model, version FROM metadata"
            " ORDER BY fetched_at DESC LIMIT -1 OFFSET ?)",
            (MAX_METADATA,),
        )


def _count(db: sqlite3.Connection, key: RecordKey, delta: SignatureDelta) -> int:
    """Add what was seen of one signature; its row id."""
    found = db.execute(
        "SELECT id, shapes, senders FROM signatures WHERE family=? AND model=? AND version=? AND digest=?",
        (*key.owner, key.digest),
    ).fetchone()
    if found is None:
        row = db.execute(
            "INSERT INTO signatures (family, model, version, digest, signature, proven, unproven, first_seen,"
            " last_seen, hours, shapes, senders) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                *key.owner,
                key.digest,
                msgspec.json.encode(delta.signature).decode(),
                delta.proven,
                max(0, delta.unproven),
                delta.first_seen,
                delta.last_seen,
                delta.hours,
                merged("{}", delta.shapes, MAX_SHAPES),
                merged("{}", delta.senders, MAX_SENDERS),
            ),
        ).lastrowid
        assert row is not None
        add_blocks(db, row, delta)
        return row
    row, shapes, senders = found
    db.execute(
        "UPDATE signatures SET proven=proven+?, unproven=max(0, unproven+?), hours=hours+?,"
        " first_seen=min(first_seen, ?), last_seen=max(last_seen, ?), shapes=?, senders=? WHERE id=?",
        (
            delta.proven,
            delta.unproven,
            delta.hours,
            delta.first_seen,
            delta.last_seen,
            merged(shapes, delta.shapes, MAX_SHAPES),
            merged(senders, delta.senders, MAX_SENDERS),
            row,
        ),
    )
    add_blocks(db, row, delta)
    return int(row)
