"""Printing: a table on a terminal, tab-separated lines otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: frozenset[str] = frozenset()) -> None:
    """Columns in ``right`` are aligned right. Off a terminal: a line of names, then a line a row, separated by tabs."""
    if not sys.stdout.isatty():
        print("\t".join(columns))
        for row in rows:
            print("\t".join(cell.replace("\t", " ") for cell in row))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=False)
    for row in rows:
        table.add_row(*row)
    # Names come from traffic: they are text, never markup.
    Console(markup=False, highlight=False, emoji=False).print(table)


def printable(text: str) -> str:
    """Text from traffic without anything that could drive a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def ago(seconds: float) -> str:
    """A duration in words short enough for a column."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
