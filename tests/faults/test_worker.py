"""The capture worker dies, stops, loops, eats memory; its disk fills, slows, breaks. No client notices."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.conftest import Front, Start
from tests.support import shim
from tests.support.net_sidecar import wait_gone
from tests.support.waiting import until

pytestmark = pytest.mark.server
FAULTY = "tests.support.faulty_sidecar"


def trigger(front: Front) -> None:
    """The request that the faulty worker fails on."""
    connection = http.client.HTTPConnection("127.0.0.1", front.port)
    with closing(connection):
        connection.request("POST", "/trigger-the-fault", b"x")
        assert connection.getresponse().status == 200


def fill(path: Path) -> None:
    """Take all the room that is left."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_killed_again_and_again(start: Start) -> None:
    front = start(workers=2)
    with front.unharmed() as clients:
        for number in range(1, 5):
            os.kill(front.sidecar.pid("worker", number), signal.SIGKILL)
            front.sidecar.wait_for("worker started", number + 2)
            clients.more(30)
    front.captures()
    assert front.count("relay_starts") == 2


def test_stopped_and_continued(start: Start) -> None:
    front = start(tap={"buffer_bytes": 1 << 20})
    front.sidecar.wait_for("msg=reading")
    with front.unharmed():
        os.kill(front.sidecar.pid("worker"), signal.SIGSTOP)
        # Until the buffer is full and the loss is counted: capture pays, never the client.
        until(lambda: front.count("tap_lost_client_bytes") > 1 << 20, "losses")
        os.kill(front.sidecar.pid("worker"), signal.SIGCONT)
    front.captures()


def test_an_endless_loop_is_told_and_its_successor_reads_on(start: Start, tmp_path: Path) -> None:
    front = start(FAULTY, env={"WARMTAP_FAULT": "loop", "WARMTAP_FAULT_DONE": str(tmp_path / "done")})
    front.sidecar.wait_for("msg=reading")
    with front.unharmed():
        trigger(front)
        front.sidecar.wait_for("worker does not read what waits for it")
        # It would be killed after a minute; the test does not wait for that.
        os.kill(front.sidecar.pid("worker"), signal.SIGKILL)
        front.sidecar.wait_for("msg=reading", 2)
    front.captures()


def test_an_allocation_without_bound_ends_the_worker_alone(start: Start, tmp_path: Path) -> None:
    front = start(
        FAULTY,
        env={"WARMTAP_FAULT": "allocate", "WARMTAP_FAULT_DONE": str(tmp_path / "done")},
        capture={"store": str(tmp_path / "store.sqlite"), "memory_bytes": 512 << 20},
    )
    front.sidecar.wait_for("msg=reading")
    with front.unharmed():
        trigger(front)
        front.sidecar.wait_for("worker ended.*status=[13]")
        front.sidecar.wait_for("msg=reading", 2)
    front.captures()
    assert front.count("relay_starts") == 1


def test_a_full_disk(start: Start, small_disk: Path) -> None:
    front = start(store=small_disk)
    front.sidecar.wait_for("msg=reading")
    front.captures()
    with front.unharmed():
        fill(small_disk / "ballast")
        until(lambda: front.call((f"n{front.count('requests_proven')}",)) or front.count("store_failures"), "failures")
        front.sidecar.wait_for("store failed")
        (small_disk / "ballast").unlink()
    written = front.count("store_writes")
    until(lambda: front.count("store_writes") > written, "a write after the disk has room")
    front.captures()


def test_a_store_on_a_read_only_file_system(start: Start, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    front = start(store=small_disk)
    with front.unharmed():
        front.sidecar.wait_for("store unusable")
        front.sidecar.wait_for("capture is not running")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    front.captures()


def test_a_slow_disk(start: Start, tmp_path: Path) -> None:
    library = shim.build(shim.SLOW_DISK, tmp_path, "slow")
    front = start(env={"LD_PRELOAD": library})
    with front.unharmed():
        front.captures()
    assert front.count("store_failures") == 0


@pytest.mark.parametrize("how", ["overwritten", "truncated", "deleted"])
def test_a_store_that_is_destroyed_while_it_is_used(start: Start, tmp_path: Path, how: str) -> None:
    store = tmp_path / "store.sqlite"
    front = start()
    front.sidecar.wait_for("msg=reading")
    front.captures()
    with front.unharmed():
        if how == "overwritten":
            with store.open("r+b") as file:
                file.write(os.urandom(64 << 10))
            for side in ("-wal", "-shm"):
                with open(f"{store}{side}", "r+b") as file:
                    file.write(os.urandom(4096))
        elif how == "truncated":
            os.truncate(store, 100)
        else:
            store.unlink()
        for number in range(20):
            front.call((f"new{number}",))
    if how == "deleted":
        front.captures()
        until(store.exists, "a new store")
    else:
        # It does not write into what it cannot read; with the file away a new store is made.
        os.kill(front.sidecar.pid("worker", front.count("worker_starts")), signal.SIGKILL)
        for side in ("", "-wal", "-shm"):
            Path(f"{store}{side}").unlink(missing_ok=True)
        front.captures()


def test_the_clock_jumps(start: Start, tmp_path: Path) -> None:
    offset = tmp_path / "offset"
    offset.write_text("0")
    library = shim.build(shim.CLOCK, tmp_path, "clock")
    front = start(env={"LD_PRELOAD": library, "CLOCK_OFFSET": str(offset)})
    front.sidecar.wait_for("msg=reading")
    front.captures()
    with front.unharmed():
        for seconds in (400 * 86400, -400 * 86400, 0):
            offset.write_text(str(seconds))
            front.captures()
    assert front.count("relay_starts") == front.count("worker_starts") == 1


def test_the_supervisor_is_killed_and_nothing_is_left(start: Start) -> None:
    front = start(workers=2)
    children = [front.sidecar.pid(name, number) for name in ("relay", "worker") for number in (1, 2)]
    front.sidecar.stop(signal.SIGKILL)
    for pid in children:
        wait_gone(pid)
