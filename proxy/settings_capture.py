"""The part of the settings that says what is kept of the traffic. See :mod:`proxy.settings`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from capture.config import Limits
from capture.settings_errors import LONGEST_SECONDS

Seconds = Annotated[float, Meta(ge=0, le=LONGEST_SECONDS)]
DEFAULT_STORE = "warmtap.sqlite"


class Capture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of the traffic."""

    store: Annotated[
        str,
        Meta(
            min_length=1,
            description="path of the SQLite store, or the URL of a fleet's store: redis://, rediss://, "
            "redis+cluster://, rediss+cluster://, unix:// (docs/store.md)",
        ),
    ] = DEFAULT_STORE
    limits: Annotated[Limits, Meta(description="bounds of the capture worker, in bytes, counts or seconds")] = Limits()
    refresh_after: Annotated[
        Seconds, Meta(description="seconds after which a sample is replaced by a newer request of its signature")
    ] = 86400.0
    retention: Annotated[
        Seconds, Meta(description="seconds after which what is not seen is deleted; 0 keeps it for ever")
    ] = 30 * 86400.0
    flush_interval: Annotated[
        float,
        Meta(
            gt=0,
            le=LONGEST_SECONDS,
            description="seconds between two writes of counted hits; a new signature is written at once",
        ),
    ] = 1.0
    shared_flush_interval: Annotated[
        float,
        Meta(
            gt=0,
            le=LONGEST_SECONDS,
            description="the same for a store of a fleet, which many sidecars write; each time between half and one "
            "and a half of it, and new signatures after about flush_interval",
        ),
    ] = 10.0
    memory_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 62,
            description="address space of the capture worker, in bytes; it is started anew when 80 % are resident; 0 "
            "is no limit",
        ),
    ] = 2 << 30
    shed_lag: Annotated[
        Seconds,
        Meta(description="seconds behind the relay from which on requests are passed over at random; 0 is never"),
    ] = 1.0
    status_interval: Annotated[
        float,
        Meta(ge=0.1, le=3600, description="seconds between two looks at the versions of a model server (status)"),
    ] = 5.0
    scrub: Annotated[
        Literal["off", "at_capture"],
        Meta(description="at_capture: values are replaced before anything is stored (docs/scrub.md)"),
    ] = "off"
    scrub_rules: Annotated[
        tuple[str, ...], Meta(description="what inputs hold then: `[ranking:user_id=constant:0]`; strings need a rule")
    ] = ()
    level: Annotated[
        str,
        Meta(
            description="what tells records apart beside names: names (nothing), shapes, shapes(batch=1,8,32), "
            "values(INPUT, ...) or shapes+values(INPUT, ...); see docs/levels.md"
        ),
    ] = "names"
    levels: Annotated[dict[str, str], Meta(description="models of another level, by name")] = {}
    worker_socket: Annotated[
        str,
        Meta(description="path of a Unix socket for capture workers in containers of their own; empty: started here"),
    ] = ""
    allow_shared_store: Annotated[
        bool, Meta(description="true uses a store that others than its owner may read or write")
    ] = False
