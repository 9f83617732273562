"""Command lines that stand in files and documents, as the program itself reads them."""

from __future__ import annotations

from typing import Any

import typer.main

from capture.__main__ import application


def parse(words: list[str]) -> dict[str, Any]:
    """What the program makes of a command line, without doing it. Raises the parser's own error."""
    group: Any = typer.main.get_command(application(words[0]))
    name, command, rest = group.resolve_command(group.make_context("capture", list(words)), list(words))
    found: dict[str, Any] = command.make_context(name, list(rest)).params
    return found
