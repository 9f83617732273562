"""``capture store``: what is done to stores as a whole."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Annotated, Final

import typer

from capture.commands.options import SharedOption
from capture.errors import UserError
from capture.store.base import open_store, shown_store
from capture.store.copying import Copied, copy

#: Seconds between two lines that say how far it is.
PROGRESS_SECONDS: Final = 5.0

store = typer.Typer(help="Copy a store into another one.", no_args_is_help=True, add_completion=False,
                    rich_markup_mode=None)  # fmt: skip


@store.callback()
def group() -> None:
    """Copy a store into another one."""


@store.command(name="copy")
def copy_command(
    source: Annotated[str, typer.Argument(help="The store to copy: a path or a URL.", metavar="FROM")],
    target: Annotated[str, typer.Argument(help="Where to: made where it is not there.", metavar="TO")],
    allow_shared_store: SharedOption = False,
) -> None:
    """Copy everything that a store holds into another one, of whatever kinds: a file to a server, or back.

    The target must be empty, or hold nothing but what the source holds: then what is missing is copied, so an
    interrupted copy is taken up by copying again. Stop the sidecars that write the source.

    Exit codes: 0 both hold the same, 1 they do not.
    """
    if source == target:
        raise UserError(f"{shown_store(source)}: is both source and target")
    there = open_store(source, allow_shared=allow_shared_store)
    try:
        here = open_store(target, create=True, allow_shared=allow_shared_store)
        try:
            copied = copy(there, here, _progress())
        except UserError as error:
            raise UserError(f"copy {shown_store(source)} {shown_store(target)}: {error}") from None
        finally:
            here.close()
    finally:
        there.close()
    if copied.nothing:
        print(f"nothing to copy: {shown_store(target)} holds all of it, {copied.there} signatures")
    else:
        print(f"copied to {shown_store(target)}: {_line(copied)}")


def _progress() -> Callable[[Copied], None]:
    """Says on stderr how far it is, every few seconds."""
    said = time.monotonic()

    def told(copied: Copied) -> None:
        nonlocal said
        if time.monotonic() - said >= PROGRESS_SECONDS:
            said = time.monotonic()
            print(f"so far: {_line(copied)}", file=sys.stderr)

    return told


def _line(copied: Copied) -> str:
    return (
        f"{copied.signatures} signatures, {copied.held_out} held-out requests, {copied.payload_bytes} bytes of requests"
        f", {copied.metadata} SignatureDefs, counters of {copied.runs} runs"
    )
