"""``capture refresh``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capture.commands.options import DEFAULT_STORE, BatchSizesOption, SharedOption, StoreOption
from capture.commands.scrubbing import ScrubOption, ScrubRuleOption, scrub_rules
from capture.commands.tables import printable
from capture.export.batch import batch_sizes
from capture.levels import short
from capture.store.base import open_store
from replay.refresh import refresh as run_refresh


def refresh(
    saved_model_base: Annotated[
        Path,
        typer.Option("--saved-model-base", help="The directory that holds the version directories.", metavar="DIR"),
    ],
    store: StoreOption = DEFAULT_STORE,
    model: Annotated[
        str | None, typer.Option("--model", help="The model's name in the traffic; default: DIR's name.")
    ] = None,
    sizes: BatchSizesOption = "",
    scrub: ScrubOption = False,
    scrub_rule: ScrubRuleOption = None,
    allow_shared_store: SharedOption = False,
) -> None:
    """Write the warm-up file of each new model version, once.

    A version is new while it has no warm-up file. Its file is the union of what was captured on all versions, as far as
    it fits; every record is run on that version first, and what fails is left out with its error. Exit code 1 if a
    version failed.
    """
    wanted = batch_sizes(sizes) if sizes else ()
    rules = scrub_rules(scrub, scrub_rule)
    source = open_store(store, allow_shared=allow_shared_store)
    try:
        name = model or saved_model_base.resolve().name
        done, passed = run_refresh(source, saved_model_base, name, sizes=wanted, rules=rules)
    finally:
        source.close()
    for line in passed:
        print(line)
    for one in done:
        print(f"version {one.version}: {'FAILED: ' if one.failed else ''}{printable(one.text)}")
        for left in one.left_out:
            print(f"  left out {short(left.key.digest)} ({left.hits} hits): {printable(left.reason)}")
    if not done:
        print("nothing to do: no new version")
    if any(one.failed for one in done):
        raise typer.Exit(1)
