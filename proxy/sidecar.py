"""What the supervisor shows of the sidecar, and what it can be told to do: all that health, metrics and API know of it.

The supervisor implements :class:`Sidecar`; ``proxy/admin`` uses it and imports no supervisor.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from capture.counters import Counters
from proxy.settings import Settings


class ListenerState(msgspec.Struct, frozen=True):
    """One listener. ``state``: ``refusing`` is ``follow_upstream`` while the model server refuses. A sink
    has no ``upstream``."""

    name: str
    #: ``host:port`` or ``unix:/path``, as the kernel gave it.
    address: str
    upstream: str
    mode: Literal["relay", "sink"]
    dialect: str
    tls: bool
    upstream_tls: bool
    state: Literal["accepting", "refusing", "closed"]


#: ``waiting``: none that runs elsewhere has connected.
#: ``stuck``: it has not read what waits for it for some seconds.
WorkerState = Literal["none", "starting", "reading", "external", "waiting", "stuck"]


class PairState(msgspec.Struct, frozen=True):
    """One relay and its capture worker. Process ids are 0 where there is none (of an external worker: if unknown)."""

    number: int
    relay_pid: int
    relay_starts: int
    worker_pid: int
    worker_starts: int
    #: ``none``: it could not be started, or is being started anew; ``external``: one that connected is reading.
    worker: WorkerState


class Sidecar(Protocol):
    """The supervisor, seen from the admin server. All in one event loop."""

    @property
    def settings(self) -> Settings:
        """In effect now."""

    @property
    def counters(self) -> Counters:
        """Of all pairs: ``total()``, and ``of(pair)`` each."""

    @property
    def started_at(self) -> float:
        """Unix time."""

    @property
    def draining(self) -> bool:
        """A stop has begun."""

    @property
    def paused(self) -> bool:
        """Taps are detached by the kill switch."""

    def listeners(self) -> list[ListenerState]:
        """In the order of the settings."""

    def pairs(self) -> list[PairState]:
        """By number."""

    async def unready(self) -> list[str]:
        """Why clients should be sent elsewhere, a sentence each: stopping, no relay accepts, a model server does not
        accept a connect. Empty: ready. Looks at most once a second, never raises."""

    def pause(self) -> None:
        """The kill switch: detach the taps, touch no flow. Again: nothing."""

    def resume(self) -> None:
        """Attach taps anew. Flows that began before are read on where they can be."""
