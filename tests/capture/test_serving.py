from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.serving import MAX_SPANS, History, Poll, Span, version_at
from capture.store.base import UNKNOWN_VERSION

ONE = {"1": "AVAILABLE"}
BOTH = {"1": "AVAILABLE", "2": "AVAILABLE"}
LOADING = {"1": "AVAILABLE", "2": "LOADING"}
NEXT = {"1": "END", "2": "AVAILABLE"}


def decide(polls: list[Poll], began: float, ended: float, label: str = "") -> str | None:
    history = History(label)
    for poll in polls:
        history.add(poll)
    return version_at(history.spans, history.ongoing, began, ended)


def polls(*states: dict[str, str] | None, labels: dict[str, str] | None = None) -> list[Poll]:
    """At 10, 20, 30 ... each asked then and answered one second later."""
    return [Poll(10.0 * n, 10.0 * n + 1, state, labels or {}) for n, state in enumerate(states, 1)]


#: (what it is, polls, began, ended, version).
TABLE = (
    ("between two polls that agree", polls(ONE, ONE), 12, 19, "1"),
    ("over several polls that agree", polls(ONE, ONE, ONE, ONE), 12, 39, "1"),
    ("from the answer of one to the question of another", polls(ONE, ONE), 11, 20, "1"),
    ("began while the first was being answered", polls(ONE, ONE), 10.5, 19, UNKNOWN_VERSION),
    ("before any poll", polls(ONE, ONE), 5, 6, UNKNOWN_VERSION),
    ("ended while the last was being answered", polls(ONE, ONE), 12, 20.5, None),
    ("after the last poll", polls(ONE, ONE), 22, 23, None),
    ("after the only poll", polls(ONE), 12, 13, None),
    ("no poll at all", [], 12, 13, UNKNOWN_VERSION),
    ("a version came", polls(ONE, BOTH), 12, 19, UNKNOWN_VERSION),
    ("the highest of those that stay", polls(BOTH, BOTH), 12, 19, "2"),
    ("numbers, not texts", polls(*[{"9": "AVAILABLE", "10": "AVAILABLE"}] * 2), 12, 19, "10"),
    ("one is being loaded all the time", polls(LOADING, LOADING), 12, 19, UNKNOWN_VERSION),
    ("one is on its way out", polls(*[{"1": "UNLOADING", "2": "AVAILABLE"}] * 2), 12, 19, UNKNOWN_VERSION),
    ("a state that nobody knows", polls(*[{"1": "NEW", "2": "AVAILABLE"}] * 2), 12, 19, UNKNOWN_VERSION),
    ("one that was unloaded before", polls(NEXT, NEXT), 12, 19, "2"),
    ("one came and went in between", polls(ONE, {"1": "AVAILABLE", "2": "END"}), 12, 19, UNKNOWN_VERSION),
    ("before the change", polls(ONE, ONE, NEXT, NEXT), 12, 19, "1"),
    ("over the change", polls(ONE, ONE, NEXT, NEXT), 12, 39, UNKNOWN_VERSION),
    ("after the change", polls(ONE, ONE, NEXT, NEXT), 32, 39, "2"),
    ("there and back", polls(ONE, NEXT, ONE), 12, 29, UNKNOWN_VERSION),
    ("the poll after it failed", polls(ONE, None), 12, 19, UNKNOWN_VERSION),
    ("a poll between failed", polls(ONE, None, ONE), 12, 29, UNKNOWN_VERSION),
    ("after a poll that failed", polls(None, ONE, ONE), 22, 29, "1"),
    ("nothing is loaded", polls({"1": "END"}, {"1": "END"}), 12, 19, UNKNOWN_VERSION),
    ("a model without versions", polls({}, {}), 12, 19, UNKNOWN_VERSION),
)


@pytest.mark.parametrize(("polls", "began", "ended", "version"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE])
def test_a_call_without_a_version(polls: list[Poll], began: float, ended: float, version: str | None) -> None:
    assert decide(polls, began, ended) == version


@pytest.mark.parametrize(
    ("before", "after", "states", "version"),
    [
        ({"canary": "2"}, {"canary": "2"}, BOTH, "2"),
        ({"canary": "1"}, {"canary": "1"}, BOTH, "1"),
        ({"canary": "1"}, {"canary": "2"}, BOTH, UNKNOWN_VERSION),
        ({"canary": "1"}, {}, BOTH, UNKNOWN_VERSION),
        ({"stable": "1"}, {"stable": "1"}, BOTH, UNKNOWN_VERSION),
        ({"canary": "3"}, {"canary": "3"}, BOTH, UNKNOWN_VERSION),
        ({"canary": "1"}, {"canary": "1"}, LOADING, UNKNOWN_VERSION),
    ],
)
def test_a_call_to_a_label(before: dict[str, str], after: dict[str, str], states: dict[str, str], version: str) -> None:
    assert decide([Poll(10, 11, states, before), Poll(20, 21, states, after)], 12, 19, "canary") == version


def test_a_label_that_changes_is_no_matter_of_other_calls() -> None:
    found = [Poll(10, 11, ONE, {"canary": "1"}), Poll(20, 21, ONE, {"canary": "2"})]
    assert decide(found, 12, 19) == "1"


def test_what_is_remembered_is_bounded() -> None:
    history = History()
    for n in range(10 * MAX_SPANS):
        history.add(Poll(n, n + 0.5, {str(n): "AVAILABLE"}))
    assert len(history.spans) == MAX_SPANS
    assert history.spans[-1] == Span(10 * MAX_SPANS - 0.5, 10 * MAX_SPANS - 1, str(10 * MAX_SPANS - 1))


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[float, str, str]]:
    """(time, version, state): versions that come and go as TF Serving's do, none of them twice."""
    changes = []
    for version in range(1, draw(st.integers(1, 4)) + 1):
        times = sorted(draw(st.lists(st.floats(0, 100), min_size=5, max_size=5)))
        changes += [
            (at, str(version), state)
            for at, state in zip(times, ("START", "LOADING", "AVAILABLE", "UNLOADING", "END"), strict=True)
        ]
    return sorted(changes)


@given(
    lives(),
    st.lists(st.tuples(st.floats(0, 110), st.floats(0, 5), st.floats(0, 1), st.booleans()), max_size=12),
    st.floats(0, 110),
    st.floats(0, 30),
    st.floats(0, 1),
)
def test_whatever_the_server_does_a_named_version_is_the_one_that_served(
    changes: list[tuple[float, str, str]],
    looks: list[tuple[float, float, float, bool]],
    began: float,
    took: float,
    where: float,
) -> None:
    def states(at: float) -> dict[str, str]:
        return {version: state for time, version, state in changes if time <= at}

    found: list[Poll] = []
    for asked, longest, share, failed in sorted(looks):
        start = max(asked, found[-1].answered if found else 0.0)
        # The server looks at itself at some time between question and answer.
        found.append(Poll(start, start + longest, None if failed else states(start + share * longest)))
    named = decide(found, began, began + took)
    if named not in (None, UNKNOWN_VERSION):
        now = states(began + where * took)
        # What is loaded serves before the status says so, and not any more while it is unloaded.
        assert now[named] == "AVAILABLE"
        assert not any(state == "AVAILABLE" and int(version) > int(named) for version, state in now.items())
        for poll in found:
            if began <= poll.asked and poll.answered <= began + took:
                assert poll.states is not None
