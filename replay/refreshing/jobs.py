"""From settings to jobs: where the versions are, who else may work on them, what is remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from capture.errors import UserError
from capture.rule_files import load_rules
from capture.store.base import open_store
from replay.publishing.addresses import is_url
from replay.refreshing.ages import Ages
from replay.refreshing.draft import Wanted
from replay.refreshing.fleet_lock import SECONDS, Expiring, FleetLock
from replay.refreshing.history import History
from replay.refreshing.job import Job
from replay.refreshing.local import LocalPlace
from replay.refreshing.lock import FileLock, Lock
from replay.refreshing.place import Place
from replay.refreshing.settings import Model, Settings

#: The lock's name in the state directory, and before the model's name in a store.
LOCK: Final = "lock"
FLEET_LOCK: Final = "refresh"


def jobs_of(settings: Settings) -> list[Job]:
    """One for each model. Raises UserError where a state cannot be kept, or rules cannot be read."""
    return [_job_of(model, settings) for model in settings.models]


def _job_of(model: Model, settings: Settings) -> Job:
    place = place_of(model)
    state = model.state_directory
    if not state.parent.is_dir():
        raise UserError(f"{state}: no such directory; lock and history are kept there: create it")
    rules = load_rules(model.scrub_rules, "scrub_rules: ") if model.scrub else None
    locks: list[Lock] = [FileLock(state / LOCK)]
    if settings.is_fleet:
        locks.append(FleetLock(_fleet_lock(model, settings)))
    return Job(
        model.model,
        place,
        History(state),
        locks,
        Wanted(model.sizes(), rules, model.retire_after, model.unverified),
        model.in_place,
        model.promote_cold,
        bool(model.staging),
        Ages(state),
    )


def place_of(model: Model) -> Place:
    """Where its versions are. Raises UserError."""
    if is_url(model.base) or is_url(model.staging):
        # Loaded only where it is used, as the clients behind it are.
        from replay.publishing.place import open_place

        return open_place(model.base, model.staging, model.complete_when)
    base = Path(model.base)
    if not base.is_dir():
        raise UserError(f"{base}: no such directory; give the one that holds the version directories")
    return LocalPlace(base, Path(model.staging) if model.staging else None, model.complete_when)


def _fleet_lock(model: Model, settings: Settings) -> Callable[[], tuple[Expiring, Callable[[], None]]]:
    def connect() -> tuple[Expiring, Callable[[], None]]:
        # Opened first, for its words where there is no store; the lock has a connection of its own.
        from capture.store.redis_store import RedisStore

        store = open_store(settings.store, allow_shared=settings.allow_shared_store)
        assert isinstance(store, RedisStore)
        return store.lock(f"{FLEET_LOCK}/{model.model}", SECONDS), store.close

    return connect
