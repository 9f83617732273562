"""``capture inspect FILE``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import msgspec
import typer

from capture.commands.options import DialectOption, ModelOption, SharedOption
from capture.commands.tables import print_table, printable
from capture.errors import UserError
from capture.export.entries import Contents, Entry, Severity
from capture.export.read import KINDS, read_any


def inspect(
    file: Annotated[str, typer.Argument(help="A warm-up file, a directory of .bin files, or a store.", metavar="FILE")],
    form: Annotated[
        str,
        typer.Option("--format", help=f"What it is, where that cannot be told: {', '.join(KINDS)}.", metavar="FORMAT"),
    ] = "",
    model: ModelOption = None,
    dialect: DialectOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    allow_shared_store: SharedOption = False,
) -> None:
    """List what is in a warm-up file, whoever wrote it, and what the server would say to it.

    Exit code 0: all of it can be read, and nothing in it stops a server. 1: the first record that cannot be read, or
    that the server refuses, is named on standard error.
    """
    contents = read_any(file, form=form, model=model, dialect=dialect, allow_shared=allow_shared_store)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(document(file, contents)), indent=2).decode())
    else:
        _print(contents)
    if wrong := fault(contents):
        raise UserError(f"{file}: {wrong}")


def fault(contents: Contents) -> str:
    """The first thing that makes a file unusable, in a line; "" if there is none."""
    texts = [_line(place, text) for severity, place, text in contents.all_remarks() if severity is Severity.ERROR]
    if contents.broken:
        texts.append(contents.broken)
    return texts[0] + (f" (and {len(texts) - 1} more)" if len(texts) > 1 else "") if texts else ""


def document(file: str, contents: Contents) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "file": file,
        "format": contents.form,
        "records": [_record(entry) for entry in contents.entries],
        "remarks": [dict(zip(("severity", "place", "text"), one, strict=True)) for one in contents.all_remarks()],
        "error": fault(contents) or None,
    }


def _record(entry: Entry) -> dict[str, Any]:
    one = entry.signature
    return {
        "number": entry.number,
        "place": entry.place,
        "type": entry.kind,
        "size": entry.size,
        "signature": entry.identity,
        "line": None if one is None else str(one),
        "family": None if one is None else one.family,
        "model": None if one is None else one.model,
        "version": entry.version,
        "method": None if one is None else one.method,
        "signature_name": None if one is None else one.signature_name,
        "inputs": None if one is None else one.inputs,
        "outputs": None if one is None else one.outputs,
        "shapes": entry.shapes,
        "hits": entry.hits,
        "outcome": entry.outcome or None,
    }


def _line(place: str, text: str) -> str:
    return f"{place}: {text}" if place else text


def _print(contents: Contents) -> None:
    print_table(
        ("RECORD", "TYPE", "SIZE", "HITS", "VERSION", "SIGNATURE", "LINE", "INPUTS"),
        (
            (
                str(entry.number),
                entry.kind,
                str(entry.size),
                "-" if entry.hits is None else str(entry.hits),
                printable(entry.version) or "-",
                entry.identity[:22] if entry.signature is None else entry.identity[:15],
                "-" if entry.signature is None else printable(str(entry.signature)),
                printable(entry.shapes) or "-",
            )
            for entry in contents.entries
        ),
        right=frozenset({"RECORD", "SIZE", "HITS"}),
    )
    for severity, place, text in contents.all_remarks():
        if severity is not Severity.ERROR:
            print(f"{severity}: {printable(_line(place, text))}", file=sys.stderr)
    signatures = len({entry.identity for entry in contents.entries if entry.signature is not None})
    print(f"{contents.form}: records {len(contents.entries)}, signatures {signatures}", file=sys.stderr)
