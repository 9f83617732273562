"""From the settings to what each process is told. Used at the start and at a reload."""

from __future__ import annotations

import msgspec

from capture.config import WorkerConfig
from capture.settings_errors import SettingsError
from proxy import address
from proxy.relay_main import RelayConfig, RelayListener
from proxy.settings import Settings
from proxy.tls_contexts import RelayTls, RelayUpstreamTls, TlsError


def relay_config(settings: Settings, sink: str = "") -> RelayConfig:
    """For every relay; completed with generation and descriptors (-1 here) when one is started. ``sink``: the address
    of what answers mirrored traffic, the upstream of listeners of mode sink."""
    taken = {name: getattr(settings.relay, name) for name in settings.relay.__struct_fields__}
    known = {name: value for name, value in taken.items() if name in RelayConfig.__struct_fields__}
    return RelayConfig(
        generation=0,
        listeners=relay_listeners(settings, sink),
        tap_bytes=settings.tap.buffer_bytes,
        tap_frames=settings.tap.buffer_frames,
        log_level=settings.log_level,
        **known,
    )


def relay_listeners(settings: Settings, sink: str = "") -> tuple[RelayListener, ...]:
    """In the order of the settings."""
    return tuple(
        RelayListener(
            -1,
            sink if listener.mode == "sink" else str(address.parse(listener.upstream)),
            None if listener.tls is None else msgspec.convert(msgspec.to_builtins(listener.tls), RelayTls),
            None
            if listener.upstream_tls is None
            else msgspec.convert(msgspec.to_builtins(listener.upstream_tls), RelayUpstreamTls),
        )
        for listener in settings.listeners
    )


def check_certificates(settings: Settings) -> None:
    """Read certificates, keys and CAs once, as every relay will. Raises SettingsError."""
    for number, listener in enumerate(relay_listeners(settings)):
        for name in ("tls", "upstream_tls"):
            try:
                # One at a time, for the place in the message.
                msgspec.structs.replace(listener, **{name: None}).contexts()
            except TlsError as error:
                place = "upstream_tls" if name == "tls" else "tls"
                raise SettingsError(f"listeners[{number}].{place}: {error}") from None


def certificate_files(settings: Settings) -> list[str]:
    """Every file of certificates and keys, by path."""
    return [
        path
        for listener in relay_listeners(settings)
        for tls in (listener.tls, listener.upstream_tls)
        if tls is not None
        for path in tls.files
    ]


def worker_config(settings: Settings, run: str) -> WorkerConfig:
    """For every capture worker; the supervisor completes ``run`` with the pair's number."""
    capture = settings.capture
    names = set(capture.__struct_fields__) & set(WorkerConfig.__struct_fields__)
    config = WorkerConfig(
        run=run,
        listeners=settings.listener_configs(),
        log_level=settings.log_level,
        tap_bytes=settings.tap.buffer_bytes,
        tap_frames=settings.tap.buffer_frames,
        **{name: getattr(capture, name) for name in names},
    )
    return msgspec.structs.replace(config, memory_bytes=0 if capture.worker_socket else capture.memory_bytes)
