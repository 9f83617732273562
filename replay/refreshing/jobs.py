"""From settings to a job: where its versions are, its lock, its history."""

from __future__ import annotations

from pathlib import Path

from capture.errors import UserError
from capture.rule_files import load_rules
from replay.refreshing.contents import Wanted
from replay.refreshing.history import History
from replay.refreshing.job import Job
from replay.refreshing.local import LocalPlace
from replay.refreshing.lock import FileLock
from replay.refreshing.settings import Model

LOCK: str = "lock"


def job_of(model: Model) -> Job:
    """The job. Raises UserError where its state cannot be kept, or its rules cannot be read."""
    base = Path(model.base)
    if not base.is_dir():
        raise UserError(f"{base}: no such directory; give the one that holds the version directories")
    state = model.state_directory
    try:
        state.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UserError(f"{state}: {error.strerror}; lock and history are kept there: name another state") from None
    rules = load_rules(model.scrub_rules, "scrub_rules: ") if model.scrub else None
    return Job(
        model.model,
        LocalPlace(base, Path(model.staging) if model.staging else None, model.complete_when),
        History(state),
        [FileLock(state / LOCK)],
        Wanted(model.sizes(), rules, model.retire_after, model.unverified),
        model.in_place,
        model.promote_cold,
        bool(model.staging),
    )
