"""What the worker passes over while it is behind: how much, what it saves, and that it favours nothing."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from capture import pipeline as pipeline_module
from capture.dialects.eas_tensorflow import EasTensorFlow
from capture.dialects.tfserving_grpc import TFServingGrpc
from capture.shedding import FILL_FROM, FILL_FULL, MAX_SHED, START_SECONDS, Start, shed_share
from capture.wire import events as ev
from tests.capture.test_pipeline import Rig
from tests.support.calls import eas, predict, predict_response
from tests.support.tap_frames import Flow, GrpcFlow


def test_the_share_rises_with_the_lag_and_is_nothing_once_caught_up() -> None:
    lags = [0, 0.5, 0.99, 1.0, 1.25, 1.5, 1.75, 2.0, 60.0]
    shares = [shed_share(lag, 1.0, 0.0) for lag in lags]
    assert shares[:4] == [0, 0, 0, 0]
    assert shares[4:7] == [0.25, 0.5, 0.75]
    assert shares[7:] == [MAX_SHED, MAX_SHED]


def test_the_share_rises_before_the_relay_leaves_flows_out() -> None:
    assert shed_share(0.0, 1.0, FILL_FROM) == 0
    assert 0 < shed_share(0.0, 1.0, (FILL_FROM + FILL_FULL) / 2) < MAX_SHED
    # At half of its buffer the tap begins to lose flows.
    assert shed_share(0.0, 1.0, 0.45) == MAX_SHED


def test_nothing_is_shed_when_it_is_off_or_the_clock_is_odd() -> None:
    assert shed_share(100.0, 0.0, 1.0) == 0
    assert shed_share(-5.0, 1.0, -3.0) == 0


def test_what_waited_for_a_worker_that_starts_is_no_lag_of_its_own() -> None:
    start = Start(100.0)
    assert [shed_share(start.counted(9.0, 1.0, now), 1.0, 0.0) for now in (100.0, 99.9 + START_SECONDS)] == [0, 0]
    # Bytes would be lost: that counts at once.
    assert shed_share(start.counted(9.0, 1.0, 100.0), 1.0, FILL_FULL) == MAX_SHED
    # It has had its time.
    assert shed_share(start.counted(9.0, 1.0, 100.0 + START_SECONDS), 1.0, 0.0) == MAX_SHED


def test_once_caught_up_a_worker_is_behind_by_its_own_pace() -> None:
    start = Start(100.0)
    lags = [1.5, 0.5, 1.5, 0.49, 1.5]
    assert [start.counted(lag, 1.0, 101.0 + place) for place, lag in enumerate(lags)] == [0, 0, 0, 0.49, 1.5]


def test_a_shed_exchange_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.pipeline.shed = 1.0

    def fail(*_: object) -> None:
        raise AssertionError("a shed exchange was looked at")

    for dialect in (EasTensorFlow, TFServingGrpc):
        monkeypatch.setattr(dialect, "read", fail)
        monkeypatch.setattr(dialect, "route", fail)
    monkeypatch.setattr(pipeline_module.BodyBudget, "take", fail)
    grpc, http = GrpcFlow(1), Flow(2, listener=1)
    for _ in range(5):
        grpc.call(predict(fill=bytes(50_000)), predict_response())
        http.post("/api/predict/rank", eas())
    # Requests that end in another way are no less shed.
    grpc.request(predict())
    grpc.cancel(grpc.request(predict(), end=False))
    http.client(b"POST /api/predict/rank HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc").gap(3, 0)
    rig.feed(grpc.closed(), http.closed())
    assert rig.counts == {"requests_shed": 13}
    assert rig.pipeline.open_flows == 0


def test_flows_stay_readable_around_shed_exchanges() -> None:
    """Header tables and framing go on: what is kept behind a shed exchange is read as if nothing had been shed."""
    rig = Rig(signatures_per_version=2000, new_signatures_per_hour=2000)
    grpc, http = GrpcFlow(1), Flow(2, listener=1)
    for number in range(400):
        rig.pipeline.shed = number % 2
        # Distinct paths and header values: HPACK inserts on every call.
        stream = grpc.request(predict(outputs=[f"o{number}"]), headers=[("x-request-id", f"{number:08}")])
        grpc.answer(stream, predict_response())
        http.post("/api/predict/rank", eas(outputs=[f"o{number}"]), headers=f"X-Id: {number}\r\n")
        rig.feed(grpc, http)
    assert rig.counts == {"requests_shed": 400, "requests_observed": 400, "requests_proven": 400}
    fetched = {delta.signature.outputs for delta in rig.pipeline.batch.seen.values()}
    assert fetched == {(f"o{number}",) for number in range(0, 400, 2)}
    assert not [name for name in rig.counts if name.startswith("flows_")]


def test_shares_stay_unbiased_by_size_signature_and_flow() -> None:
    rig = Rig(signatures_per_version=2000, new_signatures_per_hour=2000)
    rig.pipeline.shed = 0.8
    flows = [Flow(number, listener=1) for number in range(4)]
    order = random.Random(7)
    sent: Counter[str] = Counter()
    # One signature in ten is large, one flow sends most.
    for _ in range(20_000):
        number = order.randrange(10)
        sent[f"o{number}"] += 1
        flow = flows[0] if order.random() < 0.7 else order.choice(flows)
        flow.post("/api/predict/rank", eas({"x": [1.0] * (2000 if number == 0 else 2)}, outputs=[f"o{number}"]))
        rig.feed(flow)
    seen = {(delta.signature.outputs or ("",))[0]: delta.proven for delta in rig.pipeline.batch.seen.values()}
    kept = rig.counts["requests_observed"]
    assert kept + rig.counts["requests_shed"] == 20_000
    assert rig.counts["requests_proven"] == kept
    # The draws are seeded. Binomial: five standard deviations either side of the share.
    for name, count in sent.items():
        assert abs(seen[name] - 0.2 * count) < 5 * (count * 0.2 * 0.8) ** 0.5, name
    assert abs(kept - 4000) < 5 * (20_000 * 0.16) ** 0.5


def test_a_shed_stream_that_the_observer_gives_up_is_counted_once() -> None:
    rig = Rig()
    rig.pipeline.shed = 1.0
    http = Flow(2, listener=1)
    http.client(b"POST /api/predict/rank HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + bytes(10)).gap(500, 0)
    http.client(bytes(490)).server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    rig.feed(http)
    assert rig.counts == {"requests_shed": 1}
    tracker = next(iter(rig.pipeline._flows.values())).tracker
    tracker.feed([ev.RequestHead(9, b"GET", b"/", b"", ())])
    tracker.feed([ev.ResponseHead(9, 200, ()), ev.ResponseEnd(9)])
    tracker.feed([ev.Lost(9)])
    assert rig.counts == {"requests_shed": 2}
    assert tracker._shed == {}
