"""Who called what in which hour, and what was lost then: two tables of the embedded store, bounded by their age."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Final

from capture.store.base import COUNTED, HOUR, MAX_SENDERS, OTHER, SignatureDelta

#: Rows of ``blocks``, some 30 bytes each; beyond it the oldest hours are deleted. Ten signatures of four clients fill
#: it in ten months.
MAX_BLOCKS: Final = 300_000

#: Since format 3; made one by one.
TABLES: Final = (
    """
CREATE TABLE blocks (
  signature_id INTEGER NOT NULL REFERENCES signatures (id) ON DELETE CASCADE,
  hour INTEGER NOT NULL, client TEXT NOT NULL, calls INTEGER NOT NULL,
  PRIMARY KEY (signature_id, hour, client)
) WITHOUT ROWID;
""",
    """
CREATE TABLE counted (
  hour INTEGER NOT NULL, what TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (hour, what)
) WITHOUT ROWID;
""",
)


def add_blocks(db: sqlite3.Connection, signature_id: int, delta: SignatureDelta) -> None:
    """Add the calls of one signature. Beyond ``MAX_SENDERS`` clients in an hour the rest is one client, "(other)"."""
    for (hour, client), calls in delta.blocks.items():
        known = {
            name
            for (name,) in db.execute("SELECT client FROM blocks WHERE signature_id=? AND hour=?", (signature_id, hour))
        }
        name = client if client in known or len(known) < MAX_SENDERS else OTHER
        db.execute(
            "INSERT INTO blocks VALUES (?,?,?,?) ON CONFLICT DO UPDATE SET calls=calls+excluded.calls",
            (signature_id, hour, name, calls),
        )


def take_blocks(db: sqlite3.Connection, signature_id: int, delta: SignatureDelta) -> None:
    """Take away what :func:`add_blocks` has added."""
    for (hour, client), calls in delta.blocks.items():
        place = (signature_id, hour)
        named = db.execute(
            "UPDATE blocks SET calls=calls-? WHERE signature_id=? AND hour=? AND client=?", (calls, *place, client)
        )
        if not named.rowcount:
            db.execute(
                "UPDATE blocks SET calls=calls-? WHERE signature_id=? AND hour=? AND client=?", (calls, *place, OTHER)
            )
        db.execute("DELETE FROM blocks WHERE signature_id=? AND hour=? AND calls<=0", place)


def add_counted(db: sqlite3.Connection, before: Mapping[str, int], now: Mapping[str, int], at: float) -> None:
    """Add by how much the counters of a run have grown, to the hour of ``at``."""
    grown = {name: now.get(name, 0) - before.get(name, 0) for name in COUNTED}
    db.executemany(
        "INSERT INTO counted VALUES (?,?,?) ON CONFLICT DO UPDATE SET count=count+excluded.count",
        [(int(at // HOUR), name, count) for name, count in grown.items() if count > 0],
    )


def restore_counted(db: sqlite3.Connection, counted: Mapping[tuple[int, str], int]) -> None:
    """Add counts whose hours are known."""
    db.executemany(
        "INSERT INTO counted VALUES (?,?,?) ON CONFLICT DO UPDATE SET count=count+excluded.count",
        [(hour, what, count) for (hour, what), count in counted.items()],
    )


def prune(db: sqlite3.Connection) -> None:
    """Delete the oldest hours of both tables, down to nine tenths of the bound."""
    (rows,) = db.execute("SELECT count(*) FROM blocks").fetchone()
    if rows > MAX_BLOCKS:
        (oldest,) = db.execute(
            "SELECT hour FROM blocks ORDER BY hour LIMIT 1 OFFSET ?", (rows - MAX_BLOCKS * 9 // 10,)
        ).fetchone()
        db.execute("DELETE FROM blocks WHERE hour <= ?", (oldest,))
        db.execute("DELETE FROM counted WHERE hour <= ?", (oldest,))
