"""What the store of a fleet is asked for, counted by the server: as little as its answers allow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from capture.store.base import Store, open_store
from tests.support.fleet import Sidecar, bounds
from tests.support.stores import key_of, signature
from tests.support.valkey import Server

pytestmark = pytest.mark.server
BODY = bytes(2000)


@pytest.fixture
def pair(shared_url: str) -> Iterator[tuple[Sidecar, Sidecar]]:
    """Two of one fleet."""
    stores: list[Store] = [open_store(shared_url, create=True) for _ in range(2)]
    yield Sidecar("a", stores[0], bounds()), Sidecar("b", stores[1], bounds())
    for store in stores:
        store.close()


@pytest.fixture
def client(valkey: Server) -> Iterator[redis.Redis]:
    with valkey.client() as one:
        yield one


def asked(client: redis.Redis) -> tuple[int, int, int]:
    """(scripts, commands with those inside of scripts, bytes received)"""
    info = client.info("all")
    return info["cmdstat_evalsha"]["calls"], info["total_commands_processed"], info["total_net_input_bytes"]


def test_commands_of_a_batch_do_not_grow_with_its_signatures(
    pair: tuple[Sidecar, Sidecar], client: redis.Redis
) -> None:
    one, _ = pair
    many = [signature([f"output_{number}"]) for number in range(300)]
    for _ in range(2):
        for each in many:
            one.call(each, draw=0.9)
        one.flush()
    counts = []
    for some in (many[:1], many):
        for each in some:
            one.call(each, draw=0.9999)
        one.told.cuts.clear()
        before = asked(client)
        one.batch.held_out.clear()
        one.flush()
        counts.append([after - count for after, count in zip(asked(client), before, strict=True)])
    few, all_of_them = counts
    # One for the model version, one for the counters.
    assert few[0] == all_of_them[0] == 2
    assert all_of_them[1] <= few[1] + 5
    assert all_of_them[2] < 300 * 300


def test_what_another_has_stored_is_announced_and_not_sent(pair: tuple[Sidecar, Sidecar], client: redis.Redis) -> None:
    one, other = pair
    long_name = "n" * 1000
    many = [signature([f"{long_name}{number}"]) for number in range(20)]
    for _ in range(2):
        for each in many:
            one.call(each, body=BODY, draw=0.9999)
        one.flush()
    before = asked(client)
    for each in many:
        other.call(each, body=BODY)
    other.flush()
    scripts, _, received = (after - count for after, count in zip(asked(client), before, strict=True))
    # Neither the names, 20 KB of them, nor a request, whatever its size.
    assert scripts == 2
    assert received < 20 * 600
    assert len(other.told.samples) == 20
    assert (other.told.taken, one.told.taken) == (0, 20)


def test_which_shape_is_the_most_frequent_is_judged_over_all_sidecars(pair: tuple[Sidecar, Sidecar]) -> None:
    one, other = pair
    common = signature(["a"])
    for _ in range(10):
        one.call(common, shapes="x:float[1]", body=b"common")
    one.flush()
    # To this one the other shape is twice as frequent; over all it is not.
    other.call(common, shapes="x:float[1]", body=b"common too")
    other.flush()
    for _ in range(3):
        other.call(common, shapes="x:float[8]", body=b"seldom")
    told = other.flush()
    assert told.samples[key_of(common)].shapes == "x:float[1]"
    assert other.store.sample(key_of(common)).body == b"common"  # type: ignore[union-attr]
    # Once it is, its sample is taken: by whoever has one.
    for _ in range(22):
        other.call(common, shapes="x:float[8]", body=b"frequent", draw=0.9999)
    other.flush()
    other.call(common, shapes="x:float[8]", body=b"frequent", draw=0.9999)
    other.flush()
    assert other.store.sample(key_of(common)).body == b"frequent"  # type: ignore[union-attr]


def test_each_is_told_how_many_write(pair: tuple[Sidecar, Sidecar]) -> None:
    one, other = pair
    for sidecar in pair:
        sidecar.batch.counters = {"requests_observed": 1}
        sidecar.flush()
    assert (one.told.writers, other.told.writers) == (1, 2)
    one.now += 4000
    one.batch.counters = {"requests_observed": 2}
    assert one.flush().writers == 1
