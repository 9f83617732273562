"""Which attempts are one call: the rule, and what it does to counts and samples."""

from __future__ import annotations

import pytest

from capture import tap
from capture.config import ListenerConfig
from capture.dialects.base import Outcome
from capture.retries import MOST_ATTEMPTS, WINDOW_SECONDS, Retries, improves
from capture.store.base import RecordKey, SignatureDelta
from tests.capture.test_pipeline import Rig
from tests.support.calls import eas, predict
from tests.support.tap_frames import START, Flow, GrpcFlow

REFUSED, UNPROVEN, PROVEN = Outcome.REFUSED, Outcome.UNPROVEN, Outcome.PROVEN


class Line:
    """Attempts one after the other, a second apart."""

    def __init__(self, most: int = 10) -> None:
        self.retries = Retries(most)
        self.ended = 0
        self.now = 0.0

    def attempt(self, outcome: Outcome, key: str = "k", *, overlaps: int = 0, wait: float = 1.0) -> Outcome | None:
        """``overlaps``: so many that have ended had not when it began."""
        began = self.ended - overlaps
        self.ended += 1
        self.now += wait
        return self.retries.before(key, outcome, began=began, ended=self.ended, now=self.now)


def test_an_attempt_behind_a_failed_one_is_the_same_call() -> None:
    line = Line()
    assert [line.attempt(outcome) for outcome in (UNPROVEN, UNPROVEN, PROVEN)] == [None, UNPROVEN, UNPROVEN]
    # That call is over.
    assert [line.attempt(outcome) for outcome in (PROVEN, UNPROVEN)] == [None, None]


def test_what_is_known_of_a_call_is_the_best_of_its_attempts() -> None:
    line = Line()
    found = [line.attempt(outcome) for outcome in (REFUSED, UNPROVEN, REFUSED, PROVEN)]
    assert found == [None, REFUSED, UNPROVEN, UNPROVEN]
    assert improves(UNPROVEN, REFUSED)
    assert improves(PROVEN, UNPROVEN)
    assert not improves(REFUSED, UNPROVEN)
    assert not improves(UNPROVEN, UNPROVEN)


def test_other_bytes_and_other_clients_are_other_calls() -> None:
    line = Line()
    assert [line.attempt(UNPROVEN, key) for key in ("a", "b", "a", "b")] == [None, None, UNPROVEN, UNPROVEN]


def test_after_the_window_it_is_another_call() -> None:
    line = Line()
    line.attempt(UNPROVEN)
    assert line.attempt(UNPROVEN, wait=WINDOW_SECONDS) is UNPROVEN
    assert line.attempt(UNPROVEN, wait=WINDOW_SECONDS + 0.1) is None


def test_a_call_has_so_many_attempts_and_no_more() -> None:
    line = Line()
    found = [line.attempt(UNPROVEN) for _ in range(2 * MOST_ATTEMPTS)]
    assert found == [None, *[UNPROVEN] * (MOST_ATTEMPTS - 1)] * 2


def test_what_was_under_way_is_a_call_of_its_own_and_each_may_be_tried_again() -> None:
    line = Line()
    assert line.attempt(UNPROVEN) is None
    assert line.attempt(UNPROVEN, overlaps=1) is None
    assert line.attempt(PROVEN, overlaps=2) is None
    assert [line.attempt(PROVEN), line.attempt(PROVEN), line.attempt(PROVEN)] == [UNPROVEN, UNPROVEN, None]


def test_it_is_bounded() -> None:
    line = Line(most=3)
    for key in "abcd":
        line.attempt(UNPROVEN, key)
    assert len(line.retries.failed) == 3
    assert [line.attempt(PROVEN, key) for key in "dcba"] == [UNPROVEN, UNPROVEN, UNPROVEN, None]
    assert len(line.retries.failed) == 0


# --- in the pipeline ---


def only(rig: Rig) -> tuple[RecordKey, SignatureDelta]:
    ((key, delta),) = rig.pipeline.batch.seen.items()
    return key, delta


@pytest.mark.parametrize("statuses", [(500, 200), (500, 500, 503, 500, 200), (429, 500, 200), (429, 429, 200)])
def test_a_call_that_succeeds_in_the_end_is_one_proven_call(statuses: tuple[int, ...]) -> None:
    rig = Rig()
    for number, status in enumerate(statuses):
        # On the same connection or another one, of the same client.
        rig.feed(
            Flow(number, listener=1, peer=f"10.0.0.9:{40000 + number}").post("/api/predict/r", eas(), status=status)
        )
    key, delta = only(rig)
    assert (delta.proven, delta.unproven) == (1, 0)
    assert (sum(delta.shapes.values()), sum(delta.senders.values())) == (1, 1)
    assert rig.pipeline.batch.samples[key].outcome == "proven"
    assert rig.counts["requests_retried"] == len(statuses) - 1
    assert rig.counts["requests_observed"] == len(statuses)
    assert sum(rig.pipeline.batch.refusals.values()) == (statuses[0] == 429)


def test_a_call_that_fails_for_good_is_one_call_and_the_next_success_another() -> None:
    rig = Rig()
    flow = Flow(listener=1)
    for _ in range(MOST_ATTEMPTS):
        flow.post("/api/predict/r", eas(), status=500)
    rig.feed(flow)
    assert (only(rig)[1].proven, only(rig)[1].unproven) == (0, 1)
    later = round((rig.pipeline.monotonic + WINDOW_SECONDS + 1) * 1e9)
    rig.pipeline.feed([(tap.TIME, 0, 0, tap.TIME_PAYLOAD.pack(later, round(START * 1e9)))])
    rig.feed(flow.post("/api/predict/r", eas()).post("/api/predict/r", eas()))
    assert (only(rig)[1].proven, only(rig)[1].unproven) == (2, 1)


def test_a_batch_that_was_written_between_the_attempts_is_corrected_by_the_next() -> None:
    rig = Rig()
    flow = Flow(listener=1).post("/api/predict/r", eas(), status=500)
    rig.feed(flow)
    assert only(rig)[1].unproven == 1
    rig.pipeline.take()
    rig.feed(flow.post("/api/predict/r", eas()))
    assert (only(rig)[1].proven, only(rig)[1].unproven) == (1, -1)


@pytest.mark.parametrize(
    "flow",
    [
        Flow(2, listener=1, peer="10.9.9.9:1").post("/api/predict/r", eas()),
        Flow(2, listener=1).post("/api/predict/r/other", eas()),
        Flow(2, listener=1).post("/api/predict/r", eas({"x": [3.0, 4.0]})),
        Flow(2, listener=2).post("/api/predict/r", eas()),
    ],
    ids=["client", "path", "bytes", "listener"],
)
def test_what_is_not_the_same_is_another_call(flow: Flow) -> None:
    rig = Rig(listeners=(ListenerConfig("a"), ListenerConfig("b"), ListenerConfig("c")))
    rig.feed(Flow(1, listener=1).post("/api/predict/r", eas(), status=500), flow)
    assert (only(rig)[1].proven, only(rig)[1].unproven) == (1, 1)
    assert rig.counts["requests_retried"] == 0


def test_a_request_that_was_cut_off_may_be_tried_again() -> None:
    rig = Rig()
    head = b"POST /api/predict/r HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n" % len(eas())
    rig.feed(Flow(1, listener=1).client(head + eas()).closed(), Flow(2, listener=1).post("/api/predict/r", eas()))
    assert (only(rig)[1].proven, only(rig)[1].unproven) == (1, 0)


def test_grpc_clients_are_not_meant() -> None:
    rig, flow = Rig(), GrpcFlow()
    flow.answer(flow.request(predict()), status=14)
    flow.answer(flow.request(predict()), status=14)
    rig.feed(flow)
    assert (only(rig)[1].unproven, rig.counts["requests_retried"]) == (2, 0)
