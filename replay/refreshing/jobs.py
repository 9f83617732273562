"""From settings to jobs: where the versions are, who else may work on them, what is remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from capture.errors import UserError
from capture.rule_files import load_rules
from capture.store.base import open_store
from replay.publishing.addresses import is_url, parse
from replay.refreshing.ages import Ages
from replay.refreshing.draft import Wanted
from replay.refreshing.eas import EasJob
from replay.refreshing.fleet_lock import SECONDS, Expiring, FleetLock
from replay.refreshing.history import History
from replay.refreshing.job import Job
from replay.refreshing.local import LocalPlace
from replay.refreshing.lock import FileLock, Lock
from replay.refreshing.place import Place
from replay.refreshing.settings import Model, Service, Settings

#: The lock's name in the state directory, and before the model's name in a store.
LOCK: Final = "lock"
FLEET_LOCK: Final = "refresh"


def jobs_of(settings: Settings) -> list[Job | EasJob]:
    """One for each model and each service. Raises UserError where a state cannot be kept, or rules cannot be read."""
    return [
        *(_job_of(model, settings) for model in settings.models),
        *(_eas_job_of(service, settings) for service in settings.services),
    ]


def _job_of(model: Model, settings: Settings) -> Job:
    place = place_of(model)
    state = model.state_directory
    locks = _locks(model.model, state, settings)
    rules = load_rules(model.scrub_rules, "scrub_rules: ") if model.scrub else None
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
        record_timeout=model.record_timeout,
    )


def _eas_job_of(service: Service, settings: Settings) -> EasJob:
    state = Path(service.state)
    return EasJob(
        service.service,
        parse(service.to),
        service.format,
        Path(service.service_json) if service.service_json else None,
        service.warm_up_count or None,
        service.dialect,
        Path(service.saved_model) if service.saved_model else None,
        load_rules(service.scrub_rules, "scrub_rules: ") if service.scrub else None,
        History(state),
        _locks(service.service, state, settings),
    )


def _locks(name: str, state: Path, settings: Settings) -> list[Lock]:
    if not state.parent.is_dir():
        raise UserError(f"{state}: no such directory; lock and history are kept there: create it")
    locks: list[Lock] = [FileLock(state / LOCK)]
    if settings.is_fleet:
        locks.append(FleetLock(_fleet_lock(name, settings)))
    return locks


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


def _fleet_lock(name: str, settings: Settings) -> Callable[[], tuple[Expiring, Callable[[], None]]]:
    def connect() -> tuple[Expiring, Callable[[], None]]:
        # Opened first, for its words where there is no store; the lock has a connection of its own.
        from capture.store.redis_store import RedisStore

        store = open_store(settings.store, allow_shared=settings.allow_shared_store)
        assert isinstance(store, RedisStore)
        return store.lock(f"{FLEET_LOCK}/{name}", SECONDS), store.close

    return connect
