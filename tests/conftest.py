"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.tf_models import saved_model

# Without deadlines: these tests judge results, never speed. ``ci`` tries the same examples each time; ``large`` (make
# properties) tries others each time, and many more.
settings.register_profile(
    "ci", deadline=None, max_examples=150, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "large", deadline=None, max_examples=5000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# A shell that starts this in the background lets it, and so each process of the tests, ignore SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def model_cache(pytestconfig: pytest.Config) -> Path:
    """Where SavedModels are kept between runs."""
    return pytestconfig.cache.mkdir("saved_models")


@pytest.fixture(scope="session")
def ranking(model_cache: Path) -> Path:
    """The ranking model's version directory; read-only."""
    return saved_model(model_cache, "ranking")


@pytest.fixture(scope="session")
def edge(model_cache: Path) -> Path:
    """The corner-case model's version directory; read-only."""
    return saved_model(model_cache, "edge")


@pytest.fixture(scope="session")
def census(model_cache: Path) -> Path:
    """The version directory of the model of tf.Examples; read-only."""
    return saved_model(model_cache, "census")


@pytest.fixture(scope="session")
def compiled(model_cache: Path) -> Path:
    """The version directory of the model that XLA compiles; read-only."""
    return saved_model(model_cache, "compiled")


#: What takes longest runs first: where several processes share the suite, short files fill what is left at the end.
LONGEST_FIRST = ("faults", "demo", "e2e", "replay", "proxy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By directory; the order within one stays."""
    here = Path(__file__).parent
    rank = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.relative_to(here).parts[0], len(rank)))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes that nobody reads are named by their size: compressed ones hold the time, and processes that share the
    suite must find the same names."""
    if isinstance(val, bytes) and not (val.isascii() and val.decode().isprintable()):
        return f"{argname}-{len(val)}-bytes"
    return None
