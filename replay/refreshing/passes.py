"""Passes over all models: one, or one after another until SIGTERM."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from capture.errors import UserError
from capture.store.base import open_store
from capture.textfile import write_textfile
from replay.refreshing.eas import EasJob, run_eas_job
from replay.refreshing.history import Event
from replay.refreshing.job import Job, Outcome, What, run_job
from replay.refreshing.metrics import told
from replay.refreshing.settings import Settings
from replay.refreshing.telling import Log, log_line
from replay.tf_protos import TensorFlowMissing


def run_pass(settings: Settings, jobs: Sequence[Job | EasJob], *, alone: bool) -> list[Outcome]:
    """All models once. Raises UserError where nothing can be done; of one of several models (not ``alone``) it is said
    as its outcome."""
    try:
        outcomes = _run(settings, jobs, alone=alone)
    except (UserError, OSError) as error:
        _tell(settings, jobs, [Outcome(job.model, "", What.FAILED, _text(error)) for job in jobs])
        raise
    _tell(settings, jobs, outcomes)
    return outcomes


def _run(settings: Settings, jobs: Sequence[Job | EasJob], *, alone: bool) -> list[Outcome]:
    source = open_store(settings.store, allow_shared=settings.allow_shared_store)
    try:
        found: list[Outcome] = []
        for job in jobs:
            try:
                found += run_job(job, source) if isinstance(job, Job) else run_eas_job(job, source)
            except TensorFlowMissing:
                raise
            except (UserError, OSError) as error:
                if alone:
                    raise
                found.append(Outcome(job.model, "", What.FAILED, _text(error), at=time.time()))
        return found
    finally:
        source.close()


def _text(error: UserError | OSError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or 'the disk'}: {error.strerror or error}"
    return str(error)


def _tell(settings: Settings, jobs: Sequence[Job | EasJob], outcomes: Sequence[Outcome]) -> None:
    if settings.prometheus:
        events: list[Event] = []
        for job in jobs:
            # What cannot be read was said where it was to be written.
            with suppress(OSError):
                events += job.history.events() if job.history is not None else []
        write_textfile(Path(settings.prometheus), told([job.model for job in jobs], outcomes, events, time.time()))


def watch(
    settings: Settings, jobs: Sequence[Job | EasJob], interval: float, rest: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """The log lines of passes without end; what fails is said, and tried again. Raises TensorFlowMissing."""
    log = Log()
    yield log_line(time.time(), "watching", models=len(jobs), interval=interval)
    while True:
        try:
            outcomes = run_pass(settings, jobs, alone=False)
        except TensorFlowMissing:
            raise
        except (UserError, OSError) as error:
            outcomes = [Outcome("-", "", What.FAILED, _text(error), at=time.time())]
        yield from log.lines(outcomes)
        # Several jobs that were started together do not stay together.
        rest(interval * (1 + settings.jitter * random.uniform(-1, 1)))  # noqa: S311
