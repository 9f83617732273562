from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capture.store.base import Store, open_store

#: Every kind of store passes the same suite: a function from a directory to a URL that may be opened several times.
KINDS: dict[str, Callable[[Path], str]] = {"sqlite": lambda directory: str(directory / "store.sqlite")}


@pytest.fixture(params=sorted(KINDS))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty store may be created."""
    return KINDS[request.param](tmp_path)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """An empty store."""
    opened = open_store(url, create=True)
    yield opened
    opened.close()
