"""Calls by hour and client, and losses by hour: what every store tells of them, and its bounds."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from capture.store import redis_parts, sqlite_blocks
from capture.store.base import (
    HOUR,
    MAX_BLOCKS,
    MAX_SENDERS,
    OTHER,
    Batch,
    Move,
    SignatureDelta,
    Store,
    count_sender,
    open_store,
)
from capture.store.sqlite_file import SCHEMA_VERSION
from tests.support.stores import NOW, add, key_of, signature

A, B = signature(["a"]), signature(["b"], model="other")
NOW_HOUR = int(NOW // HOUR)


def called(*calls: tuple[float, str, int]) -> Batch:
    """A batch in which A was called: (hours after NOW, sender, calls)."""
    batch = Batch("run1", updated_at=NOW)
    delta = batch.seen[key_of(A)] = SignatureDelta(A, NOW, NOW, sum(count for _, _, count in calls))
    for hours, sender, count in calls:
        count_sender(delta.senders, delta.blocks, sender, NOW + HOUR * hours, count)
    return batch


def test_calls_add_up_by_hour_and_client(store: Store) -> None:
    store.apply(called((0, "app/1.0 10.0.0.0/24", 2), (0, "app/2.0 10.9.0.0/24", 1), (1, "job (x) -", 5)))
    store.apply(called((0, "app/1.0 10.0.0.0/24", 4)))
    assert store.blocks() == [(key_of(A), NOW_HOUR, "app", 7), (key_of(A), NOW_HOUR + 1, "job", 5)]
    assert store.blocks(since_hour=NOW_HOUR + 1) == [(key_of(A), NOW_HOUR + 1, "job", 5)]
    assert store.blocks("other") == []


def test_clients_of_an_hour_are_bounded(store: Store) -> None:
    for turn in range(3):
        store.apply(called(*((0, f"bot{turn}-{number}/1 -", 1) for number in range(MAX_SENDERS))))
    names = {block.client: block.calls for block in store.blocks()}
    assert len(names) == MAX_SENDERS + 1
    assert names[OTHER] == 2 * MAX_SENDERS


def test_blocks_of_a_batch_are_bounded() -> None:
    (delta,) = called(*((0, f"bot{number}/1 -", 1) for number in range(2 * MAX_BLOCKS))).seen.values()
    assert len(delta.blocks) == MAX_BLOCKS + 1
    assert delta.blocks.total() == 2 * MAX_BLOCKS


def test_calls_that_are_of_another_version_move(store: Store) -> None:
    store.apply(called((0, "app/1 -", 3), (0, "job/1 -", 1), (1, "app/1 -", 2)))
    target = key_of(A, "2")
    some = called((0, "app/1 -", 1), (1, "app/1 -", 2)).seen[key_of(A)]
    store.apply(Batch("run1", moves=[Move(key_of(A), target, some, False, {})]))
    assert {block for block in store.blocks() if block.key == target} == {
        (target, NOW_HOUR, "app", 1),
        (target, NOW_HOUR + 1, "app", 2),
    }
    assert [block[1:] for block in store.blocks() if block.key != target] == [
        (NOW_HOUR, "app", 2),
        (NOW_HOUR, "job", 1),
    ]
    rest = called((0, "app/1 -", 2), (0, "job/1 -", 1)).seen[key_of(A)]
    store.apply(Batch("run1", moves=[Move(key_of(A), target, rest, False, {})]))
    assert [(block.key, block.calls) for block in store.blocks()] == [(target, 3), (target, 1), (target, 2)]


def test_what_is_forgotten_has_no_blocks(store: Store) -> None:
    store.apply(called((0, "app/1 -", 2)))
    store.apply(Batch("run1", forget_before=NOW + 1))
    assert store.blocks() == []


def test_counters_by_hour_are_what_they_grew_by(store: Store) -> None:
    def counted(run: str, hours: float, **counters: int) -> None:
        store.apply(Batch(run, counters={"relay_beats": 7, **counters}, updated_at=NOW + HOUR * hours))

    counted("run1", 0, requests_lost=5, requests_proven=100)
    counted("run1", 1, requests_lost=5, requests_proven=150)
    counted("run2", 1, requests_lost=1)
    # A run never counts back; one that does has begun anew under its name.
    counted("run2", 2, requests_lost=0)
    assert store.counted() == {"requests_lost": 6, "requests_proven": 150}
    assert store.counted(NOW_HOUR + 1) == {"requests_lost": 1, "requests_proven": 50}
    assert store.counted(NOW_HOUR + 2) == {}


def test_beyond_the_bound_the_oldest_hours_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sqlite_blocks, redis_parts):
        monkeypatch.setattr(module, "MAX_BLOCKS", 20)
    for hour in range(30):
        batch = called((hour, "app/1 -", 1))
        batch.updated_at, batch.counters = NOW + HOUR * hour, {"requests_lost": hour + 1}
        store.apply(batch)
    hours = [block.hour - NOW_HOUR for block in store.blocks()]
    assert hours == list(range(hours[0], 30))
    assert 18 <= len(hours) <= 20
    # A server has the losses of all model versions in a place of their own, with a bound of its own.
    assert store.counted() == {"requests_lost": 30 if store.shared else len(hours)}


def test_a_store_of_format_2_opens_with_everything_in_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = open_store(str(path), create=True)
    batch = Batch("run1", counters={"requests_lost": 3}, updated_at=NOW)
    add(batch, A, proven=4)
    store.apply(batch)
    store.close()
    db = sqlite3.connect(path)
    db.executescript("DROP TABLE blocks; DROP TABLE counted; PRAGMA user_version=2;")
    db.close()
    store = open_store(str(path))
    assert [row.hits for row in store.signatures()] == [4]
    assert (store.blocks(), store.counted()) == ([], {})
    store.apply(called((1, "app/1 -", 2)))
    store.apply(Batch("run1", counters={"requests_lost": 8}, updated_at=NOW + HOUR))
    assert store.counted() == {"requests_lost": 5}
    assert len(store.blocks()) == 1
    store.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    db.close()
