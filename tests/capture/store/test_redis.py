"""What is a server's own: it dies, stops, fills up, fails over, asks for a password. Nothing stored is lost by it."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path

import pytest

from capture.store.base import Batch, StoreError, open_store
from capture.store.redis_link import CLOCK_SECONDS, PASSWORD_VARIABLE
from capture.store.redis_store import RedisStore
from tests.support.certificates import Authority
from tests.support.stores import NOW, add, held_out, key_of, signature
from tests.support.tls_front import tls_front
from tests.support.valkey import Cluster, Server
from tests.support.waiting import until

pytestmark = pytest.mark.server
ONE = signature(["a"])


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short: a Unix socket's path has a hundred characters at most."""
    return tmp_path_factory.mktemp("s")


def one(hits: int = 1, body: bytes = b"body", at: float = NOW) -> Batch:
    batch = Batch("run1", updated_at=at)
    key = add(batch, ONE, proven=hits, body=body, at=at)
    held_out(batch, key, "h1", b"held")
    return batch


def refused(url: str, batch: Batch | None = None) -> str:
    """The error of opening it, or of writing to it."""
    with pytest.raises(StoreError) as caught, closing(open_store(url, create=batch is not None)) as store:
        store.apply(batch or Batch("run1"))
    text = str(caught.value)
    assert "\n" not in text
    return text


def hits(url: str) -> int:
    with closing(open_store(url)) as store:
        return sum(row.hits for row in store.signatures())


def test_a_store_is_there_once_somebody_has_written_it(valkey: Server) -> None:
    url = f"{valkey.url}?prefix=nobody"
    assert refused(url) == (
        f"store {url}: no warmtap store under nobody:; start the sidecar with this store first, or name another"
        " (?prefix=NAME)"
    )
    with closing(open_store(url, create=True)) as store:
        store.apply(one())
    assert hits(url) == 1
    # Another prefix and another database are other stores.
    assert "no warmtap store" in refused(f"{valkey.url}?prefix=nobody2")
    assert "no warmtap store" in refused(f"{valkey.url}/1?prefix=nobody")


def test_what_is_not_ours_stays_as_it_is(valkey: Server) -> None:
    with valkey.client() as client:
        client.set("theirs:{fleet}", "x")
        text = refused(f"{valkey.url}?prefix=theirs", one())
        assert text.endswith("keys theirs:... are another program's; take another prefix: ?prefix=NAME")
        assert client.get("theirs:{fleet}") == b"x"
        assert client.keys("theirs:*") == [b"theirs:{fleet}"]
        client.hset("newer:{fleet}", "format", 99)
        assert "written by a newer warmtap (format 99, this one reads up to 1)" in refused(f"{valkey.url}?prefix=newer")


def test_a_server_that_is_not_there(directory: Path) -> None:
    with Server(directory) as server:
        url = server.url
    assert "Connection refused" in refused(url)
    assert "Connection refused" in refused(url, one())
    assert "Connection refused" in refused(url.replace("redis:", "redis+cluster:"))
    assert "No such file" in refused(f"unix://{directory}/none")


def test_a_unix_socket(directory: Path) -> None:
    with Server(directory) as server:
        url = f"unix://{server.directory}/socket"
        with closing(open_store(url, create=True)) as store:
            store.apply(one())
        assert (hits(url), hits(server.url)) == (1, 1)


def test_passwords(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    with Server(directory, "--requirepass", "s3cret") as server:
        plain = f"store {server.url}"
        assert refused(server.url, one()).startswith(f"{plain}: NOAUTH: it asks for a password: put it into REDISCLI_A")
        wrong = server.url.replace("//", "//:wr0ng@")
        text = refused(wrong, one())
        assert text == f"store {server.url.replace('//', '//:***@')}: WRONGPASS: wrong user or password"
        monkeypatch.setenv(PASSWORD_VARIABLE, "s3cret")
        with closing(open_store(server.url, create=True)) as store:
            store.apply(one())
        monkeypatch.delenv(PASSWORD_VARIABLE)
        own = server.url.replace("//", "//default:s3cret@")
        assert hits(own) == 1
        with server.client(password="s3cret") as client:
            client.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~warmtap:*", "+@read", "+@connection")
        reader = server.url.replace("//", "//reader:pw@")
        assert hits(reader) == 1
        assert "NOPERM: this user may not do that" in refused(reader, one())


def test_a_password_that_nobody_asked_for(valkey: Server) -> None:
    assert "it asks for no password: leave it out" in refused(valkey.url.replace("//", "//:s3cret@"), one())


def test_a_server_that_makes_room_by_itself_is_warned_of_once(directory: Path) -> None:
    with (
        Server(directory, "--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru") as server,
        closing(open_store(server.url, create=True)) as store,
    ):
        said = [told.warnings for told in (store.apply(one()), store.apply(one())) if told is not None]
    assert said == [["maxmemory-policy allkeys-lru deletes what was captured once memory is full: set noeviction"], []]


def test_tls_with_certificates_on_both_sides(valkey: Server, directory: Path) -> None:
    authority = Authority(directory)
    mine, theirs = authority.issue("mine"), authority.issue("theirs")
    with tls_front(theirs, authority.ca, valkey.port) as port:
        url = f"rediss://127.0.0.1:{port}?prefix=tls"
        trusted = f"{url}&ca={authority.ca}&cert={mine.certificate}&key={mine.key}"
        with closing(open_store(trusted, create=True)) as store:
            store.apply(one())
        assert (hits(trusted), hits(f"{valkey.url}?prefix=tls")) == (1, 1)
        assert "certificate verify failed" in refused(url)
        assert refused(f"{url}&ca=/none.pem").endswith(": ca=/none.pem: No such file or directory")
    # A server without TLS takes the handshake for a command that has not ended.
    assert "no answer within 0.2 s" in refused(f"rediss://127.0.0.1:{valkey.port}?ca={authority.ca}&timeout=0.2")


def test_a_cluster_and_a_server_are_told_apart(valkey: Server, valkey_cluster: Cluster) -> None:
    assert "it is no cluster; write redis:// or rediss://" in refused(valkey.url.replace("redis:", "redis+cluster:"))
    node = valkey_cluster.url.replace("redis+cluster:", "redis:")
    for port in (node.port for node in valkey_cluster.nodes):
        with closing(open_store(f"redis://127.0.0.1:{port}", create=True)) as store:
            batch = Batch("run1")
            for number in range(20):
                add(batch, ONE, version=str(number))
            with pytest.raises(StoreError, match=r": MOVED: it is part of a cluster: write redis\+cluster://$"):
                store.apply(batch)
    assert node.startswith("redis://")


def test_a_server_without_memory_refuses_what_is_new_and_keeps_what_is_stored(directory: Path) -> None:
    with (
        Server(directory, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as server,
        closing(open_store(server.url, create=True)) as store,
    ):
        written: list[Batch] = []

        def write() -> None:
            batch = Batch("run1", updated_at=NOW)
            add(batch, signature([f"s{len(written)}"]), body=bytes(200_000))
            written.append(batch)
            store.apply(batch)

        def fill() -> None:
            for _ in range(1000):
                write()

        with pytest.raises(StoreError) as caught:
            fill()
        failed = written.pop()
        assert str(caught.value).endswith(
            "OOM: its memory is full (maxmemory): give it more, or lower capture.limits.store_bytes; what is stored"
            " stays"
        )
        assert len(written) > 5
        # What could not be written is written as a whole once there is memory.
        rows = store.signatures()
        assert len(rows) == len(written)
        assert all(store.sample(row.key) is not None for row in rows)
        with server.client() as client:
            client.config_set("maxmemory", "100mb")
        store.apply(failed)
        assert len(store.signatures()) == len(written) + 1


def test_a_killed_server_that_writes_a_log_has_everything_that_was_answered(directory: Path) -> None:
    with (
        Server(directory, "--appendonly", "yes", "--appendfsync", "always") as server,
        closing(open_store(server.url, create=True)) as store,
    ):
        batches = [one(hits=number) for number in range(1, 5)]
        store.apply(batches[0])
        store.apply(batches[1])
        server.kill()
        for _ in range(3):
            with pytest.raises(StoreError, match=r"refused|closed|reset"):
                store.apply(batches[2])
        server.start()
        store.apply(batches[2])
        store.apply(batches[3])
        assert [row.hits for row in store.signatures()] == [1 + 2 + 3 + 4]
        sample = store.sample(key_of(ONE))
        assert sample is not None
        assert sample.body == b"body"


def test_a_stopped_server_costs_a_writer_its_time_and_no_call_twice(directory: Path) -> None:
    with Server(directory) as server, closing(open_store(f"{server.url}?timeout=1", create=True)) as store:
        store.apply(one())
        server.send(signal.SIGSTOP)
        batch = one(hits=10)
        try:
            with pytest.raises(StoreError, match=r"no answer within 1 s; is it stopped, or behind a firewall\?$"):
                store.apply(batch)
        finally:
            server.send(signal.SIGCONT)
        # What it was sent while it was stopped it has done by now, or does in a moment; sent again it counts once.
        store.apply(batch)
        assert [row.hits for row in store.signatures()] == [11]


def test_connections_that_are_cut_are_made_anew(directory: Path) -> None:
    with Server(directory) as server, server.client() as client, closing(open_store(server.url, create=True)) as store:
        for _ in range(5):
            store.apply(one())
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            batch = one()
            for _ in range(3):
                try:
                    store.apply(batch)
                    break
                except StoreError:
                    continue
        assert [row.hits for row in store.signatures()] == [10]
        # Its scripts can go, too.
        client.script_flush()
        store.apply(one())
        assert [row.hits for row in store.signatures()] == [11]


def test_a_replica_that_takes_over_has_what_it_was_sent(directory: Path) -> None:
    with Server(directory / "a") as primary, Server(directory / "b") as replica:
        with closing(open_store(primary.url, create=True)) as store:
            store.apply(one())
        with replica.client() as client:
            client.replicaof("127.0.0.1", primary.port)
            until(lambda: client.info("replication")["master_link_status"] == "up", "replication")
            with closing(open_store(primary.url)) as store:
                batch = one(hits=5)
                store.apply(batch)
                with primary.client() as first:
                    first.wait(1, 60_000)
            text = refused(replica.url, one())
            assert "READONLY: it is a replica, perhaps since a failover: name the primary" in text
            primary.kill()
            client.replicaof("NO", "ONE")
        with closing(open_store(replica.url, create=True)) as store:
            store.apply(one(hits=10))
            assert [row.hits for row in store.signatures()] == [16]
            assert store.sample(key_of(ONE)) is not None


def test_a_cluster_that_fails_over_is_followed(directory: Path) -> None:
    with Cluster(directory, replica=True) as cluster:
        spare = cluster.nodes[-1]
        with closing(open_store(cluster.url, create=True)) as store:

            def batch() -> Batch:
                """One that speaks of many model versions: some lie on each node."""
                made = Batch("run1", updated_at=NOW)
                for number in range(30):
                    add(made, ONE, version=str(number))
                return made

            store.apply(batch())
            with cluster.nodes[2].client() as primary:
                primary.wait(1, 60_000)
            cluster.nodes[2].kill()
            with spare.client() as client:
                client.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
            second = batch()

            def written() -> bool:
                try:
                    store.apply(second)
                except StoreError:
                    return False
                return True

            until(written, "a batch on the new primary")
            assert [row.hits for row in store.signatures()] == [2] * 30


def test_a_clock_that_is_wrong_writes_nothing(shared_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    with closing(open_store(shared_url, create=True)) as store:
        store.apply(one())
        assert isinstance(store, RedisStore)
        right = time.time
        monkeypatch.setattr(time, "time", lambda: right() + 2 * CLOCK_SECONDS)
        store._link._clock_until = 0.0
        with pytest.raises(StoreError, match=r"the clocks of this machine and of the server differ by \d+ s"):
            store.apply(Batch("run1", forget_before=NOW + 1e9))
        assert len(store.signatures()) == 1
