"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tf_models import saved_model


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
