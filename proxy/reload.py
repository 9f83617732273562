"""What a reload can change, and what needs a restart or a take-over."""

from __future__ import annotations

from typing import Final

import msgspec

from proxy.settings import Settings

#: Settings that a running sidecar keeps: sockets, processes and what they were given at their start.
FIXED: Final = (
    "workers",
    "takeover_socket",
    "tap.buffer_bytes",
    "tap.buffer_frames",
    "admin.listen",
    "capture.worker_socket",
    "relay.resolve_interval",
)
#: The same, of each listener.
FIXED_LISTENER: Final = ("listen", "upstream", "mode", "socket_mode", "follow_upstream")


def needing_restart(old: Settings, new: Settings) -> list[str]:
    """The names of the settings that differ and do not take effect by a reload."""
    found = [place for place in FIXED if _at(old, place) != _at(new, place)]
    if len(old.listeners) != len(new.listeners):
        return [*found, "listeners"]
    for number, (one, other) in enumerate(zip(old.listeners, new.listeners, strict=True)):
        for name in FIXED_LISTENER:
            if getattr(one, name) != getattr(other, name):
                found.append(f"listeners[{number}].{name}")
        for name in ("tls", "upstream_tls"):
            if (getattr(one, name) is None) != (getattr(other, name) is None):
                found.append(f"listeners[{number}].{name}")
    return found


def kept(old: Settings, new: Settings) -> Settings:
    """``new`` with what cannot change left as it was: the settings in effect after a reload."""
    listeners = tuple(
        msgspec.structs.replace(
            other,
            **{name: getattr(one, name) for name in FIXED_LISTENER},
            **{
                name: getattr(one, name)
                for name in ("tls", "upstream_tls")
                if (getattr(one, name) is None) != (getattr(other, name) is None)
            },
        )
        for one, other in zip(old.listeners, new.listeners, strict=True)
    )
    result = msgspec.structs.replace(new, listeners=listeners)
    for place in FIXED:
        part, _, name = place.rpartition(".")
        value = _at(old, place)
        if part:
            changed = msgspec.structs.replace(getattr(result, part), **{name: value})
            result = msgspec.structs.replace(result, **{part: changed})
        else:
            result = msgspec.structs.replace(result, **{name: value})
    return result


def _at(settings: Settings, place: str) -> object:
    value: object = settings
    for name in place.split("."):
        value = getattr(value, name)
    return value
