"""What the capture worker needs to know, as plain values.

The settings file is read by ``proxy/settings.py`` alone; it builds a :class:`WorkerConfig`, which travels to the
worker as JSON on an inherited descriptor (an argument would show in ``ps``)."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

#: A worker with nothing to do takes 48 MB of address space; below this it might not even start.
LOWEST_MEMORY_BYTES: Final = 128 << 20
#: Seconds that the worker takes at most to write what it has, once the tap has ended; then it gives up.
WORKER_CLOSE_SECONDS: Final = 6.0


class ListenerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the traffic of one listener is read. ``flows`` name their listener by its place in the list.

    ``dialect`` is ``auto`` (by path) or the name of one dialect. ``service`` names the EAS service where the path does
    not (a custom URL, or a service at the root); empty otherwise. ``services`` maps EAS services to their dialects
    where they differ from the listener's. ``version`` is the model version behind this listener where the server does
    not tell it (EAS); empty: unknown. ``mirrored``: the traffic is a copy that no model server answers, so nothing of
    it is proven. ``status`` is the REST address of the model server where its versions are asked for, http://host:port;
    empty: nowhere.
    """

    name: str
    dialect: str = "auto"
    service: str = ""
    version: str = ""
    services: dict[str, str] = {}
    mirrored: bool = False
    status: str = ""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the capture worker. Bytes, counts or seconds as the names say."""

    request_bytes: Annotated[
        int,
        Meta(ge=0, description="bytes of one request body; a larger one is counted, never stored short"),
    ] = 64 << 20
    open_bytes: Annotated[
        int, Meta(ge=0, description="bytes of all bodies that are being read or held, across connections")
    ] = 256 << 20
    signatures_per_version: Annotated[
        int, Meta(ge=0, description="wire signatures per model version; beyond it the least useful is evicted")
    ] = 2000
    new_signatures_per_hour: Annotated[
        int,
        Meta(
            ge=0,
            description="while signatures_per_version are stored, more new ones in an hour than this are turned away "
            "and counted, and nothing is evicted",
        ),
    ] = 500
    store_bytes: Annotated[int, Meta(ge=0, description="payload bytes in the store")] = 1 << 30
    held_out_requests: Annotated[
        int, Meta(ge=0, description="requests per model version in the held-out reservoir, which is never exported")
    ] = 256
    held_out_bytes: Annotated[int, Meta(ge=0, description="bytes of that reservoir")] = 64 << 20
    held_out_seconds: Annotated[int, Meta(ge=0, description="seconds after which a held-out request is deleted")] = (
        7 * 86400
    )


class WorkerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything of one run of the worker. ``run`` names the supervisor's run: counters are summed over runs."""

    store: str
    run: str
    listeners: tuple[ListenerConfig, ...]
    limits: Limits = Limits()
    #: A sample older than this many seconds is replaced by a newer request of the same wire signature.
    refresh_after: float = 86400.0
    #: What is not seen for this many seconds is deleted; 0 keeps it for ever.
    retention: float = 30 * 86400.0
    #: Seconds between two writes of counted hits; a new signature is written at once.
    flush_interval: float = 1.0
    #: The same where many sidecars write one store; each interval is drawn anew between half and one and a half of it.
    shared_flush_interval: float = 10.0
    #: Bytes: RLIMIT_AS of the process, which ends and is started anew when 80 % of it are resident. 0: no limit.
    memory_bytes: int = 0
    #: Requests are shed at random while the worker is further behind the relay than this, in seconds. 0: never.
    shed_lag: float = 1.0
    #: Bounds of what may wait in the relay, as settings ``tap``; requests are shed before they are reached. 0: unknown.
    tap_bytes: int = 0
    tap_frames: int = 0
    #: What tells records apart, and by model where it differs: see :mod:`capture.levels`.
    level: str = "names"
    levels: dict[str, str] = {}
    #: Use a store that others than its owner may read or write.
    allow_shared_store: bool = False
    #: ``at_capture``: values of requests are replaced, by these rules, before anything is kept.
    scrub: Literal["off", "at_capture"] = "off"
    scrub_rules: tuple[str, ...] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
