"""``capture config``: settings checked, shown and documented without starting anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from capture.errors import UserError
from capture.settings_errors import SettingsError
from proxy.admin.auth import read_token
from proxy.command import missing_directory, read_settings, shown
from proxy.configs import check_certificates
from proxy.settings import Settings, load
from proxy.settings_capture import DEFAULT_STORE
from proxy.settings_docs import markdown

config = typer.Typer(
    help="Check, show and document settings.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)


@config.command()
def check(file: Annotated[Path, typer.Argument(help="A settings file (YAML).", metavar="FILE")]) -> None:
    """Say whether `capture proxy` would take this file: one line, ok or what is wrong and where.

    Exit code 0: it would. 1: it would not.
    """
    settings = _read(lambda: load(file))
    if (missing := missing_directory(settings.capture.store)) is not None:
        raise UserError(f"{file}: capture.store: no directory {missing}; create it, or name another place")
    try:
        read_token(settings.admin.token_file)
        check_certificates(settings)
    except SettingsError as error:
        raise UserError(f"{file}: {error}") from None
    count = len(settings.listeners)
    print(f"{file}: ok, {count} listener{'' if count == 1 else 's'}")


@config.command()
def show(
    listen: Annotated[list[str] | None, typer.Option(help="As for `capture proxy`.")] = None,
    upstream: Annotated[list[str] | None, typer.Option(help="As for `capture proxy`.")] = None,
    sink: Annotated[list[str] | None, typer.Option(help="As for `capture proxy`.")] = None,
    file: Annotated[Path | None, typer.Option("--config", help="Settings file (YAML); stands alone.")] = None,
    store: Annotated[str | None, typer.Option(help=f"As for `capture proxy`; default {DEFAULT_STORE}.")] = None,
    allow_shared_store: Annotated[bool, typer.Option("--allow-shared-store", help="As for `capture proxy`.")] = False,
) -> None:
    """Print the effective settings as YAML, defaults included. Keys and tokens are named by their files only."""
    settings = _read(lambda: read_settings(listen or [], upstream or [], file, store, allow_shared_store, sink or []))
    print(msgspec.yaml.encode(shown(settings)).decode(), end="")


@config.command()
def docs() -> None:
    """Print docs/settings.md: every setting with its type, default and meaning."""
    print(markdown(), end="")


def _read(read: Callable[[], Settings]) -> Settings:
    try:
        return read()
    except SettingsError as error:
        raise UserError(str(error)) from None
