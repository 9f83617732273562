"""One of several jobs works on a model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from capture.errors import UserError
from capture.store.base import Batch, StoreError, open_store
from replay.refreshing.fleet_lock import FleetLock
from replay.refreshing.job import What, run_job
from replay.refreshing.lock import FileLock, held
from tests.support.processes import ROOT
from tests.support.refreshing import Script, body, job, saved_model
from tests.support.stores import add, filled, signature
from tests.support.valkey import Server
from tests.support.waiting import until


class Lease:
    """A fleet's lock by script."""

    def __init__(self, *answers: bool | StoreError) -> None:
        self.answers = list(answers)
        self.renewed = 0
        self.closed = self.released = False

    def _answer(self) -> bool:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, StoreError):
            raise answer
        return answer

    def acquire(self) -> bool:
        return self._answer()

    def renew(self) -> bool:
        self.renewed += 1
        return self._answer()

    def release(self) -> bool:
        self.released = True
        return True

    def close(self) -> None:
        self.closed = True


def fleet(lease: Lease, seconds: float = 60.0) -> FleetLock:
    return FleetLock(lambda: (lease, lease.close), seconds)


def test_a_second_job_does_nothing_and_says_who_works(tmp_path: Path) -> None:
    batch = Batch("run")
    add(batch, signature(("a",)), body=body("x", "a"))
    store = filled(tmp_path / "store", batch)
    base = saved_model(tmp_path / "m" / "1").parent
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    with held([first]) as in_the_way:
        assert in_the_way == ""
        done = run_job(job(base, locks=[second]), store, trial=Script())
        assert [(one.version, one.what) for one in done] == [("", What.BUSY)]
        assert done[0].text.startswith(f"process {os.getpid()} on ")
    done = run_job(job(base, locks=[second]), store, trial=Script())
    assert [one.what for one in done] == [What.PUBLISHED]
    store.close()


@pytest.mark.server
def test_a_job_that_died_holding_it_blocks_nobody(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from replay.refreshing.lock import FileLock\n"
        "assert FileLock(Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert not FileLock(tmp_path / "lock").acquire()
        other.send_signal(signal.SIGKILL)
        other.wait()
        lock = FileLock(tmp_path / "lock")
        assert lock.acquire()
        lock.release()


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"state/lock: No such file or directory; the job needs a lock there"):
        FileLock(tmp_path / "none" / "state" / "lock").acquire()


def test_what_was_taken_is_given_back_where_another_one_is_in_the_way(tmp_path: Path) -> None:
    lease = Lease(False)
    with held([FileLock(tmp_path / "lock"), fleet(lease)]) as in_the_way:
        assert in_the_way == "another job (the store has its lock)"
    assert lease.closed
    assert FileLock(tmp_path / "lock").acquire()


def test_a_lease_that_was_lost_publishes_nothing(tmp_path: Path) -> None:
    batch = Batch("run")
    add(batch, signature(("a",)), body=body("x", "a"))
    store = filled(tmp_path / "store", batch)
    version = saved_model(tmp_path / "m" / "1")
    for lease, said in (
        (Lease(True, False), "another job has taken the lock meanwhile; nothing was published"),
        (Lease(True, StoreError("store x: away")), "store x: away; whether the lock is still held cannot be told"),
    ):
        done = run_job(job(version.parent, locks=[fleet(lease)]), store, trial=Script())
        assert [one.what for one in done] == [What.FAILED]
        assert done[0].text.startswith(said)
        assert lease.closed
        assert not (version / "assets.extra").exists()
    store.close()


def test_a_lease_is_renewed_while_the_job_works() -> None:
    lease = Lease(True, StoreError("away for a moment"), True)
    lock = fleet(lease, seconds=0.01)
    assert lock.acquire()
    until(lambda: lease.renewed >= 3, "renewals")
    assert lock.holds()
    lock.release()
    assert (lease.released, lease.closed) == (True, True)
    assert not lock.holds()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "valkey") as server:
        yield server


@pytest.mark.server
def test_the_lock_of_a_real_store(valkey: Server, tmp_path: Path) -> None:
    from capture.store.redis_lock import RedisLock
    from capture.store.redis_store import RedisStore

    with closing(open_store(valkey.url, create=True)) as store:
        store.apply(Batch("run"))

    def connect() -> tuple[RedisLock, Callable[[], None]]:
        store = open_store(valkey.url)
        assert isinstance(store, RedisStore)
        return store.lock("refresh/m", 30.0), store.close

    first, second = FleetLock(connect, 30.0), FleetLock(connect, 30.0)
    assert first.acquire()
    assert first.holds()
    assert not second.acquire()
    # Its time is over: as if its holder had been stopped for longer.
    with valkey.client() as client:
        for name in client.scan_iter("*lock*"):
            client.delete(name)
    assert second.acquire()
    assert not first.holds()
    first.release()
    assert second.holds()
    second.release()
