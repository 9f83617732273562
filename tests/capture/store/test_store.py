"""What every store does, whatever its kind."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from capture.store.base import MAX_SENDERS, MAX_SHAPES, OTHER, Batch, HeldOut, Store, open_store
from tests.support.stores import NOW, add, body_of, held_out, key_of, sample, signature

ONE, TWO = signature(["a"]), signature(["b", "b"])


def batch_of(*names: str) -> Batch:
    batch = Batch("run1")
    for name in names:
        add(batch, signature([name]))
    return batch


def test_an_empty_store(store: Store) -> None:
    assert store.signatures() == []
    assert store.sample(key_of(ONE)) is None
    assert store.held_out_index() == []
    assert list(store.held_out()) == []
    assert store.refusals() == []
    assert store.ignored() == []
    assert store.counters() == {}
    store.apply(Batch("run1"))
    assert store.signatures() == []


def test_everything_reads_back(store: Store, url: str) -> None:
    batch = Batch("run1", counters={"requests_observed": 5}, updated_at=NOW)
    key = add(batch, TWO, version="7", proven=3, unproven=2)
    batch.samples[key] = sample(b"\x00body\xff", wire_body=b"\x01wire")
    held_out(batch, key, "h1", b"held", draw=0.25)
    batch.refusals["tfserving", "m", "refused", "unknown signature"] = 4
    batch.ignored["HTTP GET, other path"] = 2
    store.apply(batch)
    other = open_store(url)
    for reader in (store, other):
        (row,) = reader.signatures()
        assert (row.key, row.signature, row.proven, row.unproven, row.hits) == (key, TWO, 3, 2, 5)
        assert (row.first_seen, row.last_seen, row.hours, row.evicted) == (NOW, NOW, 1, False)
        assert (row.shapes, row.senders) == ({"x:float[1]": 5}, {"curl 10.0.0.0/24": 1})
        assert (row.sample_at, row.sample_size) == (NOW, len(b"\x00body\xff") + len(b"\x01wire"))
        assert (row.sample_shapes, row.sample_outcome) == ("x:float[1]", "proven")
        assert reader.sample(key) == batch.samples[key]
        ((held_key, held),) = reader.held_out()
        assert (held_key, held) == (key, HeldOut("h1", sample(b"held"), 0.25, True))
        (index,) = reader.held_out_index()
        assert index == (key, "h1", 0.25, True, 4, NOW)
        assert reader.refusals() == [("tfserving", "m", "refused", "unknown signature", 4)]
        assert reader.ignored() == [("HTTP GET, other path", 2)]
        assert reader.counters() == {"requests_observed": 5}
    other.close()


def test_batches_add_up(store: Store) -> None:
    for at in (NOW + 10, NOW, NOW + 5):
        batch = Batch("run1")
        key = add(batch, ONE, proven=2, unproven=1, at=at)
        batch.refusals["eas", "m", "refused", "rate limit"] = 3
        batch.ignored["x"] = 1
        store.apply(batch)
    (row,) = store.signatures()
    assert (row.proven, row.unproven, row.hours) == (6, 3, 3)
    # Batches may arrive late.
    assert (row.first_seen, row.last_seen) == (NOW, NOW + 10)
    assert row.shapes == {"x:float[1]": 9}
    assert row.senders == {"curl 10.0.0.0/24": 3}
    assert store.refusals()[0][4] == 9
    assert store.ignored() == [("x", 3)]
    assert key == row.key


def test_counters_are_absolute_in_a_run_and_summed_over_runs(store: Store) -> None:
    for run, value in (("run1", 3), ("run1", 5), ("run2", 10)):
        store.apply(Batch(run, counters={"requests_observed": value, f"only_{run}": 1}))
    assert store.counters() == {"requests_observed": 15, "only_run1": 1, "only_run2": 1}


def test_the_newer_sample_replaces(store: Store) -> None:
    for body in (b"first", b"second"):
        batch = Batch("run1")
        key = add(batch, ONE, body=body)
        store.apply(batch)
    found = store.sample(key)
    assert found is not None
    assert found.body == b"second"


def test_totals_are_of_samples_and_of_what_is_held_out(store: Store) -> None:
    batch = Batch("run1")
    key = add(batch, ONE, body=b"12345")
    add(batch, TWO, body=b"123", version="2")
    add(batch, ONE, body=b"1", version="2")
    held_out(batch, key, "h1", b"1234567")
    held_out(batch, key, "h2", b"12")
    store.apply(batch)
    assert store.totals() == [(key.owner, 1, 14), (key_of(TWO, "2").owner, 2, 4)]
    store.apply(Batch("run1", evicted={key}, released={"h1": (None, False)}))
    assert store.totals() == [(key.owner, 1, 2), (key_of(TWO, "2").owner, 2, 4)]


def test_one_signature_on_two_versions(store: Store) -> None:
    batch = Batch("run1")
    keys = [add(batch, ONE, version=version, body=version.encode()) for version in ("1", "2")]
    store.apply(batch)
    assert [store.sample(key).body for key in keys] == [b"1", b"2"]  # type: ignore[union-attr]
    assert len(store.signatures()) == 2


def test_most_hits_come_first_and_models_are_told_apart(store: Store) -> None:
    batch = Batch("run1")
    for name, hits in (("few", 1), ("many", 100), ("some", 10)):
        add(batch, signature([name]), proven=hits)
    add(batch, signature(["o"], model="other"), proven=50)
    held_out(batch, key_of(signature(["many"])), "h1", b"1")
    held_out(batch, key_of(signature(["o"], model="other")), "h2", b"2")
    store.apply(batch)
    assert [row.hits for row in store.signatures()] == [100, 50, 10, 1]
    assert [row.signature.outputs for row in store.signatures("m")] == [("many",), ("some",), ("few",)]
    assert [held.id for _, held in store.held_out("other")] == ["h2"]
    assert store.signatures("none") == []


def test_an_evicted_signature_keeps_its_counts_alone(store: Store) -> None:
    batch = batch_of("a", "b")
    held_out(batch, key_of(ONE), "h1", b"held")
    held_out(batch, key_of(ONE), "h2", b"drawn")
    store.apply(batch)
    # What of its held-out requests goes is said by their roles: the reservoir is not a signature's.
    store.apply(Batch("run1", evicted={key_of(ONE)}, released={"h1": (None, False), "h2": (0.5, False)}))
    gone = next(row for row in store.signatures() if row.key == key_of(ONE))
    assert (gone.evicted, gone.sample_at, gone.sample_size, gone.sample_outcome) == (True, None, 0, "")
    assert (gone.proven, gone.first_seen, gone.shapes, gone.senders) == (1, NOW, {}, {})
    assert store.sample(key_of(ONE)) is None
    assert [(held.id, held.draw, held.for_signature) for held in store.held_out_index()] == [("h2", 0.5, False)]
    # The other one is untouched, and what is not known may be evicted.
    assert store.sample(key_of(signature(["b"]))) is not None
    store.apply(Batch("run1", evicted={key_of(signature(["never seen"]))}))


def test_evictions_come_before_samples(store: Store) -> None:
    store.apply(batch_of("a"))
    batch = Batch("run1", evicted={key_of(ONE)})
    add(batch, ONE, body=b"back again")
    store.apply(batch)
    (row,) = store.signatures()
    assert not row.evicted
    found = store.sample(row.key)
    assert found is not None
    assert found.body == b"back again"


def test_held_out_requests_lose_their_roles(store: Store) -> None:
    batch = batch_of("a")
    for number in range(3):
        held_out(batch, key_of(ONE), f"h{number}", b"x")
    store.apply(batch)
    store.apply(
        Batch("run1", released={"h0": (None, False), "h1": (None, True), "h2": (0.5, False), "gone": (None, False)})
    )
    assert {(row.id, row.draw, row.for_signature) for row in store.held_out_index()} == {
        ("h1", None, True),
        ("h2", 0.5, False),
    }


def test_a_request_of_an_unknown_signature_is_left_out(store: Store) -> None:
    batch = Batch("run1", samples={key_of(ONE): sample(b"x")})
    held_out(batch, key_of(TWO), "h1", b"x")
    store.apply(batch)
    assert store.sample(key_of(ONE)) is None
    assert store.held_out_index() == []


def test_what_was_not_seen_for_long_is_deleted_with_all_it_has(store: Store) -> None:
    old, new = Batch("run1"), Batch("run1", forget_before=NOW)
    key = add(old, ONE, at=NOW - 10)
    held_out(old, key, "h1", b"x")
    store.apply(old)
    add(new, TWO, at=NOW)
    store.apply(new)
    assert [row.signature for row in store.signatures()] == [TWO]
    assert store.sample(key) is None
    assert store.held_out_index() == []


def test_shapes_and_senders_are_bounded(store: Store) -> None:
    for turn in range(3):
        batch = Batch("run1")
        key = add(batch, ONE)
        batch.seen[key].shapes = Counter({f"x[{turn}{number}]": 2 for number in range(10)})
        batch.seen[key].senders = Counter({f"agent{turn}{number}": 1 for number in range(10)})
        store.apply(batch)
    (row,) = store.signatures()
    assert (len(row.shapes), sum(row.shapes.values())) == (MAX_SHAPES + 1, 60)
    assert row.shapes[OTHER] == 28
    assert (len(row.senders), sum(row.senders.values())) == (MAX_SENDERS + 1, 30)


def test_names_of_any_text(store: Store) -> None:
    odd = signature(["", "é\u2028\x00\x1b[31m", "'; DROP TABLE signatures;--"], model="m\x00/;")
    batch = Batch("run1")
    key = add(batch, odd)
    store.apply(batch)
    (row,) = store.signatures("m\x00/;")
    assert row.signature == odd
    assert store.sample(key) is not None


@pytest.mark.parametrize("broken", ["seen", "samples", "held_out", "released", "refusals", "ignored", "counters"])
def test_a_batch_that_fails_leaves_nothing(store: Store, broken: str) -> None:
    store.apply(batch_of("a"))
    before = (store.signatures(), store.held_out_index(), store.refusals(), store.ignored(), store.counters())
    batch = batch_of("a", "b")
    batch.counters = {"requests_observed": 1}
    batch.refusals["eas", "m", "refused", "rate limit"] = 1
    batch.ignored["x"] = 1
    held_out(batch, key_of(ONE), "h1", b"x")
    batch.evicted.add(key_of(ONE))
    poison: Any = object()
    if broken == "seen":
        batch.seen[key_of(TWO)] = poison
    elif broken == "samples":
        batch.samples[key_of(ONE)] = poison
    elif broken == "held_out":
        batch.held_out["h2"] = (key_of(ONE), poison)
    elif broken == "released":
        batch.released["h1"] = (poison, True)
    elif broken == "refusals":
        batch.refusals["eas", "m", "refused", "other"] = poison
    elif broken == "ignored":
        batch.ignored["y"] = poison
    else:
        batch.counters["z"] = poison
    with pytest.raises(Exception):  # noqa: B017 - whatever it is: nothing may stay
        store.apply(batch)
    assert before == (
        store.signatures(), store.held_out_index(), store.refusals(), store.ignored(), store.counters()
    )  # fmt: skip
    store.apply(batch_of("b"))
    assert len(store.signatures()) == 2


def test_two_writers(store: Store, url: str) -> None:
    other = open_store(url, create=True)
    for _ in range(5):
        store.apply(batch_of("a"))
        other.apply(batch_of("a", "b"))
    assert {row.signature.outputs: row.hits for row in other.signatures()} == {("a",): 10, ("b",): 5}
    assert other.signatures() == store.signatures()
    other.close()


def test_held_out_requests_are_read_while_others_go(store: Store, url: str) -> None:
    batch = batch_of("a")
    for number in range(3):
        held_out(batch, key_of(ONE), f"h{number}", b"x")
    store.apply(batch)
    reading = store.held_out()
    assert next(reading)[1].id == "h0"
    writer = open_store(url)
    writer.apply(Batch("run1", released={"h1": (None, False)}))
    assert [held.id for _, held in reading] == ["h2"]
    writer.close()


def test_the_sample_of_a_real_request_is_what_was_stored(store: Store) -> None:
    batch = batch_of("a")
    store.apply(batch)
    found = store.sample(key_of(ONE))
    assert found is not None
    assert found.body == body_of(ONE)
    assert found.size == len(found.body)
