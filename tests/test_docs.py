"""What docs/ says is so: tests that it names exist, and parts that are made from the code are up to date."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.support.command_words import parse
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


def commands(path: Path) -> list[str]:
    """Lines of code that run `capture`, continuation lines joined."""
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    return re.findall(r"^ {4,}(?:[!-~]+ +)*?(?:\S*/)?(capture [a-z].*)$", text, re.M)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_command_lines_are_ones_that_the_program_takes(page: Path) -> None:
    for line in commands(page):
        assert parse(shlex.split(line, comments=True)[1:]) is not None, line


def test_command_lines_are_found() -> None:
    assert len(commands(ROOT / "README.md")) > 10
    assert any("--take-over" in line for line in commands(DOCS / "deployment.md"))


def test_every_statement_of_the_guarantee_has_its_test() -> None:
    """Each paragraph, bullet and row behind the page's beginning, but for headings."""
    text = (DOCS / "guarantee.md").read_text().partition("\n## ")[2]
    blocks = [
        block
        for part in re.split(r"\n\n", text)
        for block in (re.split(r"\n(?=- |\| )", part) if re.match(r"- |\| ", part) else [part])
    ]
    # The rows of the events are told by the sentence in front of them.
    table = [block for block in blocks if re.match(r"\| (event|`\w+`) \|", block) and "tests/" not in block]
    assert len(table) == 6
    for block in blocks:
        heading = re.match(r"#+ |[A-Z][\w :,]+$|\| level|\|---", block) or block in table
        assert heading or re.search(r"`tests/[\w/]+\.py|no test|No test", block), block
    assert len(blocks) > 50
