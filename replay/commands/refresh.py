"""``capture refresh``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from capture.commands.options import DEFAULT_STORE, BatchSizesOption, SharedOption, StoreOption
from capture.commands.scrubbing import ScrubOption, ScrubRuleOption, scrub_rules
from capture.commands.tables import printable
from capture.errors import UserError
from capture.export.batch import batch_sizes
from capture.settings_errors import SettingsError
from capture.textfile import check_textfile
from replay.publishing.addresses import is_url, parse
from replay.refreshing.eas import EasJob
from replay.refreshing.history import History
from replay.refreshing.job import BAD, Job
from replay.refreshing.jobs import jobs_of
from replay.refreshing.passes import run_pass, watch
from replay.refreshing.settings import Model, Settings, check_staging, load
from replay.refreshing.telling import log_line, sentences


def refresh(
    saved_model_base: Annotated[
        str | None,
        typer.Option(
            "--saved-model-base", help="Where the version directories are: a directory or URL.", metavar="DIR"
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    model: Annotated[
        str | None, typer.Option("--model", help="The model's name in the traffic; default: DIR's name.")
    ] = None,
    staging: Annotated[
        str,
        typer.Option("--staging", help="Versions to be moved into DIR, each with its file; same disk.", metavar="DIR"),
    ] = "",
    state: Annotated[
        str, typer.Option("--state", help="Where lock and history are; default: .warmtap below a local DIR.")
    ] = "",
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="Files of served versions, too, if verify agrees; .prev stays."),
    ] = False,
    retire_after: Annotated[
        float, typer.Option("--retire-after", min=0, help="Seconds after which unused records leave; 0: never.")
    ] = 0.0,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Run nothing: write only a version's own, proven captures.")
    ] = False,
    sizes: BatchSizesOption = "",
    scrub: ScrubOption = False,
    scrub_rule: ScrubRuleOption = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings file (YAML), for several models; stands alone.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Say whether the settings can be used, and end.")] = False,
    history: Annotated[bool, typer.Option("--history", help="Print what was published and why, and end.")] = False,
    repeat: Annotated[bool, typer.Option("--watch", help="Do it again and again, until SIGTERM.")] = False,
    interval: Annotated[
        float | None, typer.Option("--interval", min=0.1, help="Seconds between passes; default 60, or the settings'.")
    ] = None,
    prometheus: Annotated[
        Path | None,
        typer.Option("--prometheus", help="Tell the node exporter, in a file that ends in .prom.", metavar="FILE"),
    ] = None,
    allow_shared_store: SharedOption = False,
) -> None:
    """Write the warm-up file of each new model version, and let staged versions out with theirs.

    A version is new while it has no warm-up file. Its file is the union of what was captured on all versions, as far as
    it fits, and of what stands in it; every record is run on that version first, and what fails is left out with its
    error. Exit code 1 if a version failed or is held back.
    """
    if interval is not None and not repeat:
        raise UserError("--interval: is for --watch; say both")
    if check and history:
        raise UserError("--check and --history: say one of them")
    if config is not None:
        said = (saved_model_base, model, staging, state, sizes, scrub, scrub_rule, in_place, unverified, prometheus)
        if any((*said, retire_after, allow_shared_store, store != DEFAULT_STORE)):
            raise UserError("--config stands alone: put the other options into the file")
        try:
            settings = load(config)
        except SettingsError as error:
            raise UserError(str(error)) from None
    elif saved_model_base is None:
        raise UserError("nothing to do: give --saved-model-base DIR, or --config FILE.yaml")
    else:
        scrub_rules(scrub, scrub_rule)
        if is_url(saved_model_base) and parse(saved_model_base).scheme != "file" and not state:
            raise UserError("--state: say a local directory for lock and history, where the versions are at a URL")
        only = Model(
            model=model or named_after(saved_model_base),
            base=saved_model_base,
            staging=staging,
            state=state,
            in_place=in_place,
            batch_sizes=batch_sizes(sizes) if sizes else (),
            scrub=scrub,
            scrub_rules=tuple(scrub_rule or ()),
            retire_after=retire_after,
            unverified=unverified,
        )
        try:
            check_staging("--", only)
        except SettingsError as error:
            raise UserError(str(error)) from None
        settings = Settings(
            (only,), store, allow_shared_store, prometheus="" if prometheus is None else str(prometheus)
        )
    if history:
        _tell_history(settings)
        return
    if settings.prometheus:
        check_textfile(Path(settings.prometheus))
    jobs = jobs_of(settings)
    if check:
        count = len(jobs)
        print(f"{config or saved_model_base}: ok, {count} model{'' if count == 1 else 's'}")
        return
    if repeat:
        _watch(settings, jobs, interval or settings.interval)
        return
    outcomes = run_pass(settings, jobs, alone=config is None)
    for line in sentences(outcomes, named=config is not None):
        print(line)
    if any(one.what in BAD for one in outcomes):
        raise typer.Exit(1)


def named_after(base: str) -> str:
    """The model's name where none is said."""
    return (parse(base).path.rpartition("/")[2] or parse(base).bucket) if is_url(base) else Path(base).resolve().name


def _watch(settings: Settings, jobs: list[Job | EasJob], interval: float) -> None:
    """Until SIGTERM, which raises SystemExit wherever it meets us: what is half written is cleared up on the way."""
    try:
        for line in watch(settings, jobs, interval):
            print(line, flush=True)
    except SystemExit:
        print(log_line(time.time(), "stopped"), flush=True)
        raise typer.Exit(0) from None


def _tell_history(settings: Settings) -> None:
    states = [*(one.state_directory for one in settings.models), *(Path(one.state) for one in settings.services)]
    for state in states:
        for event in History(state).events():
            where = f"{event.model}/{event.version}" if event.version else event.model
            print(printable(f"{event.at} {where} {event.event}: {event.why}"))
            for sign, lines in (("+", event.added), ("-", event.removed), ("left out", event.left_out)):
                for line in lines:
                    print(printable(f"  {sign} {line}"))
