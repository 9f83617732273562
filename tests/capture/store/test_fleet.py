"""What a store does for many who write it at once: one of them wins, all are counted, bounds are over all of them."""

from __future__ import annotations

import random
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from capture.admission_moves import move
from capture.store import redis_writer
from capture.store.base import HOUR, Batch, Bounds, Move, Store, StoreError, open_store
from capture.store.redis_parts import RUN_SECONDS
from capture.store.redis_store import RedisStore
from tests.support.fleet import Sidecar, bounds, hits
from tests.support.stores import NOW, add, held_out, key_of, signature
from tests.support.valkey import Server

pytestmark = pytest.mark.server
ONE = signature(["a"])
Make = Callable[..., Sidecar]


@pytest.fixture
def make(shared_url: str) -> Iterator[Make]:
    """Sidecars of one fleet."""
    stores: list[Store] = []

    def one(name: str, limits: Bounds | None = None, seed: int = 0) -> Sidecar:
        stores.append(open_store(shared_url, create=True))
        return Sidecar(name, stores[-1], limits or bounds(), seed)

    yield one
    for store in stores:
        store.close()


def test_the_first_of_many_writes_the_sample_and_all_are_counted(make: Make) -> None:
    sidecars = [make(f"s{number}") for number in range(8)]
    ready = threading.Barrier(len(sidecars))

    def work(sidecar: Sidecar) -> None:
        ready.wait()
        for turn in range(5):
            for name in ("a", "b", "c"):
                sidecar.call(signature([name]), body=f"{sidecar.name} {name} {turn}".encode() * 2000)
            sidecar.flush()

    threads = [threading.Thread(target=work, args=(sidecar,)) for sidecar in sidecars]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = sidecars[0].store
    assert hits(store) == {"a": 40, "b": 40, "c": 40}
    rows = store.signatures()
    assert [row.hours for row in rows] == [1, 1, 1]
    for row in rows:
        sample = store.sample(row.key)
        assert sample is not None
        winner = sample.body.split()[0].decode()
        # Everyone else was told who has it, and proposes none.
        for sidecar in sidecars:
            known = sidecar.admission._versions[row.key.owner].signatures[row.key.digest]
            assert (known.sample_at, known.sample_size) == (row.sample_at, row.sample_size)
            assert (row.key in sidecar.told.samples) is False
        assert winner in {sidecar.name for sidecar in sidecars}
    # One further sample of each, though each sidecar has held one out.
    assert sum(held.for_signature for held in store.held_out_index()) == 3


def test_who_has_seen_a_sample_may_replace_it_and_nobody_else(make: Make) -> None:
    a, b, c = make("a"), make("b"), make("c")
    a.call(ONE, body=b"first of a")
    a.flush()
    b.call(ONE, body=b"first of b")
    b.flush()
    a.now += 2 * 86400
    a.call(ONE, body=b"newer of a")
    a.flush()
    b.now = a.now
    # To b it is old as well, but it has not seen the newer one.
    b.call(ONE, body=b"newer of b")
    told = b.flush()
    c.now = a.now
    c.call(ONE, body=b"first of c")
    c.flush()
    sample = a.store.sample(key_of(ONE))
    assert sample is not None
    assert sample.body == b"newer of a"
    assert told.samples[key_of(ONE)].at == a.now


def test_a_proven_sample_replaces_an_unproven_one_whoever_knows_it(make: Make) -> None:
    a, b = make("a"), make("b")
    a.call(ONE, proven=False, body=b"unproven")
    b.call(ONE, proven=False, body=b"unproven too")
    a.flush()
    b.flush()
    assert a.store.sample(key_of(ONE)).body == b"unproven"  # type: ignore[union-attr]
    c = make("c")
    c.call(ONE, body=b"proven")
    c.flush()
    assert a.store.sample(key_of(ONE)).outcome == "proven"  # type: ignore[union-attr]
    a.call(ONE, proven=False)
    a.flush()
    assert a.store.sample(key_of(ONE)).body == b"proven"  # type: ignore[union-attr]


def test_bodies_are_sent_only_where_there_is_none(make: Make, shared_url: str) -> None:
    big = bytes(200_000)
    a, b = make("a"), make("b")
    a.call(ONE, body=big)
    a.flush()
    b.flush()
    assert isinstance(b.store, RedisStore)
    client = b.store._link.client
    before = client.info("stats")["total_net_input_bytes"]
    for _ in range(20):
        b.call(ONE, body=big)
    b.flush()
    # A sample that is there already is announced only; the reservoir has room for the rest.
    received = client.info("stats")["total_net_input_bytes"] - before
    assert len(b.store.held_out_index()) == 20 - 1
    assert received < (20 - 1) * len(big) + 50_000
    b.now += 10
    before = client.info("stats")["total_net_input_bytes"]
    b.call(ONE, body=big, draw=0.9999)
    b.call(ONE, body=big, draw=0.9999)
    b.told.cuts.clear()
    b.admission._versions[key_of(ONE).owner].told_cut = 0.5
    b.call(ONE, body=big, draw=0.9)
    b.flush()
    assert client.info("stats")["total_net_input_bytes"] - before < 3 * len(big)


def test_a_batch_whose_answer_was_lost_is_not_counted_twice(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecar = make("a")
    store = sidecar.store
    assert isinstance(store, RedisStore)
    link = store._link
    sent = link.run
    lost: list[str] = []

    def lose(name: str, key: str, message: object, *blobs: bytes) -> object:
        answer = sent(name, key, message, *blobs)
        if name not in lost:
            lost.append(name)
            link.close()
            raise ConnectionResetError(104, "Connection reset by peer")
        return answer

    monkeypatch.setattr(link, "run", lose)
    batch = Batch("run1", bounds=bounds(), updated_at=NOW, counters={"requests_lost": 7})
    key = add(batch, ONE, proven=3, body=b"x")
    add(batch, ONE, version="2", proven=5, body=b"y")
    held_out(batch, key, "h1", b"held", draw=0.1)
    batch.refusals["eas", "m", "refused", "rate limit"] = 2
    batch.ignored["x"] = 4
    failures = 0
    for _ in range(10):
        try:
            store.apply(batch)
            break
        except StoreError:
            failures += 1
    assert (failures, lost) == (2, ["apply", "fleet"])
    assert {row.key.owner.version: row.hits for row in store.signatures()} == {"1": 3, "2": 5}
    assert store.refusals()[0][4] == 2
    assert store.ignored() == [("x", 4)]
    assert store.counted() == {"requests_lost": 7}
    assert [row.id for row in store.held_out_index()] == ["h1"]
    # The same number never comes again; the next batch counts.
    store.apply(Batch("run1", ignored=batch.ignored.copy()))
    assert store.ignored() == [("x", 8)]


def test_signatures_are_bounded_over_the_fleet_by_what_all_have_seen(make: Make) -> None:
    limits = bounds(signatures=4, new_per_hour=3)
    sidecars = [make(f"s{number}", limits) for number in range(3)]
    # Each sidecar sees two of its own, far below its bound: six in all. The first has the most hits.
    for number, sidecar in enumerate(sidecars):
        for turn in range(10 - number):
            sidecar.call(signature([f"own{number}"]), body=b"%d" % turn)
        sidecar.call(signature([f"rare{number}"]))
        sidecar.now += number
        sidecar.flush()
    rows = sidecars[0].store.signatures()
    kept = {row.signature.outputs[0] for row in rows if not row.evicted and row.signature.outputs}
    # Three came in while there was room, one more in this hour would be the fourth: it is turned away.
    assert len(kept) <= 4
    assert {"own0", "rare0", "own1"} <= kept
    turned_away = sum(sum(sidecar.told.turned_away.values()) for sidecar in sidecars)
    assert turned_away + sum(hits(sidecars[0].store).values()) == 10 + 9 + 8 + 3
    assert turned_away > 0
    # An hour later there is room for new ones: the least useful goes, though its own sidecar knows it as its only one.
    late = sidecars[2]
    late.now += 2 * HOUR
    for turn in range(3):
        late.call(signature(["late"]), body=b"%d" % turn)
    late.flush()
    rows = late.store.signatures()
    assert sum(not row.evicted for row in rows) == 4
    assert "late" in {row.signature.outputs[0] for row in rows if not row.evicted and row.signature.outputs}
    gone = next(row for row in rows if row.evicted)
    assert (gone.sample_at, gone.shapes) == (None, {})
    assert gone.hits > 0
    assert late.store.sample(gone.key) is None


def test_an_evicted_signature_comes_back_when_it_has_outgrown_the_least(make: Make) -> None:
    limits = bounds(signatures=2)
    a, b = make("a", limits), make("b", limits)
    for name in ("x", "y"):
        a.call(signature([name]))
    a.flush()
    b.now += HOUR
    for _ in range(2):
        b.call(signature(["z"]))
    b.flush()
    (gone,) = [row for row in a.store.signatures() if row.evicted]
    name = (gone.signature.outputs or ("",))[0]
    a.now += 60
    a.call(signature([name]))
    a.flush()
    assert gone.key in a.told.evicted
    # It is seen on and on; its sidecar proposes it again after an hour.
    for _ in range(4):
        a.now += HOUR
        a.call(signature([name]), body=b"again")
        a.flush()
    back = next(row for row in a.store.signatures() if row.key == gone.key)
    assert not back.evicted
    assert a.store.sample(gone.key) is not None
    assert sum(not row.evicted for row in a.store.signatures()) == 2


def test_the_bytes_of_all_are_bounded(make: Make) -> None:
    limits = bounds(store_bytes=100_000)
    a, b = make("a", limits), make("b", limits)
    for number in range(14):
        old = a if number % 2 else b
        old.call(signature([f"o{number}"]), version="1", body=bytes(6000))
    for sidecar in (a, b):
        sidecar.flush()
    for number in range(12):
        new = a if number % 2 else b
        new.now = NOW + HOUR
        new.call(signature([f"n{number}"]), version="2", body=bytes(6000))
    for sidecar in (a, b):
        sidecar.flush()
    store = a.store
    total = sum(row.sample_size for row in store.signatures()) + sum(row.size for row in store.held_out_index())
    assert total <= 100_000
    # What was seen last stays, what was seen before it went, and is remembered by its counts.
    assert all(row.sample_at for row in store.signatures() if row.key.owner.version == "2")
    assert sum(hits(store).values()) == 14 + 12
    assert 0 < sum(row.evicted for row in store.signatures()) < 14


def test_the_reservoir_is_uniform_over_the_traffic_of_all(valkey: Server) -> None:
    """Sidecars of very different traffic, for hours, with expiry: each call has the same chance to be held out."""
    rates = [4, 20, 80, 200]
    limits = bounds(requests=64, seconds=3 * HOUR, refresh=1e12)
    chance = random.Random(7)
    whose: Counter[str] = Counter()
    ages: list[float] = []
    for fleet in range(10):
        store = open_store(f"{valkey.url}?prefix=uniform{fleet}", create=True)
        sidecars = [Sidecar(f"s{rate}", store, limits, fleet) for rate in rates]
        for hour in range(9):
            chance.shuffle(sidecars)
            for sidecar in sidecars:
                sidecar.now = NOW + HOUR * (hour + chance.random())
                for _ in range(int(sidecar.name[1:])):
                    sidecar.call(ONE, body=b"x")
                sidecar.flush()
        held = [row for row in store.held_out_index() if row.draw is not None]
        assert 40 <= len(held) <= 64
        whose.update(row.id.partition("-")[0] for row in held)
        ages += [9 - (row.captured_at - NOW) / HOUR for row in held]
        store.close()
    for rate in rates:
        share = rate / sum(rates)
        # Some 600 draws: four standard deviations.
        assert abs(whose[f"s{rate}"] / whose.total() - share) < 4 * (share * (1 - share) / whose.total()) ** 0.5, whose
    # Over the window of three hours, too: the mean age is half of it.
    assert abs(statistics.fmean(ages) - 1.5) < 0.25


def test_the_threshold_that_all_are_told_keeps_requests_from_being_proposed(make: Make) -> None:
    limits = bounds(requests=16, refresh=1e12)
    a, b = make("a", limits), make("b", limits)
    for _ in range(4000):
        a.call(ONE, body=b"x")
    cut = a.flush().cuts[key_of(ONE).owner]
    assert cut < 0.05
    b.call(ONE, body=b"x")
    b.flush()
    for _ in range(200):
        b.call(ONE, body=b"x")
    assert len(b.batch.held_out) < 40
    b.flush()
    assert sum(row.draw is not None for row in a.store.held_out_index()) == 16


def test_names_of_models_are_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_writer, "MAX_OWNERS", 2)
    a = make("a")
    for version in ("1", "2", "3"):
        a.call(ONE, version=version)
        a.call(ONE, version=version)
    told = a.flush()
    assert told.turned_away == {key_of(ONE, "3"): 2}
    assert {row.key.owner.version for row in a.store.signatures()} == {"1", "2"}
    # Known ones are counted on.
    a.call(ONE, version="1")
    a.flush()
    assert hits(a.store) == {"a": 5}


def test_forgetting_is_done_by_one_of_them(make: Make) -> None:
    a, b = make("a"), make("b")
    a.call(ONE)
    a.flush()
    for sidecar, expected in ((a, True), (b, False)):
        sidecar.now = NOW + 40 * 86400
        batch = Batch(sidecar.name, bounds=sidecar.bounds, updated_at=sidecar.now, forget_before=NOW + 10)
        assert isinstance(sidecar.store, RedisStore)
        writes: list[str] = []
        run = sidecar.store._link.run
        sidecar.store._link.run = lambda name, *rest, run=run, writes=writes: (  # type: ignore[method-assign,misc]
            writes.append(name),
            run(name, *rest),
        )[1]
        sidecar.store.apply(batch)
        assert ("forget" in writes) is expected
    assert a.store.signatures() == []
    assert isinstance(a.store, RedisStore)
    prefix = a.store._prefix
    left = {key.decode() for key in a.store._link.client.scan_iter(f"{prefix}:*")}
    # Nothing of the model version but the numbers of batches, which expire.
    assert {key for key in left if ":done:" not in key} <= {
        f"{prefix}:{{fleet}}", f"{prefix}:{{fleet}}:seen", f"{prefix}:{{fleet}}:runs"
    }  # fmt: skip
    assert all(a.store._link.client.ttl(key) > 0 for key in left if ":done:" in key)


@pytest.mark.parametrize("cut", ["", "apply", "take"])
def test_calls_move_to_their_version_with_their_requests_once(
    make: Make, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """Two scripts on two slots; the connection is cut after one of them ran."""
    a, b = make("a"), make("b")
    for sidecar in (a, b):
        for turn in range(4):
            sidecar.call(ONE, version="unknown", body=b"%s %d" % (sidecar.name.encode(), turn))
    source, target = key_of(ONE, "unknown"), key_of(ONE, "7")
    delta = a.batch.seen[source]
    held = [name for name, _ in a.batch.held_out.items()]
    a.flush()
    b.flush()
    moved = move(a.admission, source, target, delta, sampled_at=a.now, held=held)
    assert moved.decision.admitted
    assert moved.sample
    a.batch.moves.append(Move(source, target, delta, moved.sample, moved.held))
    assert isinstance(a.store, RedisStore)
    link = a.store._link
    sent, lost = link.run, [cut]

    def lose(name: str, key: str, message: object, *blobs: bytes) -> object:
        answer = sent(name, key, message, *blobs)
        if name in lost:
            lost.clear()
            link.close()
            raise ConnectionResetError(104, "Connection reset by peer")
        return answer

    monkeypatch.setattr(link, "run", lose)
    batch, a.batch = a.batch, Batch("a")
    batch.bounds, batch.updated_at = a.bounds, a.now
    if cut:
        with pytest.raises(StoreError):
            a.store.apply(batch)
    a.store.apply(batch)
    rows = {row.key: row for row in a.store.signatures()}
    assert {key.owner.version: row.hits for key, row in rows.items()} == {"unknown": 4, "7": 4}
    assert {key.owner.version: row.senders for key, row in rows.items()} == {"unknown": {"b -": 4}, "7": {"a -": 4}}
    assert {(block.key.owner.version, block.client, block.calls) for block in a.store.blocks()} == {
        ("unknown", "b", 4), ("7", "a", 4)
    }  # fmt: skip
    sample = a.store.sample(target)
    assert sample is not None
    assert sample.body.startswith(b"a")
    where = {row.id: row.key.owner.version for row in a.store.held_out_index()}
    assert {where[name] for name in held} == {"7"}
    assert {version for name, version in where.items() if name.startswith("b-")} == {"unknown"}


def test_a_server_that_lost_everything_gets_it_again(make: Make) -> None:
    a = make("a")
    for _ in range(3):
        a.call(ONE, body=b"x")
    a.flush()
    assert not a.told.warnings
    store = a.store
    assert isinstance(store, RedisStore)
    for key in store._link.client.scan_iter(f"{store._prefix}:*"):
        store._link.client.delete(key)
    a.now += 60
    a.call(ONE, body=b"counted, and told that there is no sample")
    told = a.flush()
    assert told.warnings == ["the server had lost the store: begun anew"]
    assert told.lacking == {key_of(ONE): (True, True)}
    for body in (b"sample", b"further"):
        a.now += 60
        a.call(ONE, body=body, draw=0.99999)
        a.flush()
    with closing(open_store(store._link.url.shown)) as other:
        (row,) = other.signatures()
        assert row.hits == 3
        assert other.sample(row.key).body == b"sample"  # type: ignore[union-attr]
        assert [held.sample.body for _, held in other.held_out()][-1] == b"further"
    assert not a.told.lacking


def test_runs_that_ended_long_ago_are_one_sum(make: Make) -> None:
    store = make("a").store
    for number in range(15):
        store.apply(Batch(f"run{number}", counters={"requests_observed": 10}, updated_at=NOW))
    for _ in range(3):
        late = NOW + RUN_SECONDS + 1
        store.apply(Batch("now", counters={"requests_observed": 1}, updated_at=late, bounds=bounds()))
    assert list(store.runs()) == ["(ended long ago)", "now"]
    assert store.counters() == {"requests_observed": 151}


def test_a_lock_has_one_holder_until_its_time_is_over(make: Make) -> None:
    a, b = make("a").store, make("b").store
    assert isinstance(a, RedisStore)
    assert isinstance(b, RedisStore)
    mine, theirs = a.lock("refresh", 60), b.lock("refresh", 60)
    assert mine.acquire()
    assert not theirs.acquire()
    assert mine.renew()
    assert not theirs.renew()
    assert not theirs.release()
    assert mine.acquire()
    assert mine.release()
    assert theirs.acquire()
    assert b.lock("another", 60).acquire()
    # Its time is over: whoever comes next has it, and the first one's renewal does not bring it back.
    b._link.client.delete(theirs._key)
    assert not theirs.renew()
    assert mine.acquire()
    assert not theirs.release()
    assert 0 < a._link.client.pttl(mine._key) <= 60_000
