"""What a rise of the server's counters means: a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from capture.store.base import StoredSignature
from replay.watching import (
    BUILDS,
    CALLS,
    COMPILATIONS,
    LOADS,
    Finding,
    Scrape,
    judge,
    read_counters,
    read_status,
    suspects,
)
from tests.support.stores import key_of, signature

ATTEMPTS, LATENCY = LOADS


def scrape(
    at: float, builds: float | None, *, serving: str | None = None, moving: bool = False, **more: float
) -> Scrape:
    names = {"compilations": COMPILATIONS, "attempts": ATTEMPTS, "latency": LATENCY, "calls": CALLS}
    counters = {names[name]: count for name, count in more.items()}
    if builds is not None:
        counters[BUILDS] = builds
    return Scrape(at, counters, None if serving is None else frozenset(serving.split()), moving)


@pytest.mark.parametrize(
    ("before", "after", "kind", "rises"),
    [
        (None, scrape(2, 5), "first", {}),
        (scrape(1, None), scrape(2, 5), "first", {}),
        (scrape(1, 5), scrape(2, 5), "quiet", {}),
        (scrape(1, 5), scrape(2, 7), "miss", {BUILDS: 2}),
        (scrape(1, 5), scrape(2, 5, compilations=1), "miss", {COMPILATIONS: 1}),
        (scrape(1, 5, compilations=1), scrape(2, 6, compilations=3), "miss", {BUILDS: 1, COMPILATIONS: 2}),
        (scrape(1, 5, serving="m/1"), scrape(2, 6, serving="m/1"), "miss", {BUILDS: 1}),
        # A load: by its count, by the versions that are served, by one that is on its way.
        (scrape(1, 5, attempts=1), scrape(2, 9, attempts=2), "loading", {BUILDS: 4}),
        (scrape(1, 5), scrape(2, 9, attempts=1), "loading", {BUILDS: 4}),
        (scrape(1, 5, serving="m/1"), scrape(2, 9, serving="m/1 m/2"), "loading", {BUILDS: 4}),
        (scrape(1, 5, serving="m/1"), scrape(2, 9, serving="m/1", moving=True), "loading", {BUILDS: 4}),
        (scrape(1, 5, serving="m/1", moving=True), scrape(2, 9, serving="m/1"), "loading", {BUILDS: 4}),
        # Nobody told the versions at one end: that is no load.
        (scrape(1, 5), scrape(2, 6, serving="m/1"), "miss", {BUILDS: 1}),
        # Another process: also where its builds are above those of the one before.
        (scrape(1, 5), scrape(2, 4), "restarted", {}),
        (scrape(1, 5, attempts=3), scrape(2, 9, attempts=1), "restarted", {}),
        (scrape(1, 5, attempts=3), scrape(2, 9), "restarted", {}),
        (scrape(1, 5, calls=70), scrape(2, 9, calls=3), "restarted", {}),
        # Of as many loads as before: they took another time, so it is no miss of the first process.
        (scrape(1, 5, attempts=1, latency=812_345), scrape(2, 9, attempts=1, latency=790_001), "restarted", {}),
        (scrape(1, 5, attempts=1, latency=812_345), scrape(2, 9, attempts=1, latency=955_001), "loading", {BUILDS: 4}),
        (
            scrape(1, 5, attempts=1, latency=8, calls=7),
            scrape(2, 6, attempts=1, latency=8, calls=9),
            "miss",
            {BUILDS: 1},
        ),
        (scrape(1, 5), scrape(2, None), "missing", {}),
        (scrape(1, None), scrape(2, None), "missing", {}),
        (None, scrape(2, None), "missing", {}),
    ],
)
def test_what_it_means(before: Scrape | None, after: Scrape, kind: str, rises: dict[str, int]) -> None:
    found = judge(before, after)
    assert (found.kind, found.rises) == (kind, rises)
    assert (found.since, found.until) == ((before or after).at, after.at)


def row(
    outputs: str, first_seen: float, *, last_seen: float | None = None, hits: int = 1, version: str = "1"
) -> StoredSignature:
    one = signature(outputs.split())
    last = first_seen if last_seen is None else last_seen
    return StoredSignature(key_of(one, version), one, hits, 0, first_seen, last, 1, {}, {}, False, None, 0, "", "")


MISS = Finding("miss", 100.0, 130.0, {BUILDS: 1})


def test_suspects_are_what_was_first_seen_then() -> None:
    old, early, late, after = row("a", 50.0), row("b", 99.5), row("a c", 134.0, hits=9), row("d", 136.0)
    found = suspects(MISS, [old, early, late, after], until=135.0)
    assert [one.row for one in found] == [late, early]
    assert found[0].explained == f"than {old.key.digest[:15]}: fetches also: c"


def test_where_none_is_new_those_that_were_called_are_suspected() -> None:
    often, seldom, idle = row("a", 5.0, last_seen=128.0, hits=900), row("b", 5.0, last_seen=110.0), row("c", 5.0)
    found = suspects(MISS, [often, idle, seldom], until=135.0)
    assert [(one.row, one.explained, one.known) for one in found] == [(seldom, "", True), (often, "", True)]
    assert [one.known for one in suspects(MISS, [often, row("d", 110.0)], until=135.0)] == [False]
    assert suspects(MISS, [idle], until=135.0) == ()


def test_a_signature_that_is_old_on_one_version_is_new_on_the_next() -> None:
    old, new = row("a", 50.0), row("a", 110.0, version="2")
    (found,) = suspects(MISS, [old, new], until=135.0)
    assert (found.row, found.explained) == (new, "")


def test_other_models_explain_nothing() -> None:
    other = replace(row("a", 50.0), key=key_of(signature(["a"], model="other")))
    assert [one.explained for one in suspects(MISS, [other, row("b", 110.0)], until=135.0)] == [""]


def test_counters_as_tf_serving_prints_them() -> None:
    text = (
        "# TYPE :tensorflow:core:graph_build_calls counter\n"
        ":tensorflow:core:graph_build_calls{} 12\n"
        ':tensorflow:cc:saved_model:load_attempt_count{model_path="/m/{1}",status="success"} 1\n'
        ':tensorflow:cc:saved_model:load_attempt_count{model_path="/m/2",status="fail"} 2 1700000000000\n'
        "process_cpu_seconds_total 5\n"
        ":tensorflow:core:direct_session_runs{} 1e0\n"
        ":tensorflow:broken{} 1-2\n"
        ":tensorflow:more\n"
        "<html>\n"
    )
    assert read_counters(text) == {BUILDS: 12, ATTEMPTS: 3, CALLS: 1}


def test_the_status_of_a_model() -> None:
    def status(*states: str) -> bytes:
        listed = ",".join(f'{{"version":"{n}","state":"{state}","status":{{}}}}' for n, state in enumerate(states, 1))
        return f'{{"model_version_status":[{listed}]}}'.encode()

    assert read_status("m", status("END", "AVAILABLE")) == ({"m/2"}, False)
    assert read_status("m", status("AVAILABLE", "LOADING")) == ({"m/1"}, True)
    assert read_status("m", status("UNLOADING")) == (frozenset(), True)
    assert read_status("m", b'{"error": "unknown"}') is None
    assert read_status("m", b"\xff") is None
