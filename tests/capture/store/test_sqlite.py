"""What is SQLite's own: files, modes, formats, kills."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from capture.store.base import Batch, StoreError, StoreGone, open_store
from capture.store.sqlite_file import APPLICATION_ID, SCHEMA_VERSION
from tests.support.stores import add, filled, signature
from tests.support.tf_models import ROOT


def refused(path: Path, *, create: bool = False) -> str:
    with pytest.raises(StoreError) as caught:
        open_store(str(path), create=create)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(str(path), "PATH")


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        batch = Batch("run1")
        add(batch, signature())
        store = filled(tmp_path / "s", batch)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"s": 0o600, "s-wal": 0o600, "s-shm": 0o600}
    store.close()


def test_the_url_may_name_the_kind(tmp_path: Path) -> None:
    open_store(f"sqlite:{tmp_path / 's'}", create=True).close()
    open_store(str(tmp_path / "s")).close()


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    assert refused(tmp_path / "s") == (
        "store PATH: no such file; start the sidecar with this store first, or name another"
    )
    assert not (tmp_path / "s").exists()
    assert refused(tmp_path / "none" / "s", create=True) == "store PATH: No such file or directory"


@pytest.mark.parametrize("create", [True, False])
def test_a_directory(tmp_path: Path, create: bool) -> None:
    assert refused(tmp_path, create=create).startswith("store PATH: Is a directory")


@pytest.mark.parametrize("create", [False, True])
def test_a_name_that_is_too_long(tmp_path: Path, create: bool) -> None:
    with pytest.raises(StoreError, match=r"/s{300}: File name too long$"):
        open_store(str(tmp_path / ("s" * 300)), create=create)


@pytest.mark.parametrize("create", [False, True])
def test_a_name_with_a_zero_byte(create: bool) -> None:
    with pytest.raises(StoreError, match=r"^store 'a\\x00b': embedded null byte$"):
        open_store("a\0b", create=create)


def test_something_that_is_no_file() -> None:
    with pytest.raises(StoreError, match=r"^store /dev/null: not a regular file; name another$"):
        open_store("/dev/null")


def test_a_directory_that_may_not_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As root no mode bit stops anyone: the system call is made to refuse.
    def refuse(path: Path) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(StoreError, match=r"/s: Permission denied$"):
        open_store(str(tmp_path / "s"))


def test_an_empty_file_is_a_store_only_for_who_creates(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.touch(0o600)
    assert refused(path) == "store PATH: empty; start the sidecar with this store first, or name another"
    assert path.stat().st_size == 0
    open_store(str(path), create=True).close()
    open_store(str(path)).close()


@pytest.mark.parametrize("create", [True, False])
def test_a_file_that_is_no_database(tmp_path: Path, create: bool) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"something else, long enough to be looked at\n" * 50)
    before = path.read_bytes()
    assert refused(path, create=create) == (
        "store PATH: file is not a database; it is no warmtap store, or it is damaged"
    )
    assert path.read_bytes() == before


@pytest.mark.parametrize("create", [True, False])
def test_another_programs_database_stays_as_it_is(tmp_path: Path, create: bool) -> None:
    path = tmp_path / "s"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    before = path.read_bytes()
    assert refused(path, create=create) == "store PATH: a SQLite file, but no warmtap store; name another file"
    assert path.read_bytes() == before
    assert [other.name for other in tmp_path.iterdir()] == ["s"]


def test_a_store_of_a_newer_warmtap(tmp_path: Path) -> None:
    path = tmp_path / "s"
    open_store(str(path), create=True).close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    db.close()
    for create in (True, False):
        assert refused(path, create=create) == (
            f"store PATH: written by a newer warmtap (format {SCHEMA_VERSION + 1}, this one reads up to"
            f" {SCHEMA_VERSION}); upgrade warmtap or name another file"
        )


def first_format(path: Path) -> None:
    """What warmtap wrote when its format was 1: without tables of metadata, blocks, and counters by the hour."""
    batch = Batch("run1")
    add(batch, signature())
    filled(path, batch).close()
    db = sqlite3.connect(path)
    db.executescript("DROP TABLE metadata; DROP TABLE blocks; DROP TABLE counted; PRAGMA user_version=1;")
    db.close()


def test_a_store_of_the_first_format_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first_format(path)
    with closing(open_store(str(path))) as store:
        assert [row.key.owner.version for row in store.signatures()] == ["1"]
        assert store.metadata() == []
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_many_bring_it_up_to_date_in_the_same_moment(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first_format(path)
    start, found = threading.Barrier(8), []

    def one() -> None:
        start.wait()
        with closing(open_store(str(path))) as store:
            found.append(store.metadata())

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[]] * 8


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s"
    open_store(str(path), create=True).close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


@pytest.mark.server
@pytest.mark.parametrize("existing", [False, True])
def test_a_place_that_may_not_be_written(tmp_path: Path, existing: bool) -> None:
    """Another user's directory: run as nobody, because root may write everywhere."""
    if os.getuid() != 0:
        pytest.skip("needs root to become another user")
    path = tmp_path / "s"
    if existing:
        open_store(str(path), create=True).close()
        path.chmod(0o444)
    os.chmod(tmp_path, 0o555)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            try:
                open_store(str(path), create=True)
            except StoreError as error:
                status = 0 if "\n" not in str(error) and "ermission denied" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    tmp_path.chmod(0o755)


def test_a_writer_that_holds_the_store_too_long_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capture.store.sqlite_file.BUSY_TIMEOUT_MS", 10)
    path = tmp_path / "s"
    store = open_store(str(path), create=True)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    batch = Batch("run1")
    add(batch, signature())
    with pytest.raises(StoreError, match="database is locked"):
        store.apply(batch)
    other.execute("ROLLBACK")
    other.close()
    store.apply(batch)
    assert len(store.signatures()) == 1
    store.close()


def test_many_may_create_it_at_once(tmp_path: Path) -> None:
    for turn in range(10):
        path, errors, barrier = tmp_path / f"s{turn}", [], threading.Barrier(6)

        def create(path: Path = path, errors: list[str] = errors, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                open_store(str(path), create=True).close()
            except StoreError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=create) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        open_store(str(path)).close()


@pytest.mark.parametrize("what", ["deleted or moved", "replaced by another file"])
def test_a_store_that_is_not_where_it_was_is_not_written(tmp_path: Path, what: str) -> None:
    path = tmp_path / "s"
    store = open_store(str(path), create=True)
    batch = Batch("run1")
    add(batch, signature())
    store.apply(batch)
    path.rename(tmp_path / "moved")
    if what.startswith("replaced"):
        open_store(str(path), create=True).close()
    with pytest.raises(StoreGone) as caught:
        store.apply(batch)
    assert str(caught.value) == f"store {path}: {what} while it was open"
    store.close()


def test_a_damaged_row_is_an_error_of_the_store(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "s"), create=True)
    batch = Batch("run1")
    add(batch, signature())
    store.apply(batch)
    with sqlite3.connect(tmp_path / "s") as other:
        other.execute("UPDATE signatures SET shapes='{'")
    other.close()
    for use in (store.signatures, lambda: store.apply(batch)):
        with pytest.raises(StoreError):
            use()
    store.close()


_WRITER = """
import sys
from capture.store.base import Batch, open_store
from tests.support.stores import add, held_out, signature
store = open_store(sys.argv[1], create=True)
number = int(sys.argv[2])
while True:
    number += 1
    batch = Batch("run1", counters={"requests_observed": number})
    key = add(batch, signature([f"o{number}"]), body=b"b" * (number * 7919 % 200_000))
    held_out(batch, key, f"h{number}", b"h" * 1000)
    store.apply(batch)
    print(number, flush=True)
"""


@pytest.mark.server
def test_a_kill_in_the_middle_of_writes_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path, chance, last = tmp_path / "s", random.Random(5), 0
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), str(last)], cwd=ROOT, stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            for _ in range(chance.randrange(1, 60)):
                last = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            # What it had written before the signal took effect was acknowledged as well.
            last = max(
                [last, *(int(line) for line in child.stdout.read().splitlines(keepends=True) if line.endswith(b"\n"))]
            )
        db = sqlite3.connect(path)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        db.close()
        store = open_store(str(path))
        numbers = {int(row.signature.outputs[0][1:]) for row in store.signatures() if row.signature.outputs}
        # All acknowledged ones, and at most the one that was being acknowledged.
        assert numbers in (set(range(1, last + 1)), set(range(1, last + 2)))
        for row in store.signatures():
            found = store.sample(row.key)
            assert found is not None
            assert len(found.body) == int(row.signature.outputs[0][1:]) * 7919 % 200_000  # type: ignore[index]
        assert len(store.held_out_index()) == len(numbers)
        assert store.counters()["requests_observed"] == max(numbers)
        last = max(numbers)
        store.close()


# --- who else may read it ---


def remedy(mode: str, may: str, name: str = "PATH") -> str:
    return (
        f"store {name}: others may {may} it (mode {mode}); chmod 600 {name}, or allow it with --allow-shared-store"
        " (settings: capture.allow_shared_store)"
    )


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize(
    ("mode", "may"),
    [(0o644, "read"), (0o660, "read and write"), (0o602, "write"), (0o640, "read")],
)
def test_a_store_that_others_may_reach_is_refused_unless_told(
    tmp_path: Path, mode: int, may: str, create: bool
) -> None:
    path = tmp_path / "s"
    open_store(str(path), create=True).close()
    path.chmod(mode)
    assert refused(path, create=create) == remedy(f"{mode:04o}", may)
    open_store(str(path), create=create, allow_shared=True).close()
    # Opening it changes nothing about who may read it: that is the owner's to decide.
    assert stat.S_IMODE(path.stat().st_mode) == mode
    path.chmod(0o600)
    open_store(str(path), create=create).close()


@pytest.mark.parametrize("name", ["s-wal", "s-shm"])
def test_the_log_beside_it_holds_requests_too(tmp_path: Path, name: str) -> None:
    with_log = open_store(str(tmp_path / "s"), create=True)
    try:
        (tmp_path / name).chmod(0o644)
        assert refused(tmp_path / "s").startswith(f"store PATH-{name[2:]}: others may read it (mode 0644); chmod 600 ")
    finally:
        with_log.close()


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_a_private_store_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        batch = Batch("run1")
        add(batch, signature())
        with closing(filled(tmp_path / "s", batch)), closing(open_store(str(tmp_path / "s"))):
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"s": 0o600, "s-wal": 0o600, "s-shm": 0o600}


def test_a_link_is_judged_by_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    path, link = tmp_path / "private" / "s", tmp_path / "link"
    opened = open_store(str(path), create=True)
    link.symlink_to(path)
    open_store(str(link)).close()
    # The log lies beside the file, not beside the link.
    (tmp_path / "private" / "s-wal").chmod(0o666)
    assert "private/s-wal: others may read and write it (mode 0666)" in refused(link)
    opened.close()
    path.chmod(0o604)
    assert refused(link, create=True).startswith("store PATH: others may read it (mode 0604); chmod 600 ")


def test_a_link_to_nothing_is_never_followed_to_create(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert "no such file" in refused(tmp_path / "link", create=True)
    assert not (tmp_path / "elsewhere").exists()


NOBODY, SOMEBODY = 65534, 65533


def as_user(uid: int, url: Path, *, create: bool) -> str:
    """What another user is told who opens the store; "" if it opens. In a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            open_store(str(url), create=create).close()
            text = ""
        except BaseException as error:
            text = f"{error}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:
        text = answer.read().decode()
    os.waitpid(child, 0)
    return text.replace(str(url), "PATH")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user may write to, and reach."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")
def test_users_other_than_root(open_directory: Path) -> None:
    path = open_directory / "s"
    # A user's own store opens, in a directory that everybody may write to.
    assert as_user(NOBODY, path, create=True) == ""
    assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (NOBODY, 0o600)
    assert as_user(NOBODY, path, create=False) == ""
    # Another user is kept out by the kernel; by us, where the mode would let him in.
    assert as_user(SOMEBODY, path, create=True) == "store PATH: Permission denied"
    assert as_user(SOMEBODY, path, create=False) == "store PATH: unable to open database file"
    path.chmod(0o644)
    assert as_user(SOMEBODY, path, create=False) == remedy("0644", "read")
    path.chmod(0o600)
    # Root may look at anybody's store, and does not write into one that its owner would read.
    open_store(str(path)).close()
    assert refused(path, create=True) == (
        f"store PATH: belongs to another user (uid {NOBODY}, this one is 0); chown it, name another, or allow it with"
        " --allow-shared-store (settings: capture.allow_shared_store)"
    )
    open_store(str(path), create=True, allow_shared=True).close()
