"""``capture diff A B``."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from capture.commands.options import DialectOption, ModelOption, SharedOption
from capture.commands.tables import printable
from capture.errors import UserError
from capture.export.compare import Comparison, Only, compare
from capture.export.entries import Contents, Entry, Severity
from capture.export.read import read_any

#: Exit codes, as diff(1) has them.
SAME, DIFFERENT, TROUBLE = 0, 1, 2


def diff(
    a: Annotated[str, typer.Argument(help="A warm-up file, a directory of .bin files, or a store.", metavar="A")],
    b: Annotated[str, typer.Argument(help="Another one.", metavar="B")],
    model: ModelOption = None,
    dialect: DialectOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    allow_shared_store: SharedOption = False,
) -> None:
    """Compare two warm-up files, or one with a store, by signature: what only one has, and how that differs from its
    nearest neighbour in the other.

    Exit code 0: the same signatures. 1: they differ. 2: one cannot be read.
    """
    try:
        found = compare(_read(a, model, dialect, allow_shared_store), _read(b, model, dialect, allow_shared_store))
    except UserError as error:
        typer.echo(f"capture: error: {printable(str(error))}", err=True)
        raise typer.Exit(TROUBLE) from None
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(document(a, b, found)), indent=2).decode())
    else:
        _print(found)
    raise typer.Exit(DIFFERENT if found.differs else SAME)


def _read(name: str, model: str | None, dialect: str, allow_shared: bool) -> Contents:
    """Raises UserError where a record cannot be read: what was not read cannot be compared."""
    contents = read_any(name, model=model, dialect=dialect, allow_shared=allow_shared)
    for entry in contents.entries:
        for severity, place, text in entry.remarks:
            if severity is Severity.ERROR and entry.signature is None:
                raise UserError(f"{name}: {place}: {text}")
    if contents.broken:
        raise UserError(f"{name}: {contents.broken}")
    return contents


def document(a: str, b: str, found: Comparison) -> dict[str, Any]:
    """The same as plain data."""

    def side(only: list[Only]) -> list[dict[str, Any]]:
        return [{**_named(one.entry), "nearest": one.nearest or None, "differences": one.differences} for one in only]

    return {
        "a": a,
        "b": b,
        "only_in_a": side(found.only_a),
        "only_in_b": side(found.only_b),
        "changed": [{**_named(one.entry), "differences": one.differences} for one in found.changed],
        "same": found.same,
    }


def _named(entry: Entry) -> dict[str, Any]:
    return {"signature": entry.identity, "line": None if entry.signature is None else str(entry.signature)}


def _print(found: Comparison) -> None:
    for title, other, only in (("only in A", "B", found.only_a), ("only in B", "A", found.only_b)):
        for one in only:
            print(f"{title}  {_line(one.entry)}")
            if one.differences:
                print(f"           {printable('; '.join(one.differences))} (than {one.nearest[:15]} in {other})")
    for changed in found.changed:
        print(f"in both    {_line(changed.entry)}")
        print(f"           in B {printable('; '.join(changed.differences))}")
    if found.differs:
        print(f"the same in both: {found.same}")


def _line(entry: Entry) -> str:
    return entry.identity if entry.signature is None else f"{entry.identity[:15]}  {printable(str(entry.signature))}"
