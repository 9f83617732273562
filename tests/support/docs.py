"""``make docs``: the parts of docs/ that are made from the code. Between two marks, the rest is written by hand."""

from __future__ import annotations

from pathlib import Path

from proxy.admin.metrics import markdown

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- made by `make docs` -->\n", "<!-- end -->\n"
PARTS = {"metrics.md": markdown}


def made(name: str) -> str:
    """The file as it should be."""
    text = (DOCS / name).read_text()
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + PARTS[name]() + END + rest.partition(END)[2]


if __name__ == "__main__":
    for part in PARTS:
        (DOCS / part).write_text(made(part))
