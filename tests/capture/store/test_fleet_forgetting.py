"""What a store of a fleet forgets by age: all that is old, nothing else, however many write meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from capture.store.base import HOUR, Batch, Store, open_store
from capture.store.redis_store import RedisStore
from tests.support.fleet import Sidecar, bounds, hits
from tests.support.stores import NOW, key_of, signature

pytestmark = pytest.mark.server
ONE = signature(["a"])
Make = Callable[[str], Sidecar]


@pytest.fixture
def make(shared_url: str) -> Iterator[Make]:
    """Sidecars of one fleet."""
    stores: list[Store] = []

    def one(name: str) -> Sidecar:
        stores.append(open_store(shared_url, create=True))
        return Sidecar(name, stores[-1], bounds())

    yield one
    for store in stores:
        store.close()


def test_what_is_forgotten_of_many_leaves_the_hours_of_the_rest(make: Make) -> None:
    a = make("a")
    for hour in range(3):
        a.now = NOW + hour * HOUR
        for number in range(20):
            a.call(signature([f"s{number}"]))
        a.flush()
    a.now = NOW + 5 * HOUR
    a.call(signature(["s7"]))
    a.flush()
    assert isinstance(a.store, RedisStore)
    base = a.store._base(key_of(ONE).owner)
    assert a.store._link.client.hget(base, "blocks") == b"61"
    a.store.apply(Batch("a", bounds=a.bounds, updated_at=a.now, forget_before=NOW + 4 * HOUR))
    assert hits(a.store) == {"s7": 4}
    assert [block.calls for block in a.store.blocks()] == [1, 1, 1, 1]
    assert a.store._link.client.hget(base, "blocks") == b"4"
    assert len(a.store.held_out_index()) == 3


def test_who_writes_while_a_model_version_is_forgotten_is_found(make: Make) -> None:
    a, b = make("a"), make("b")
    a.call(ONE)
    a.flush()
    b.call(ONE)
    b.flush()
    assert isinstance(a.store, RedisStore)
    run = a.store._link.run

    def between(name: str, *rest: object) -> object:
        answer = run(name, *rest)  # type: ignore[arg-type]
        if name == "forget":
            b.now = NOW + 40 * 86400
            b.call(ONE)
            b.call(ONE)
            b.flush()
        return answer

    a.store._link.run = between  # type: ignore[method-assign,assignment]
    a.store.apply(Batch("a", bounds=a.bounds, updated_at=NOW + 40 * 86400, forget_before=NOW + 10))
    assert hits(a.store) == {"a": 2}
    (total,) = a.store.totals()
    assert a.store._link.client.hget(f"{a.store._prefix}:{{fleet}}", "bytes") == str(total.payload_bytes).encode()
