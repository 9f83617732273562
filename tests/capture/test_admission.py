from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from capture import admission as admission_module
from capture.admission import TOMBSTONES, Admission, Decision
from capture.admission_state import Known
from capture.dialects.base import Outcome
from capture.signature import wire_signature
from capture.store.base import HOUR, OTHER, ModelVersion, RecordKey, StoredHeldOut, StoredSignature

OWNER = ModelVersion("tfserving", "m", "1")
START = 1_699_999_200.0


def admission(**bounds: Any) -> Admission:
    plain: dict[str, Any] = {
        "signatures_per_version": 10,
        "new_signatures_per_hour": 1000,
        "store_bytes": 1 << 30,
        "held_out_requests": 20,
        "held_out_bytes": 1 << 20,
        "held_out_seconds": 7 * 86400,
        "refresh_after": 86400.0,
    }
    return Admission(**(plain | bounds))


class Calls:
    """Feeds an Admission, and keeps what a store would."""

    def __init__(self, seed: int = 1, **bounds: Any) -> None:
        self.admission = admission(**bounds)
        self.random = random.Random(seed)
        self.number = 0
        self.samples: dict[RecordKey, int] = {}
        self.held: dict[str, tuple[RecordKey, int, float | None, bool]] = {}
        self.roles: dict[int, str] = {}

    def __call__(
        self,
        name: str = "a",
        *,
        now: float = START,
        proven: bool = True,
        shapes: str = "x[1]",
        size: int | None = 100,
        owner: ModelVersion = OWNER,
        draw: float | None = None,
    ) -> Decision:
        self.number += 1
        held_id = f"h{self.number}"
        key = RecordKey(owner, name)
        decision = self.admission.observe(
            key,
            proven=proven,
            shapes=shapes,
            size=size,
            held_id=held_id,
            now=now,
            draw=self.random.random() if draw is None else draw,
        )
        if decision.sample and size is not None:
            self.samples[key] = size
        if decision.hold is not None:
            assert not decision.sample, "a request is exported or held out, never both"
            assert proven
            assert size is not None
            self.held[held_id] = (key, size, *decision.hold)
        for gone in decision.evicted:
            self.samples.pop(gone, None)
        self.release(decision.released)
        return decision

    def release(self, released: dict[str, tuple[float | None, bool]]) -> None:
        for held_id, (draw, for_signature) in released.items():
            if draw is None and not for_signature:
                self.held.pop(held_id, None)
            elif held_id in self.held:
                self.held[held_id] = (*self.held[held_id][:2], draw, for_signature)

    @property
    def reservoir(self) -> list[str]:
        return [held_id for held_id, held in self.held.items() if held[2] is not None]


# --- samples ---


def test_the_first_proven_call_is_the_sample_and_the_second_is_held_out() -> None:
    calls = Calls()
    first, second, third = calls(), calls(draw=0.5), calls(draw=0.99)
    assert (first.new, first.new_hour, first.sample, first.hold) == (True, True, True, None)
    assert (second.new, second.sample, second.hold) == (False, False, (0.5, True))
    assert third.hold == (0.99, False)


def test_an_unproven_sample_is_kept_until_one_is_proven() -> None:
    calls = Calls()
    assert calls(proven=False).sample
    assert not calls(proven=False).sample
    assert calls(proven=True).sample
    assert not calls(proven=False).sample
    assert not calls(proven=False, now=START + 100 * 86400).sample


def test_an_unproven_call_is_never_held_out() -> None:
    calls = Calls()
    for _ in range(5):
        calls(proven=False, draw=0.0)
    assert calls.held == {}


def test_a_sample_is_replaced_after_refresh_after() -> None:
    calls = Calls(refresh_after=1000)
    calls()
    assert not calls(now=START + 1000).sample
    assert calls(now=START + 1001).sample
    assert not calls(now=START + 2001).sample


def test_the_sample_becomes_one_of_the_most_frequent_shape() -> None:
    calls = Calls()
    assert calls(shapes="x[1]").sample
    assert not calls(shapes="x[2]").sample
    # Twice as often, and most frequent of all.
    assert calls(shapes="x[2]").sample
    for _ in range(2):
        assert not calls(shapes="x[1]").sample
    assert calls(shapes="x[1]").sample
    assert calls.samples == {RecordKey(OWNER, "a"): 100}


def test_two_shapes_in_turn_do_not_rewrite_the_sample() -> None:
    calls = Calls()
    written = sum(calls(shapes=f"x[{number % 2}]").sample for number in range(1000))
    assert written <= 2


def test_without_a_body_the_call_is_counted_and_nothing_else() -> None:
    calls = Calls()
    decision = calls(size=None)
    assert (decision.new, decision.sample, decision.hold) == (True, False, None)
    assert calls().sample


def test_hours_with_traffic() -> None:
    calls = Calls()
    assert [calls(now=START + minutes * 60).new_hour for minutes in (0, 59, 60, 61, 600)] == [
        True,
        False,
        True,
        False,
        True,
    ]


# --- bounds ---


def test_eviction_takes_fewest_hours_then_fewest_hits_then_oldest() -> None:
    calls = Calls(signatures_per_version=4)
    calls("weekly", now=START)
    calls("weekly", now=START + HOUR)
    for _ in range(9):
        calls("busy", now=START + HOUR)
    calls("older", now=START + HOUR + 1)
    calls("newer", now=START + HOUR + 2)
    assert calls("fifth", now=START + HOUR + 3).evicted == [RecordKey(OWNER, "older")]
    assert calls("sixth", now=START + HOUR + 4).evicted == [RecordKey(OWNER, "newer")]
    assert calls("seventh", now=START + HOUR + 5).evicted == [RecordKey(OWNER, "fifth")]
    assert set(calls.samples) == {RecordKey(OWNER, name) for name in ("weekly", "busy", "sixth", "seventh")}


def test_an_evicted_signature_comes_back_when_it_has_outgrown_the_least() -> None:
    calls = Calls(signatures_per_version=1)
    calls("a")
    assert calls("b").evicted == [RecordKey(OWNER, "a")]
    # One hit each, and b is not older: a second one lifts a above b.
    decision = calls("a")
    assert not decision.new
    assert decision.sample
    assert decision.evicted == [RecordKey(OWNER, "b")]


def test_hits_beyond_the_limit_look_at_few_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(signatures_per_version=1000, new_signatures_per_hour=10_000)
    for number in range(1000):
        calls(f"s{number}", size=None)
        calls(f"s{number}", size=None)
        calls(f"s{number}", size=None)
    assert calls("late", size=None).evicted
    assert calls("later", size=None).evicted == [RecordKey(OWNER, "late")]
    looked, rank = 0, Known.rank.fget

    def counted(known: Known) -> Any:
        nonlocal looked
        looked += 1
        assert rank is not None
        return rank(known)

    monkeypatch.setattr(Known, "rank", property(counted))
    for number in range(100):
        calls(f"new{number}", size=None)
        calls("s0" if number % 2 else "late", size=None)
        calls(f"s{number}", size=None)
    # A scan at each would be 100,000; each signature is put right at most once for each hit.
    assert looked < 4000


def test_a_flood_of_new_signatures_evicts_nothing() -> None:
    calls = Calls(signatures_per_version=10, new_signatures_per_hour=15)
    for number in range(10):
        calls(f"known{number}")
        calls(f"known{number}")
    admitted = [calls(f"flood{number}").admitted for number in range(100)]
    assert admitted == [True] * 5 + [False] * 95
    # In the next hour five more may come, and known ones are still counted.
    assert calls("flood50", now=START + HOUR).admitted
    assert calls("known9").admitted


def test_remembered_signatures_are_bounded() -> None:
    calls = Calls(signatures_per_version=3)
    admitted = sum(calls(f"s{number}", now=START + number * HOUR).admitted for number in range(100))
    assert admitted == 3 * (1 + TOMBSTONES)


def test_the_store_stays_within_its_bytes() -> None:
    calls = Calls(store_bytes=1000, signatures_per_version=100)
    for number in range(30):
        calls(f"s{number % 15}", size=150)
        stored = sum(calls.samples.values()) + sum(held[1] for held in calls.held.values())
        assert stored == calls.admission.stored_bytes <= 1000


def test_one_request_may_be_larger_than_the_store() -> None:
    calls = Calls(store_bytes=1000)
    assert calls(size=5000).sample
    assert calls.admission.stored_bytes == 5000
    assert calls("b", size=10).evicted == [RecordKey(OWNER, "a")]


def test_the_least_recent_model_version_gives_way_with_all_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "MAX_MODEL_VERSIONS", 3)
    calls = Calls()
    owners = [ModelVersion("tfserving", "m", str(number)) for number in range(4)]
    for number, owner in enumerate(owners[:3]):
        calls(owner=owner, now=START + number)
        calls(owner=owner, now=START + number)
    # Anyone can name a model that does not exist and hang up.
    assert not calls(owner=owners[3], proven=False, now=START + 9).admitted
    assert calls(owner=owners[3], now=START + 10).evicted == [RecordKey(owners[0], "a")]
    assert {key.owner for key in calls.samples} == set(owners[1:])
    assert {held[0].owner for held in calls.held.values()} == set(owners[1:3])
    stored = sum(calls.samples.values()) + sum(held[1] for held in calls.held.values())
    assert calls.admission.stored_bytes == stored


def test_new_model_versions_beyond_the_bound_are_few_in_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "MAX_MODEL_VERSIONS", 3)
    monkeypatch.setattr(admission_module, "NEW_VERSIONS_PER_HOUR", 2)
    calls = Calls()

    def admitted(first: int, now: float) -> list[bool]:
        owners = [ModelVersion("eas", f"m{number}", "1") for number in range(first, first + 5)]
        return [calls(owner=owner, now=now + at).admitted for at, owner in enumerate(owners)]

    assert admitted(0, START) == [True] * 5  # three that are free, two more
    assert admitted(5, START + 10) == [False] * 5
    # What is known is counted on, and the next hour brings new ones.
    assert calls(owner=ModelVersion("eas", "m4", "1"), now=START + 20).admitted
    assert admitted(10, START + 3600) == [True, True, False, False, False]


# --- the held-out set ---


def test_the_reservoir_keeps_its_count_and_its_bytes() -> None:
    calls = Calls(held_out_requests=20, held_out_bytes=1500)
    for _ in range(500):
        calls(size=100)
        assert len(calls.reservoir) <= 20
        assert sum(calls.held[held_id][1] for held_id in calls.reservoir) <= 1500
    assert len(calls.reservoir) == 15


def test_the_reservoir_holds_the_smallest_draws() -> None:
    calls = Calls(held_out_requests=20)
    draws = []
    for number in range(2000):
        calls(draw=(draw := calls.random.random()))
        if number:
            draws.append(draw)
    assert sorted(held[2] for held in calls.held.values() if held[2] is not None) == sorted(draws)[:20]


def test_the_reservoir_is_uniform_over_time_and_signatures() -> None:
    # 300 runs of 1,000 calls with 20 places: each tenth of the calls is expected 600 times. Seeded: never flaky.
    by_time: Counter[int] = Counter()
    by_name: Counter[str] = Counter()
    for seed in range(300):
        calls = Calls(seed)
        for number in range(1000):
            # 90 % of the calls are of one signature.
            calls("busy" if number % 10 else "rare", now=START + number)
        for held_id in calls.reservoir:
            by_time[(int(held_id[1:]) - 1) // 100] += 1
            by_name[calls.held[held_id][0].digest] += 1
    total = by_time.total()
    assert total == 300 * 20
    # Chi-square with 9 degrees of freedom: 27.9 is exceeded with probability 0.001.
    assert sum((by_time[tenth] - total / 10) ** 2 / (total / 10) for tenth in range(10)) < 27.9
    assert by_name["rare"] / total == pytest.approx(0.1, abs=0.015)


def test_the_reservoir_is_uniform_over_its_window_after_expiry() -> None:
    by_day: Counter[int] = Counter()
    for seed in range(150):
        calls = Calls(seed, held_out_seconds=4 * 86400, held_out_requests=20)
        for number in range(12 * 50):
            now = START + number * 86400 / 50
            calls(now=now)
            if number % 10 == 0:
                calls.release(calls.admission.expire(now))
        for held_id in calls.reservoir:
            by_day[(int(held_id[1:]) - 1) // 50] += 1
    # Days 8 to 11 are in the window.
    assert set(by_day) <= {7, 8, 9, 10, 11}
    mean = sum(by_day[day] for day in range(8, 12)) / 4
    for day in range(8, 12):
        assert by_day[day] == pytest.approx(mean, rel=0.15)


def test_a_request_too_large_for_the_set_is_not_held_out() -> None:
    calls = Calls(held_out_bytes=1000)
    calls(size=600)
    assert calls(size=600, draw=0.0).hold is None
    assert calls(size=500, draw=0.0).hold == (0.0, True)


def test_the_further_sample_of_a_signature_is_renewed() -> None:
    calls = Calls(refresh_after=1000, held_out_requests=1)
    calls(now=START)
    assert calls(now=START, draw=0.1).hold == (0.1, True)
    calls(now=START + 1001)
    renewed = calls(now=START + 1001, draw=0.9)
    assert renewed.hold is not None
    assert renewed.hold[1] is True
    # The old one stays in the reservoir only.
    assert renewed.released["h2"] == (0.1, False)


def test_a_held_out_request_that_loses_its_draw_stays_for_its_signature() -> None:
    calls = Calls(held_out_requests=1)
    calls()
    calls(draw=0.4)
    assert calls(draw=0.1).released == {"h2": (None, True)}
    assert calls(draw=0.05).released == {"h3": (None, False)}
    assert set(calls.held) == {"h2", "h4"}


def test_held_out_requests_expire() -> None:
    calls = Calls(held_out_seconds=1000)
    for offset in (0, 0, 500, 900):
        calls(now=START + offset)
    released = calls.admission.expire(START + 1100)
    assert released == {"h2": (None, False)}
    calls.release(released)
    # The signature gets a further sample again.
    decision = calls(now=START + 1100)
    assert decision.hold is not None
    assert decision.hold[1] is True


# --- after a write that failed, after a restart ---


def test_a_sample_that_was_not_stored_is_taken_again() -> None:
    calls = Calls()
    calls()
    calls.admission.not_stored(RecordKey(OWNER, "a"))
    assert calls.admission.stored_bytes == 0
    assert calls().sample


def test_a_held_out_request_that_was_not_stored_is_taken_again() -> None:
    calls = Calls()
    calls()
    calls(draw=0.5)
    calls.admission.not_stored(RecordKey(OWNER, "a"), "h2")
    assert calls.admission.stored_bytes == 100
    assert calls(draw=0.99).hold == (0.99, True)
    # What is not known is passed over.
    calls.admission.not_stored(RecordKey(OWNER, "zzz"))
    calls.admission.not_stored(RecordKey(ModelVersion("eas", "q", "1"), "zzz"), "h9")


def test_what_is_forgotten_frees_its_bytes() -> None:
    calls = Calls()
    for name in ("old", "old", "new", "new"):
        calls(name, now=START + (name == "new") * 1000)
    calls.admission.forget(START + 500)
    assert calls.admission.stored_bytes == 200
    assert calls("old", now=START + 1001).new
    calls.admission.forget(START + 5000)
    assert calls.admission.stored_bytes == 0


def test_what_is_wanted_when_memory_is_scarce() -> None:
    calls = Calls(refresh_after=1000)
    wanted = calls.admission.wanted
    assert wanted("tfserving", "m", "a", START)
    calls()
    assert wanted("tfserving", "m", "a", START)
    assert wanted("tfserving", "m", "b", START)
    calls()
    assert not wanted("tfserving", "m", "a", START)
    assert wanted("tfserving", "m", "a", START + 1001)
    assert wanted("tfserving", "other", "a", START)
    assert wanted("eas", "m", "a", START)


def stored(calls: Calls) -> tuple[list[StoredSignature], list[StoredHeldOut]]:
    """What a store would hold by the decisions so far."""
    signatures = []
    for owner, state in calls.admission._versions.items():
        for digest, known in state.signatures.items():
            signature = wire_signature(owner.family, owner.model, "Predict", digest, [], [])
            signatures.append(
                StoredSignature(
                    key=RecordKey(owner, digest),
                    signature=signature,
                    proven=known.hits,
                    unproven=0,
                    first_seen=known.first_seen,
                    last_seen=known.last_seen,
                    hours=known.hours,
                    shapes=dict(known.shapes) | {OTHER: 10_000},
                    senders={},
                    evicted=known.evicted,
                    sample_at=known.sample_at,
                    sample_size=known.sample_size,
                    sample_shapes=known.sample_shapes,
                    sample_outcome=Outcome.PROVEN if known.sample_proven else Outcome.UNPROVEN,
                )
            )
    held = [
        StoredHeldOut(key, held_id, draw, for_signature, size, START)
        for held_id, (key, size, draw, for_signature) in calls.held.items()
    ]
    return signatures, held


def test_a_restart_goes_on_with_the_same_decisions() -> None:
    before = Calls(seed=3)
    for number in range(600):
        before(f"s{number % 12}", now=START, shapes=f"x[{number % 3}]", proven=bool(number % 4), size=100 + number % 7)
    after = Calls(seed=3)
    after.admission.load(*stored(before))
    after.samples, after.held = dict(before.samples), dict(before.held)
    after.number = before.number
    assert after.admission.stored_bytes == before.admission.stored_bytes
    draws = random.Random(9)
    for number in range(600):
        draw = draws.random()
        call = {"now": START + number, "shapes": f"x[{number % 5}]", "proven": bool(number % 3), "draw": draw}
        assert before(f"s{number % 14}", **call) == after(f"s{number % 14}", **call)  # type: ignore[arg-type]
    assert before.held == after.held


# --- everything at once ---


class Bounds(RuleBasedStateMachine):
    """Whatever is called in whatever order: every bound holds, and the accounts agree with the store."""

    @initialize()
    def begin(self) -> None:
        self.calls = Calls(
            signatures_per_version=4, new_signatures_per_hour=8, store_bytes=3000, held_out_requests=5,
            held_out_bytes=900, held_out_seconds=5 * HOUR, refresh_after=2 * HOUR,
        )  # fmt: skip
        self.now = START

    @rule(
        name=st.sampled_from("abcdefghij"),
        owner=st.sampled_from("12"),
        proven=st.booleans(),
        size=st.one_of(st.none(), st.integers(1, 700)),
        shapes=st.sampled_from(["p", "q"]),
        draw=st.floats(0, 1, exclude_max=True),
    )
    def call(self, name: str, owner: str, proven: bool, size: int | None, shapes: str, draw: float) -> None:
        version = ModelVersion("tfserving", "m", owner)
        self.calls(name, now=self.now, proven=proven, shapes=shapes, size=size, owner=version, draw=draw)

    @rule(hours=st.sampled_from([0.1, 1, 3]))
    def wait(self, hours: float) -> None:
        self.now += hours * HOUR
        self.calls.release(self.calls.admission.expire(self.now))

    @rule()
    def forget(self) -> None:
        before = self.now - 6 * HOUR
        state = self.calls.admission._versions
        gone = {
            RecordKey(owner, digest)
            for owner, version in state.items()
            for digest, known in version.signatures.items()
            if known.last_seen < before
        }
        self.calls.admission.forget(before)
        self.calls.samples = {key: size for key, size in self.calls.samples.items() if key not in gone}
        self.calls.held = {name: held for name, held in self.calls.held.items() if held[0] not in gone}

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        if self.calls.held:
            held_id = data.draw(st.sampled_from(sorted(self.calls.held)))
            key = self.calls.held.pop(held_id)[0]
            self.calls.admission.not_stored(key, held_id)

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "calls"):
            return
        calls, state = self.calls, self.calls.admission._versions
        samples = sum(calls.samples.values())
        held = sum(size for _, size, _, _ in calls.held.values())
        assert calls.admission.stored_bytes == samples + held <= 3000
        for owner, version in state.items():
            live = [known for known in version.signatures.values() if not known.evicted]
            assert len(live) == version.live <= 4
            assert len(version.ranks) <= 2 * len(version.signatures) + 64
            lowest = version.lowest()
            assert (lowest is None) == (not live)
            assert lowest is None or version.signatures[lowest].rank == min(known.rank for known in live)
            assert len(version.signatures) <= 4 * (1 + TOMBSTONES)
            mine = [held for held in calls.held.values() if held[0].owner == owner]
            reservoir = [held for held in mine if held[2] is not None]
            assert len(reservoir) <= 5
            assert sum(held[1] for held in reservoir) <= 900
            # One further sample for each signature.
            assert max(Counter(held[0] for held in mine if held[3]).values(), default=0) <= 1
            assert version.reservoir_bytes == sum(held[1] for held in reservoir)
            assert version.reservoir_count == len(reservoir)
            assert set(version.held) == {name for name, held in calls.held.items() if held[0].owner == owner}


Bounds.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestBounds = Bounds.TestCase
