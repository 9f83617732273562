"""What docs/ says is so: tests that it names exist, and parts that are made from the code are up to date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.docs import DOCS, PARTS, made

ROOT = DOCS.parent
PAGES = sorted(path.name for path in DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_is_named_exists(page: str) -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (DOCS / page).read_text()):
        assert (ROOT / file).is_file(), file
        if name:
            assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.M), f"{file}::{name}"


@pytest.mark.parametrize("page", PARTS)
def test_what_is_made_from_the_code_is_up_to_date(page: str) -> None:
    assert made(page) == Path(DOCS / page).read_text(), "make docs"
