"""The settings of ``capture refresh --config``: one table, as the sidecar's, and what documents it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from capture.dialects.table import EAS
from capture.errors import UserError
from capture.export.batch import batch_sizes
from capture.export.scrub_rules import check_rules
from capture.settings_errors import LONGEST_SECONDS, SettingsError, convert, read_yaml
from capture.settings_table import cells, sections
from replay.publishing.addresses import is_url, parse
from replay.refreshing.job import PromoteCold
from replay.refreshing.local import SAVED_MODEL
from replay.trial import RECORD_SECONDS

Seconds = Annotated[float, Meta(ge=0, le=LONGEST_SECONDS)]
Text = Annotated[str, Meta(min_length=1)]
#: Where a model's lock and history are, below its base.
STATE: Final = ".warmtap"


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model."""

    model: Annotated[str, Meta(min_length=1, description="its name in the traffic")]
    base: Annotated[
        str,
        Meta(
            min_length=1,
            description="the directory of its versions, or the URL (docs/publish.md), which the model server polls",
        ),
    ]
    staging: Annotated[
        str,
        Meta(
            description="the directory of versions that are not served yet, on the same file system, or a URL; each "
            "is moved into `base` with its warm-up file. Empty: none"
        ),
    ] = ""
    complete_when: Annotated[
        str, Meta(pattern="^[^/]+$", description="the file in a staged version that says that it is complete")
    ] = SAVED_MODEL
    promote_cold: Annotated[
        PromoteCold,
        Meta(
            description="a staged version on which nothing that was captured runs goes out without a file: `first`: "
            "where no version is served yet; `always`; `never`"
        ),
    ] = "first"
    in_place: Annotated[
        bool,
        Meta(
            description="true brings the file of a served version up to date; the server reads it when it loads the "
            "version again; what was there stays as `.prev`"
        ),
    ] = False
    batch_sizes: Annotated[
        tuple[int, ...], Meta(description="write each record with these batch sizes, `[1, 8, 32]`")
    ] = ()
    scrub: Annotated[bool, Meta(description="true writes no value that users sent (docs/scrub.md)")] = False
    scrub_rules: Annotated[
        tuple[str, ...], Meta(description="what inputs hold then: `[ranking:user_id=constant:0]`; strings need a rule")
    ] = ()
    retire_after: Annotated[
        Seconds,
        Meta(description="seconds after which a signature that nobody sends leaves the files; 0 is never"),
    ] = 0.0
    record_timeout: Annotated[
        float,
        Meta(gt=0, le=LONGEST_SECONDS, description="seconds after which a record that is run is left out as hanging"),
    ] = RECORD_SECONDS
    unverified: Annotated[
        bool,
        Meta(
            description="true runs nothing: only a version's own captures that were seen to succeed are written, and "
            "the manifest says so"
        ),
    ] = False
    state: Annotated[
        str,
        Meta(
            description=f"the directory of its lock and history; empty: `{STATE}` below `base`; must be said of a URL"
        ),
    ] = ""

    def sizes(self, place: str = "batch_sizes:") -> tuple[int, ...]:
        """The batch sizes, ascending, each once. Raises UserError; its text begins with ``place``."""
        return batch_sizes(",".join(map(str, self.batch_sizes)), place) if self.batch_sizes else ()

    @property
    def state_directory(self) -> Path:
        """Where lock and history are."""
        if self.state:
            return Path(self.state)
        return Path(parse(self.base).path if is_url(self.base) else self.base) / STATE


class Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One PAI-EAS service."""

    service: Annotated[str, Meta(min_length=1, description="its name in the traffic")]
    to: Annotated[str, Meta(min_length=1, description="where its warm-up data goes: `oss://BUCKET/PATH`")]
    state: Annotated[str, Meta(min_length=1, description="the directory of its lock and history")]
    service_json: Annotated[
        str, Meta(description="the service's JSON, which gets `warm_up_data_path` and is to be deployed; empty: none")
    ] = ""
    warm_up_count: Annotated[
        int, Meta(ge=0, description="`metadata.rpc.warm_up_count` in it; 0 leaves what is there")
    ] = 0
    format: Annotated[Literal["eas-bin", "eas-txt"], Meta(description="`eas-txt` is for services that take text")] = (
        "eas-bin"
    )
    dialect: Annotated[
        str, Meta(description="what it speaks, where it was captured in several dialects (`eas-pytorch`)")
    ] = ""
    saved_model: Annotated[
        str,
        Meta(
            description="the directory of its SavedModel: every record is run on it first. Empty: none is, and only "
            "what was seen to succeed is published"
        ),
    ] = ""
    scrub: Annotated[bool, Meta(description="true writes no value that users sent (docs/scrub.md)")] = False
    scrub_rules: Annotated[tuple[str, ...], Meta(description="what inputs hold then, as for models")] = ()


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A settings file."""

    models: Annotated[tuple[Model, ...], Meta(description="what is kept warm for TensorFlow Serving")] = ()
    store: Annotated[str, Meta(min_length=1, description="the store, as `--store`")] = "warmtap.sqlite"
    allow_shared_store: Annotated[
        bool, Meta(description="true uses a store that others than its owner may read or write")
    ] = False
    interval: Annotated[
        float, Meta(gt=0, le=LONGEST_SECONDS, description="seconds from one pass to the next, with `--watch`")
    ] = 60.0
    jitter: Annotated[
        float, Meta(ge=0, le=1, description="share of the interval by which a pass is early or late, at random")
    ] = 0.1
    prometheus: Annotated[
        str, Meta(description="path of a file (`.prom`) for the node exporter, written after each pass; empty: none")
    ] = ""
    services: Annotated[tuple[Service, ...], Meta(description="what is kept warm for PAI-EAS (docs/publish.md)")] = ()

    @property
    def is_fleet(self) -> bool:
        """Whether the store is a server that several machines share."""
        return "://" in self.store


def load(path: Path) -> Settings:
    """Read a YAML file. Raises SettingsError."""
    data = read_yaml(path)
    try:
        return from_data(data)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def from_data(data: Any) -> Settings:
    """Check plain data (what YAML gives). Raises SettingsError."""
    settings = convert(data, Settings)
    if not settings.models and not settings.services:
        raise SettingsError("models: nothing to do: name at least one, or one of services")
    names: dict[str, str] = {}
    places: dict[str, str] = {}
    states: dict[str, str] = {}
    for number, model in enumerate(settings.models):
        place = f"models[{number}]"
        _check(place, model)
        _claim(names, model.model, model.model, place)
        for name in ("base", "staging"):
            if text := getattr(model, name):
                _claim(places, _place(f"{place}.{name}", text), text, place)
        _claim(states, _path(model.state_directory), str(model.state_directory), place)
    for number, service in enumerate(settings.services):
        place = f"services[{number}]"
        _check_service(place, service)
        _claim(names, service.service, service.service, place)
        _claim(places, _place(f"{place}.to", service.to), service.to, place)
        _claim(states, _path(service.state), service.state, place)
    return settings


def _claim(taken: dict[str, str], key: str, text: str, place: str) -> None:
    """What one model or service has is no other's: of two that share versions, lock or history neither would know what
    became of its own. Raises SettingsError."""
    if key in taken:
        raise SettingsError(f"{place}: {text!r} is already {taken[key]}'s")
    taken[key] = place


def _check_service(place: str, service: Service) -> None:
    try:
        address = parse(service.to)
    except UserError as error:
        raise SettingsError(f"{place}.to: {error}") from None
    if service.service_json and address.scheme != "oss":
        raise SettingsError(f"{place}.to: EAS reads warm_up_data_path from OSS; say oss://BUCKET/PATH")
    if service.warm_up_count and not service.service_json:
        raise SettingsError(f"{place}.warm_up_count: stands in the service's JSON; say service_json")
    if service.dialect and service.dialect not in EAS:
        raise SettingsError(f"{place}.dialect: {service.dialect!r} is not known; known are {', '.join(EAS)}")
    _check_rules(place, service)


def _check_rules(place: str, one: Model | Service) -> None:
    if one.scrub_rules and not one.scrub:
        raise SettingsError(f"{place}.scrub_rules: are for scrub: true; say both")
    try:
        check_rules(one.scrub_rules, one.scrub)
    except ValueError as error:
        raise SettingsError(f"{place}.{error}") from None


def _check(place: str, model: Model) -> None:
    check_staging(f"{place}.", model)
    if is_url(_place(f"{place}.base", model.base)) and not model.state:
        raise SettingsError(f"{place}.state: must be said where the base is a URL: a local directory")
    _check_rules(place, model)
    try:
        model.sizes(f"{place}.batch_sizes:")
    except UserError as error:
        raise SettingsError(str(error)) from None
    if model.unverified and (model.scrub or model.batch_sizes):
        raise SettingsError(f"{place}.unverified: nothing is run then, so it goes with neither scrub nor batch_sizes")


def check_staging(place: str, model: Model) -> None:
    """That staged versions are no served ones. Raises SettingsError; its text begins with ``place`` and the name."""
    base, staging = (_place(f"{place}{name}", getattr(model, name)) for name in ("base", "staging"))
    if staging == base:
        raise SettingsError(f"{place}staging: is the base itself, whose versions the model server loads at once")
    parent, _, last = staging.rpartition("/")
    if parent == base and last.isdigit():
        raise SettingsError(f"{place}staging: {model.staging}: the model server takes a number for a version")


def _path(path: str | Path) -> str:
    """However it is written, and through whatever links."""
    return str(Path(path).resolve())


def _place(place: str, text: str) -> str:
    """A path, or a URL that is none of a local file, so that two can be compared. Raises SettingsError."""
    if not is_url(text):
        return _path(text) if text else ""
    try:
        address = parse(text)
    except UserError as error:
        raise SettingsError(f"{place}: {error}") from None
    return _path(address.path) if address.scheme == "file" else str(address)


def markdown() -> str:
    """The table in docs/refresh.md."""
    parts = []
    for place, text, found in sections(Settings):
        if found:
            parts.append(f"\n{f'**`{place}`**: {text}' if place else 'At the top:'}\n")
            parts.append("\n| Setting | Value | Default | What it is |\n|---|---|---|---|\n")
        for row in found:
            parts.append(cells(f"`{row.place.rpartition('.')[2]}`", row.type, row.default, row.help))
    return "".join(parts).lstrip("\n")
