"""``make docs``: the parts of docs/ that are made from the code. Between two marks, the rest is written by hand."""

from __future__ import annotations

from pathlib import Path

from capture.coverage_metrics import ROWS as COVERAGE
from capture.textfile import markdown
from proxy.admin.metrics import rows
from replay.refreshing.metrics import ROWS as REFRESH
from replay.refreshing.settings import markdown as refresh_settings
from replay.watch_metrics import ROWS as WATCH

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- made by `make docs` -->\n", "<!-- end -->\n"
#: By page, what stands between its marks, in their order.
PARTS = {
    "metrics.md": tuple(map(markdown, (rows(), COVERAGE, WATCH, REFRESH))),
    "refresh.md": (refresh_settings(),),
}


def made(name: str) -> str:
    """The file as it should be."""
    before, *parts = (DOCS / name).read_text().split(BEGIN)
    tables = PARTS[name]
    return before + "".join(
        BEGIN + table + END + part.partition(END)[2] for table, part in zip(tables, parts, strict=True)
    )


if __name__ == "__main__":
    for part in PARTS:
        (DOCS / part).write_text(made(part))
