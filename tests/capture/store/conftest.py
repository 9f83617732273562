from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.store.base import Store, open_store
from tests.support.valkey import Cluster, Server

#: Every kind of store passes the same suite. Tests share the servers: each has a prefix of its own.
KINDS = ["sqlite", pytest.param("redis", marks=pytest.mark.server), pytest.param("cluster", marks=pytest.mark.server)]
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


@pytest.fixture
def shared_url(valkey: Server) -> str:
    """Where an empty store of a fleet may be created."""
    return f"{valkey.url}?prefix=t{next(NUMBERS)}"


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty store may be created; it may be opened several times."""
    if request.param == "sqlite":
        return str(tmp_path / "store.sqlite")
    server = request.getfixturevalue("valkey" if request.param == "redis" else "valkey_cluster")
    return f"{server.url}?prefix=t{next(NUMBERS)}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """An empty store."""
    opened = open_store(url, create=True)
    yield opened
    opened.close()
