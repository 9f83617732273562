"""docs/dialects.md lists every method of every dialect, with the formats that take it."""

from __future__ import annotations

import re

import pytest

from capture.dialects.table import DIALECTS, EAS
from capture.dialects.tfserving_calls import READERS
from capture.export.table import FORMATS
from capture.signature import REST_METHODS, WireSignature
from tests.support.docs import DOCS

METHODS = {"tfserving-grpc": tuple(READERS), "tfserving-rest": tuple(REST_METHODS)} | dict.fromkeys(EAS, ("predict",))
ROW = re.compile(r"\| `([\w-]+)` \| `([\w ]+)` \| (.+) \| (.+) \| (.+) \| (.+) \| (.+) \|")
ROWS = {
    (found[1], found[2]): found
    for line in (DOCS / "dialects.md").read_text().splitlines()
    if (found := ROW.fullmatch(line))
}


def test_every_method_has_a_row() -> None:
    assert list(ROWS) == [(dialect.name, method) for dialect in DIALECTS for method in METHODS[dialect.name]]


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_the_formats_are_those_that_take_it(row: tuple[str, str]) -> None:
    dialect = next(one for one in DIALECTS if one.name == row[0])
    signature = WireSignature(dialect.family, "m", row[1], "s", (), None)
    takes = {
        name
        for name, form in FORMATS.items()
        if (form.families is None or dialect.family in form.families) and not form.refuses(signature)
    }
    told, _, but = ROWS[row][6].partition(" (")
    assert set(re.findall(r"`([\w-]+)`", told)) == takes
    # What is said not to take it does not.
    assert not set(re.findall(r"`([\w-]+)`", but)) & takes


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_a_test_shows_it(row: tuple[str, str]) -> None:
    assert re.search(r"`tests/[\w/]+\.py::test_\w+`", ROWS[row][7])
