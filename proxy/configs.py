"""From the settings to what each process is told. Used at the start and at a reload."""

from __future__ import annotations

import msgspec

from capture.config import WorkerConfig
from proxy.relay_main import RelayConfig
from proxy.settings import Settings


def relay_config(settings: Settings) -> RelayConfig:
    """For every relay; the supervisor completes it with generation and listeners."""
    taken = {name: getattr(settings.relay, name) for name in settings.relay.__struct_fields__}
    known = {name: value for name, value in taken.items() if name in RelayConfig.__struct_fields__}
    return RelayConfig(
        generation=0,
        listeners=(),
        tap_bytes=settings.tap.buffer_bytes,
        tap_frames=settings.tap.buffer_frames,
        log_level=settings.log_level,
        **known,
    )


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
