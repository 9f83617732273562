"""The file of the embedded store: what it looks like, how it is recognised, created and brought up to date."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import struct
import time
from pathlib import Path
from typing import Final

from capture.store.base import StoreError
from capture.store.sqlite_blocks import TABLES as BLOCKS

#: "wtap": tells a warmtap store from any other SQLite file (PRAGMA application_id).
APPLICATION_ID: Final = 0x77746170
#: Raised with every change to the tables; an older file is migrated on opening, a newer one refused.
SCHEMA_VERSION: Final = 3
#: How long a writer waits for another one, milliseconds.
BUSY_TIMEOUT_MS: Final = 5000
#: Seconds between attempts to open a store that others open in the same moment.
RETRY_SECONDS: Final = 0.02

#: Since format 2.
_METADATA: Final = """
CREATE TABLE metadata (
  family TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL, fetched_at REAL NOT NULL, body BLOB NOT NULL,
  PRIMARY KEY (family, model, version)
) WITHOUT ROWID;
"""
_SCHEMA: Final = f"""
CREATE TABLE signatures (
  id INTEGER PRIMARY KEY,
  family TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL, digest TEXT NOT NULL,
  signature TEXT NOT NULL,
  proven INTEGER NOT NULL, unproven INTEGER NOT NULL,
  first_seen REAL NOT NULL, last_seen REAL NOT NULL, hours INTEGER NOT NULL,
  shapes TEXT NOT NULL, senders TEXT NOT NULL, evicted INTEGER NOT NULL DEFAULT 0,
  UNIQUE (family, model, version, digest)
);
CREATE TABLE samples (
  signature_id INTEGER PRIMARY KEY REFERENCES signatures (id) ON DELETE CASCADE,
  size INTEGER NOT NULL, shapes TEXT NOT NULL, outcome TEXT NOT NULL, captured_at REAL NOT NULL,
  path TEXT NOT NULL, headers TEXT NOT NULL, wire_body BLOB, body BLOB NOT NULL
);
CREATE TABLE held_out (
  id TEXT PRIMARY KEY,
  signature_id INTEGER NOT NULL REFERENCES signatures (id) ON DELETE CASCADE,
  draw REAL, for_signature INTEGER NOT NULL,
  size INTEGER NOT NULL, shapes TEXT NOT NULL, outcome TEXT NOT NULL, captured_at REAL NOT NULL,
  path TEXT NOT NULL, headers TEXT NOT NULL, wire_body BLOB, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX held_out_signature ON held_out (signature_id);
CREATE TABLE refusals (
  family TEXT NOT NULL, model TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL, count INTEGER NOT NULL,
  PRIMARY KEY (family, model, outcome, reason)
) WITHOUT ROWID;
CREATE TABLE ignored (what TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE runs (run TEXT PRIMARY KEY, updated_at REAL NOT NULL, counters TEXT NOT NULL) WITHOUT ROWID;
{_METADATA}
{"".join(BLOCKS)}
"""

#: Statements that lead from schema version N to N+1, by N.
_MIGRATIONS: Final[dict[int, tuple[str, ...]]] = {1: (_METADATA,), 2: BLOCKS}


def open_file(path: Path, *, create: bool, allow_shared: bool = False) -> sqlite3.Connection:
    """Open or create it. Raises StoreError with the remedy: absent, no warmtap store, of a newer warmtap, open to
    others (unless ``allow_shared``)."""
    if create:
        try:
            # Created here so that it is never readable by others, not for a moment; -wal and -shm take after it. Only
            # where it is not there: closing any descriptor of it would drop the locks of this process (sqlite.org,
            # "How To Corrupt An SQLite Database File", 2.2).
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            _must_be_a_file(path)
            if not os.access(path, os.R_OK | os.W_OK):
                raise StoreError(f"store {path}: {os.strerror(errno.EACCES)}") from None
        except OSError as error:
            raise StoreError(f"store {path}: {error.strerror}") from None
        except ValueError as error:
            raise StoreError(f"store {str(path)!r}: {error}") from None
    else:
        _must_be_a_file(path)
    if not allow_shared and _may_be_store(path, create=create):
        _must_be_private(path, write=create)
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            return _connect(path, create=create, allow_shared=allow_shared)
        except sqlite3.Error as error:
            # Where waiting could not end (two that turn the same file to WAL), SQLite says so at once and waits for
            # nobody: the other one is done in a moment.
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise StoreError(f"store {path}: {_explained(error)}") from None
            time.sleep(RETRY_SECONDS)


def _connect(path: Path, *, create: bool, allow_shared: bool) -> sqlite3.Connection:
    """One attempt. Raises StoreError, sqlite3.Error."""
    connection = None
    try:
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, check_same_thread=False
        )
        _recognise(path, connection, create=create)
        # Again, where the header of a new store was in the log only.
        if not allow_shared:
            _must_be_private(path, write=create)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")
        _prepare(connection)
    except (sqlite3.Error, StoreError):
        if connection is not None:
            connection.close()
        raise
    return connection


def _must_be_a_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"store {path}: no such file; start the sidecar with this store first, or name another"
        ) from None
    except OSError as error:
        raise StoreError(f"store {path}: {error.strerror}") from None
    except ValueError as error:
        raise StoreError(f"store {str(path)!r}: {error}") from None
    if stat.S_ISDIR(mode):
        raise StoreError(f"store {path}: Is a directory; name the file")
    if not stat.S_ISREG(mode):
        raise StoreError(f"store {path}: not a regular file; name another")


def _may_be_store(path: Path, *, create: bool) -> bool:
    """Whether this is a store by its first bytes, or one to be created in an empty file, or may not be read: only then
    is anybody told to change its mode. A private one is not read: closing a descriptor would drop locks, see above."""
    try:
        if not path.stat().st_mode & 0o077:
            return True
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
    except OSError:
        return True
    if not head:
        return create
    return len(head) == _HEADER.size and _HEADER.unpack(head) == (b"SQLite format 3\0", APPLICATION_ID)


#: The database header up to the application id (sqlite.org/fileformat.html, 1.3).
_HEADER: Final = struct.Struct(">16s52xI")


def _must_be_private(path: Path, *, write: bool) -> None:
    """Raise StoreError where others may read or write the store: it holds real requests. ``write``: also where it
    belongs to another user, who would read what this one writes.

    The log beside it holds requests too. A directory that others may write to is allowed (a volume of a container is
    one as a rule): they cannot read the file there, and one that takes its place is noticed (StoreGone)."""
    real = os.path.realpath(path)  # SQLite puts the log beside the file, not beside a link to it
    for name in (real, f"{real}-wal", f"{real}-shm"):
        try:
            found = os.stat(name)
        except OSError:
            continue  # not there; what else is wrong is said when it is opened
        shown = path if name == real else name
        if mode := found.st_mode & 0o077:
            raise StoreError(
                f"store {shown}: others may {_MAY[bool(mode & 0o055), bool(mode & 0o022)]} it (mode"
                f" {stat.S_IMODE(found.st_mode):04o}); chmod 600 {name}, or allow it with --allow-shared-store"
                " (settings: capture.allow_shared_store)"
            )
        if write and found.st_uid != os.geteuid():
            raise StoreError(
                f"store {shown}: belongs to another user (uid {found.st_uid}, this one is {os.geteuid()}); chown it,"
                " name another, or allow it with --allow-shared-store (settings: capture.allow_shared_store)"
            )


#: By whether they may read (or run) and write.
_MAY: Final = {(True, True): "read and write", (True, False): "read", (False, True): "write"}


def _explained(error: sqlite3.Error) -> str:
    """SQLite's text, and what it means where that is not plain."""
    if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return f"{error}; it is no warmtap store, or it is damaged"
    return str(error)


def _recognise(path: Path, db: sqlite3.Connection, *, create: bool) -> None:
    """Raise StoreError unless the file is a store of this format or older, or empty and to be created. Only reads:
    another program's file must stay as it is."""
    # One transaction: another process may be creating it.
    db.execute("BEGIN")
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    empty = _is_empty(db)
    db.execute("COMMIT")
    if empty:
        if not create:
            raise StoreError(f"store {path}: empty; start the sidecar with this store first, or name another")
    elif application != APPLICATION_ID:
        raise StoreError(f"store {path}: a SQLite file, but no warmtap store; name another file")
    elif version > SCHEMA_VERSION:
        raise StoreError(
            f"store {path}: written by a newer warmtap (format {version}, this one reads up to {SCHEMA_VERSION});"
            " upgrade warmtap or name another file"
        )


def _is_empty(db: sqlite3.Connection) -> bool:
    return (
        db.execute("PRAGMA application_id").fetchone()[0] == 0
        and db.execute("PRAGMA user_version").fetchone()[0] == 0
        and db.execute("SELECT 1 FROM sqlite_master").fetchone() is None
    )


def _prepare(db: sqlite3.Connection) -> None:
    """Create the tables, or bring an older file up to date."""
    if _is_empty(db):
        try:
            db.executescript(
                f"BEGIN IMMEDIATE; PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION};"
                f" {_SCHEMA} COMMIT;"
            )
        except sqlite3.OperationalError:
            # Another process created it in the same moment: then it is there now.
            db.rollback()
            if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise
        return
    if db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
        return
    # All steps or none; whoever waited for another process finds them done.
    db.execute("BEGIN IMMEDIATE")
    try:
        for step in range(db.execute("PRAGMA user_version").fetchone()[0], SCHEMA_VERSION):
            for statement in _MIGRATIONS[step]:
                db.execute(statement)
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        db.execute("COMMIT")
    except sqlite3.Error:
        db.rollback()
        raise
