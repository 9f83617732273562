"""A slot that moves from one node of a cluster to another while sidecars write: nothing is lost, nothing begun anew."""

from __future__ import annotations

from contextlib import closing

import pytest

from capture.store.base import StoreError, open_store
from capture.store.redis_store import RedisStore
from tests.support.fleet import Sidecar, bounds, hits
from tests.support.stores import key_of, signature
from tests.support.valkey import Cluster, Server

pytestmark = pytest.mark.server
ONE = signature(["a"])


def name_of(node: Server) -> str:
    with node.client() as client:
        return str(client.execute_command("CLUSTER MYID").decode())


@pytest.mark.parametrize("last", ["", ":rows", ":hours"])
def test_what_is_written_while_a_slot_moves_adds_up(valkey_cluster: Cluster, last: str) -> None:
    """``last`` is the key that is still on the old node when the sidecar writes: this, and what it finds by it."""
    url = f"{valkey_cluster.url}?prefix=moves{last[1:]}&timeout=20"
    with closing(open_store(url, create=True)) as store:
        assert isinstance(store, RedisStore)
        sidecar = Sidecar("a", store, bounds())
        sidecar.call(ONE)
        sidecar.flush()
        base = store._base(key_of(ONE).owner)
        client = store._link.client
        slot = client.keyslot(base)
        source = next(node for node in valkey_cluster.nodes if node.port == client.get_node_from_key(base).port)
        target = next(node for node in valkey_cluster.nodes if node is not source)
        with source.client() as old, target.client() as new:
            new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", name_of(source))
            old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", name_of(target))

            def move(besides: str) -> None:
                for key in old.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
                    if key != besides:
                        # Without REPLACE: it fails where a script has begun the key anew.
                        assert old.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000) == b"OK"

            move(base + last)
            for _ in range(3):
                sidecar.call(ONE)
            written = sidecar.batch
            written.updated_at, written.bounds = sidecar.now, sidecar.bounds
            with pytest.raises(StoreError, match="TRYAGAIN: the cluster is moving keys"):
                store.apply(written)
            move("")
            for node in valkey_cluster.nodes:
                with node.client() as one:
                    one.execute_command("CLUSTER SETSLOT", slot, "NODE", name_of(target))
        store.apply(written)
        assert hits(store) == {"a": 4}
        assert sum(block.calls for block in store.blocks()) == 4
