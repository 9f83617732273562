"""A process that reads a held tap is killed at any instant: its successors get each byte once."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from capture import tap
from capture.counters import Counters
from capture.flow_state import HALF_BYTES, FlowState, StateError
from capture.held_tap import can_hold
from tests.support.tap_frames import Frame, encode, hello, time_frame
from tests.support.waiting import until

KILLS = 12
ROOT = Path(__file__).resolve().parents[2]

#: Keeps of the stream only a running digest and its length, in the place of the pipeline's clocks and flows.
READER = """
import socket, sys, zlib
from capture import tap
from capture.counters import Counters
from capture.flow_state import FlowState
from capture.held_tap import HeldTap

class Pipeline:
    now = monotonic = 0.0
    def restore(self, saves, now, monotonic):
        self.now, self.monotonic = now, monotonic
    def changes(self, whole, room):
        return []

sock, state, counters = socket.socket(fileno=int(sys.argv[1])), FlowState(int(sys.argv[2])), Counters(int(sys.argv[3]))
held, pipeline = HeldTap(sock, state, counters.slots), Pipeline()
held.resume(pipeline)
counters.add("worker_ready")
while (frames := held.read()) is not None:
    for kind, flow, offset, payload in frames:
        if kind in (tap.CLIENT, tap.SERVER):
            assert offset == pipeline.monotonic, (offset, pipeline.monotonic)
            pipeline.now = float(zlib.crc32(payload, int(pipeline.now)))
            pipeline.monotonic += len(payload)
    held.commit(pipeline)
print(int(pipeline.now), int(pipeline.monotonic))
"""


@pytest.mark.server
def test_every_byte_is_read_once_however_often_the_reader_is_killed() -> None:
    draw = random.Random(1)
    counters, state = Counters.create(), FlowState.create()
    ours, theirs = socket.socketpair()
    assert can_hold(theirs)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 << 10)  # many small pieces
    frames: list[Frame] = [hello()]
    at, whole = 0, b""
    for _ in range(3000):
        payload = draw.randbytes(draw.choice([1, 20, 3000, 60_000]))
        frames += [time_frame(1.0), (tap.CLIENT, 1, at, payload)]
        at += len(payload)
        whole += payload
    stream = encode(frames)
    part = len(stream) // (KILLS + 1) + 1
    gate = threading.Semaphore(0)

    def send() -> None:
        # A part for each kill: however slow the machine is, something is left to read at the last.
        for begin in range(0, len(stream), part):
            gate.acquire()
            ours.sendall(stream[begin : begin + part])

    sender = threading.Thread(target=send)
    fds = (theirs.fileno(), state.fd, counters.fd)

    def start() -> subprocess.Popen[str]:
        before = counters.snapshot()["worker_ready"]
        process = subprocess.Popen(
            [sys.executable, "-c", READER, *map(str, fds)], cwd=ROOT, pass_fds=fds, stdout=subprocess.PIPE, text=True
        )
        until(lambda: process.poll() is not None or counters.snapshot()["worker_ready"] > before, "a reader")
        return process

    sender.start()
    kills = 0
    process = start()
    while kills < KILLS:
        # So many pieces later, at whatever it is then about.
        goal = state.recorded + draw.randrange(1, 6)
        gate.release()
        until(_is_past(state, goal), "progress")
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        kills += 1
        process = start()
    gate.release()
    sender.join()
    ours.close()
    out, _ = process.communicate(timeout=60)
    theirs.close()

    assert out.split() == [str(zlib.crc32(whole)), str(len(whole))]
    now = counters.snapshot()
    assert (now["tap_frames"], now["tap_client_bytes"]) == (len(frames), len(whole))


def _is_past(state: FlowState, goal: int) -> Callable[[], bool]:
    return lambda: state.recorded >= goal


def test_a_record_is_there_or_not_and_a_whole_one_replaces_all() -> None:
    state = FlowState.create()
    state.begin()
    assert (state.interrupted, state.records()) == (True, [])
    assert state.record(b"one", whole=False)
    assert (state.interrupted, state.taking) == (False, True)
    state.taken()
    state.begin()
    assert state.record(b"two", whole=False)
    state.taken()
    assert FlowState(state.fd).records() == [b"one", b"two"]
    state.begin()
    assert not state.record(bytes(HALF_BYTES), whole=False)
    assert FlowState(state.fd).records() == [b"one", b"two"]
    assert state.record(b"all", whole=True)
    state.taken()
    again = FlowState(state.fd)
    assert (again.records(), again.recorded, again.taking) == ([b"all"], 3, False)


def test_another_file_is_no_state() -> None:
    with pytest.raises(StateError):
        FlowState(Counters.create().fd)
