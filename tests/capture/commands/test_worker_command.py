"""``capture worker``: a worker that runs elsewhere and gets its tap through a Unix socket."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from capture.config import ListenerConfig, WorkerConfig
from capture.store.base import open_store
from tests.support.calls import predict, predict_response
from tests.support.net_handover import Handover
from tests.support.net_sidecar import wait_gone
from tests.support.processes import Process, capture
from tests.support.tap_frames import GrpcFlow
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server

LISTENERS = (ListenerConfig("grpc"),)


@pytest.fixture
def handover(tmp_path: Path) -> Iterator[Handover]:
    made = Handover(tmp_path / "worker.sock", pairs=2)
    yield made
    made.close()


def config(path: Path) -> WorkerConfig:
    return WorkerConfig(str(path), "run1", LISTENERS, flush_interval=0.01, retention=0.0)


def lines(path: Path) -> dict[str, int]:
    with closing(open_store(str(path))) as store:
        return {str(row.signature): row.hits for row in store.signatures()}


def call(handover: Handover, output: str, number: int = 1) -> GrpcFlow:
    flow = GrpcFlow(number)
    flow.call(predict(outputs=[output]), predict_response())
    handover.send(flow)
    return flow


def proven(handover: Handover, pair: int = 0) -> int:
    return handover.counters.of(pair).snapshot()["requests_proven"]


def test_it_reads_what_it_is_handed_and_writes_it_when_the_tap_ends(handover: Handover, tmp_path: Path) -> None:
    with Process("capture", "worker", "--connect", f"unix:{handover.path}") as process:
        handover.accept()
        handover.give(config(tmp_path / "store"), pair=1)
        call(handover, "a")
        until(lambda: proven(handover, 1) == 1, "the first call")
        assert proven(handover, 0) == 0
        # The relay is replaced: this tap ends, and the worker comes for the next.
        handover.tap.close()
        handover.accept()
        assert lines(tmp_path / "store") == {"Predict m/serving_default (x) -> (a)": 1}
        handover.give(config(tmp_path / "store"), pair=1)
        call(handover, "b")
        until(lambda: proven(handover, 1) == 2, "a call on the second tap")
        assert process.process.poll() is None
    # SIGTERM: what was read is written, and it ends with 0.
    assert set(lines(tmp_path / "store")) == {f"Predict m/serving_default (x) -> ({name})" for name in "ab"}
    assert process.error.count("msg=connected") == 2
    assert process.error.count("msg=stopped status=0") == 2


def test_everything_that_has_arrived_is_written_at_sigterm(handover: Handover, tmp_path: Path) -> None:
    with Process("capture", "worker", "--connect", f"unix:{handover.path}") as process:
        handover.accept()
        handover.give(config(tmp_path / "store"))
        process.wait_for("msg=reading")
        for number in range(1, 21):
            call(handover, f"o{number}", number)
    assert len(lines(tmp_path / "store")) == 20
    assert handover.counters.total()["worker_memory_bytes"] == 0


def test_it_waits_for_a_sidecar_that_is_not_there_and_says_so_once(tmp_path: Path) -> None:
    path = tmp_path / "worker.sock"
    with Process("capture", "worker", "--connect", f"unix:{path}") as process:
        process.wait_for('msg="waiting for the sidecar"')
        handover = Handover(path)
        handover.accept()
        handover.give(config(tmp_path / "store"))
        process.wait_for("msg=reading")
        # The sidecar is gone without a word, and comes back.
        call(handover, "a")
        handover.close()
        process.wait_for("msg=stopped")
        assert lines(tmp_path / "store") == {"Predict m/serving_default (x) -> (a)": 1}
        again = Handover(path)
        again.accept()
        again.give(config(tmp_path / "store"))
        process.wait_for("msg=reading", 2)
        again.close()
    said = [line for line in process.error.splitlines() if "waiting" in line]
    assert said[0].endswith(f'sidecar={path} reason="No such file or directory"')
    # One for each reason it waited for, however often it tried.
    assert len(said) == len(set(said)) <= 4


def test_the_store_can_be_elsewhere(handover: Handover, tmp_path: Path) -> None:
    place = tmp_path / "own"
    with Process("capture", "worker", "--connect", f"unix:{handover.path}", "--store", str(place)):
        handover.accept()
        handover.give(config(tmp_path / "not here" / "store"))
        call(handover, "a")
        until(lambda: proven(handover) == 1, "the call")
    assert lines(place) == {"Predict m/serving_default (x) -> (a)": 1}


def test_a_broken_connection_ends_the_tap_too(handover: Handover, tmp_path: Path) -> None:
    with Process("capture", "worker", "--connect", f"unix:{handover.path}") as process:
        handover.accept()
        handover.give(config(tmp_path / "store"))
        call(handover, "a")
        handover.link.close()
        process.wait_for("msg=stopped status=0")
        # Its end of the tap is closed: the relay learns that nobody reads.
        until(lambda: gone(handover.tap), "the tap's other end closed")
        handover.accept()
    assert lines(tmp_path / "store") == {"Predict m/serving_default (x) -> (a)": 1}


def gone(tap: socket.socket) -> bool:
    try:
        tap.send(b"")
        tap.sendall(b"\0")
    except OSError:
        return True
    return False


def test_descriptors_of_unknown_names_are_closed(handover: Handover, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, Process("capture", "worker", "--connect", f"unix:{handover.path}") as process:
        handover.accept()
        names = ("tap", "counters", "config", "later")
        handover.give(config(tmp_path / "store"), names=names, more=[theirs.fileno()], also="ignored")
        theirs.close()
        process.wait_for("msg=reading")
        ours.settimeout(PATIENCE)
        assert ours.recv(1) == b""
        held = len(os.listdir(f"/proc/{process.process.pid}/fd"))
        for _ in range(5):
            handover.tap.close()
            handover.accept()
            handover.give(config(tmp_path / "store"))
        handover.tap.close()
        handover.accept()
        handover.give(config(tmp_path / "store"))
        process.wait_for("msg=reading", 7)
        # Nothing is left open from one tap to the next; the last one's is given up a moment after the line.
        until(lambda: len(os.listdir(f"/proc/{process.process.pid}/fd")) <= held, "the descriptors of five taps closed")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"protocol": 2}, "it speaks protocol 2, this worker 1: run one version of both"),
        ({"names": ("tap", "counters")}, "it named 2 descriptors and sent 3"),
        ({"names": ("a", "b", "c")}, "it sent no tap, but: a, b, c"),
        ({"pair": "first"}, "it sent no tap: Expected `int`, got `str`"),
    ],
)
def test_a_handover_that_it_cannot_use_is_said_and_it_goes_on(
    handover: Handover, tmp_path: Path, wrong: dict[str, object], reason: str
) -> None:
    with Process("capture", "worker", "--connect", f"unix:{handover.path}") as process:
        handover.accept()
        handover.give(config(tmp_path / "store"), **wrong)  # type: ignore[arg-type]
        found = process.wait_for('msg="waiting for the sidecar" .* reason="(.*)"')[1]
        assert found.startswith(reason)
        handover.accept()
        handover.give(config(tmp_path / "store"))
        process.wait_for("msg=reading")


def test_counters_of_another_version_are_one_line(handover: Handover, tmp_path: Path) -> None:
    with Process("capture", "worker", "--connect", f"unix:{handover.path}") as process:
        handover.accept()
        handover.give(config(tmp_path / "store"), pair=7)
        found = process.wait_for('msg="sidecar and worker do not fit together: run one version of both" error="(.*)"')
        assert "pair 7" in found[1]
        handover.accept()


def test_what_it_is_to_connect_to_must_be_a_path() -> None:
    done = capture("worker", "--connect", "10.0.0.1:80")
    assert done.returncode == 1
    assert done.stderr == (
        "capture: error: --connect 10.0.0.1:80: give unix:/PATH, the sidecar's capture.worker_socket\n"
    )


def test_with_restart_a_worker_that_is_killed_is_followed_by_another_one(handover: Handover, tmp_path: Path) -> None:
    words = ("--restart", "--memory-bytes", str(1 << 30))
    with Process("capture", "worker", "--connect", f"unix:{handover.path}", *words) as process:
        handover.accept()
        handover.give(config(tmp_path / "store"))
        process.wait_for("msg=reading")
        first = child(process)
        limits = Path(f"/proc/{first}/limits").read_text()
        assert re.search(r"^Max address space +(\d+)", limits, re.M)[1] == str(1 << 30)  # type: ignore[index]
        os.kill(first, signal.SIGKILL)
        process.wait_for('msg="worker ended" status=-9')
        # The container's own process is still the same, and there is a worker again.
        handover.accept()
        handover.give(config(tmp_path / "store"))
        process.wait_for("msg=reading", 2)
        assert child(process) != first
        assert process.process.poll() is None
        call(handover, "a")
        until(lambda: proven(handover) == 1, "the call")
    # SIGTERM: the worker was told, wrote, and both ended with 0.
    assert lines(tmp_path / "store") == {"Predict m/serving_default (x) -> (a)": 1}


def test_with_restart_no_worker_outlives_its_parent(handover: Handover, tmp_path: Path) -> None:
    with Process("capture", "worker", "--connect", f"unix:{handover.path}", "--restart") as process:
        handover.accept()
        handover.give(config(tmp_path / "store"))
        process.wait_for("msg=reading")
        last = child(process)
        process.process.kill()
        wait_gone(last)


def child(process: Process) -> int:
    [found] = Path(f"/proc/{process.process.pid}/task/{process.process.pid}/children").read_text().split()
    return int(found)


def test_a_limit_below_what_a_worker_needs_is_refused(tmp_path: Path) -> None:
    done = capture("worker", "--connect", f"unix:{tmp_path}/s", "--memory-bytes", "1000")
    assert done.returncode == 1
    assert done.stderr == "capture: error: --memory-bytes 1000: give 0 (no limit) or 134217728 and more\n"
