"""When a worker leaves the tap alone for a while, and how long."""

from __future__ import annotations

import os
import socket

import pytest

from capture.worker_rest import REST_BYTES, REST_SECONDS, Rest


def test_it_rests_as_long_as_the_missing_bytes_take_at_this_rate() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        rest = Rest(theirs.fileno(), ())
        assert rest.due(0, 0, 100.0)
        # A quarter of what is waited for came in a millisecond: the rest takes four of these.
        assert rest.due(REST_BYTES // 4, 0, 100.001)
        assert rest.seconds == pytest.approx(0.004)
        # Half of it waits already.
        assert rest.due(REST_BYTES // 2, REST_BYTES // 2, 100.002)
        assert rest.seconds == pytest.approx(0.002)
        # Seldom anything: no longer than that.
        assert rest.due(REST_BYTES // 2 + 1, 0, 101.0)
        assert rest.seconds == REST_SECONDS


def test_a_worker_that_is_behind_does_not_rest() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        rest = Rest(theirs.fileno(), ())
        assert rest.due(10, 0, 100.0)
        assert not rest.due(10 + REST_BYTES, 0, 100.01)
        assert not rest.due(20 + REST_BYTES, REST_BYTES, 100.02)
        # So fast that there is no time for it.
        assert not rest.due(20 + REST_BYTES + REST_BYTES // 2, 0, 100.0201)


def test_it_sees_what_is_there_to_read_and_a_stop_ends_a_rest() -> None:
    ours, theirs = socket.socketpair()
    told, tell = os.pipe()
    with ours, theirs, open(told, "rb"), open(tell, "wb") as stop:
        rest = Rest(theirs.fileno(), (told,))
        assert not rest.anything()
        ours.send(b"x")
        assert rest.anything()
        stop.write(b"x")
        stop.flush()
        rest.seconds = 3600.0
        rest.take()
