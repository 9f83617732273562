from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.store.base import Store, open_store
from tests.support.valkey import Cluster, Server, debian_redis

#: Every kind of store passes the same suite. Tests share the servers: each has a prefix of its own.
SERVERS = {"valkey": "valkey", "cluster": "valkey_cluster", "redis": "debians_redis"}
KINDS = ["sqlite", *(pytest.param(name, marks=pytest.mark.server) for name in SERVERS)]
NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server."""
    with Server(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of three."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def debians_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Debian's Redis, which is older."""
    binary = debian_redis()
    if binary is None:
        pytest.skip("no redis-server is installed (Debian: apt-get install redis-server)")
    with Server(tmp_path_factory.mktemp("redis"), binary=binary) as server:
        yield server


@pytest.fixture
def shared_url(valkey: Server) -> str:
    """Where an empty store of a fleet may be created."""
    return f"{valkey.url}?prefix=t{next(NUMBERS)}"


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty store may be created; it may be opened several times."""
    if request.param == "sqlite":
        return str(tmp_path / "store.sqlite")
    server = request.getfixturevalue(SERVERS[request.param])
    return f"{server.url}?prefix=t{next(NUMBERS)}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """An empty store."""
    opened = open_store(url, create=True)
    yield opened
    opened.close()
