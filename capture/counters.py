"""Counters in shared memory: each process adds to slots of its own, and a process that dies takes none with it.

One anonymous file (``memfd_create``) holds an array of unsigned 64-bit integers, one a row of :data:`TABLE`. The
supervisor creates it and hands the descriptor to the relay and the capture worker. A slot has one writer (its owner),
so no lock is needed. Memory, not a file on disk: a full disk must not turn a counter into SIGBUS on the data path.
"""

from __future__ import annotations

import mmap
import os
from typing import Final, Literal, NamedTuple

Owner = Literal["supervisor", "relay", "worker"]


class Counter(NamedTuple):
    """One row of the table. ``help`` is the sentence that users read."""

    name: str
    owner: Owner
    help: str


#: How a flow ended, as counted in ``flows_closed_<reason>``.
FLOW_END_REASONS: Final = (
    "finished",  # both directions ended with EOF
    "client_reset",  # the client reset the connection
    "server_reset",  # the model server reset the connection
    "connect_failed",  # no upstream address accepted
    "connect_timeout",
    "first_byte_timeout",
    "half_closed_timeout",
    "closing_timeout",  # unsent data and a peer that does not read
    "peer_gone",  # keep-alive or TCP_USER_TIMEOUT found the peer gone
    "limit",  # over max_connections
    "shutdown",  # the relay was stopped
)

#: The one table of counters. A row may be added anywhere: slots are numbered per run, never stored by number.
TABLE: Final[tuple[Counter, ...]] = (
    Counter("relay_starts", "supervisor", "Relay processes started"),
    Counter("worker_starts", "supervisor", "Capture worker processes started"),
    Counter("flows_opened", "relay", "Client connections accepted"),
    *(Counter(f"flows_closed_{reason}", "relay", f"Flows that ended: {reason}") for reason in FLOW_END_REASONS),
    Counter("client_bytes", "relay", "Bytes relayed from clients to the model server"),
    Counter("server_bytes", "relay", "Bytes relayed from the model server to clients"),
    # Written by the worker while it lives; the relay sets the two of bytes right when it finds the worker gone.
    Counter("tap_frames", "worker", "Tap frames that the capture worker has read"),
    Counter("tap_client_bytes", "worker", "Client bytes that the capture worker has read"),
    Counter("tap_server_bytes", "worker", "Server bytes that the capture worker has read"),
    Counter("tap_lost_client_bytes", "relay", "Client bytes that the capture worker never got"),
    Counter("tap_lost_server_bytes", "relay", "Server bytes that the capture worker never got"),
    Counter("tap_lost_flows", "relay", "Flows of which the capture worker missed bytes"),
    Counter("tap_detached", "relay", "Times the tap lost its capture worker"),
    Counter("relay_log_dropped", "relay", "Log lines of the relay that were dropped to keep it from waiting"),
    Counter("worker_ready", "worker", "Times a capture worker had its store open and began to read"),
    Counter("requests_observed", "worker", "Requests read completely, of any kind"),
    Counter("requests_proven", "worker", "Captured calls that the server answered with success"),
    Counter("requests_unproven", "worker", "Captured calls that may have run and failed or were cut off"),
    Counter("requests_refused", "worker", "Captured calls that failed provably before the model ran"),
    Counter("requests_undecodable", "worker", "Calls that the server answered with success and warmtap cannot read"),
    Counter("requests_incomplete", "worker", "Requests cut off before they were complete"),
    Counter("signatures_turned_away", "worker", "Calls of new signatures that came in a flood and were not admitted"),
    Counter("requests_ignored", "worker", "Requests that are no model call (metadata, health, other paths)"),
    Counter("requests_oversized", "worker", "Requests whose body was over the limit and could not be kept"),
    Counter("requests_lost", "worker", "Requests of which bytes were missed by the tap"),
    Counter("requests_missed", "worker", "Requests that passed unseen (estimated: in gaps and before a joined flow)"),
    Counter("flows_undecodable", "worker", "Flows that are not readable HTTP"),
    Counter("flows_unsynced", "worker", "Flows whose framing was lost by missed bytes"),
    Counter("flows_resynced", "worker", "Flows read again after missed bytes"),
    Counter("flows_blind", "worker", "Flows that ended unsynced: their rest was never read"),
    Counter("store_writes", "worker", "Batches written to the store"),
    Counter("store_failures", "worker", "Batches that the store refused; they are tried again"),
    Counter("store_dropped", "worker", "Records dropped because the store was away for too long"),
)

#: Counters of what production sent and no signature stands for: part of what no warm-up file can cover.
LOSSES: Final = (
    "tap_lost_client_bytes",
    "tap_lost_server_bytes",
    "tap_lost_flows",
    "requests_lost",
    "requests_missed",
    "requests_undecodable",
    "requests_oversized",
    "flows_undecodable",
    "flows_blind",
    "signatures_turned_away",
    "store_dropped",
)
NAMES: Final = tuple(row.name for row in TABLE)
SLOT: Final = {name: number for number, name in enumerate(NAMES)}


class Counters:
    """A view of the shared array. ``slots[SLOT[name]] += n`` is the way to count on the data path."""

    def __init__(self, fd: int) -> None:
        """Map an existing descriptor. Raises ValueError if it is not as large as the table (another version)."""
        size = 8 * len(TABLE)
        if os.fstat(fd).st_size != size:
            raise ValueError(f"counters: descriptor {fd} holds {os.fstat(fd).st_size} bytes, not {size}")
        self.fd = fd
        self._map = mmap.mmap(fd, size)
        self.slots: memoryview = memoryview(self._map).cast("Q")

    @classmethod
    def create(cls) -> Counters:
        """A fresh array of zeros in anonymous memory; the descriptor is inheritable only through ``pass_fds``."""
        fd = os.memfd_create("warmtap-counters", os.MFD_CLOEXEC)
        os.ftruncate(fd, 8 * len(TABLE))
        return cls(fd)

    def add(self, name: str, n: int = 1) -> None:
        """Add ``n`` to a counter that this process owns."""
        self.slots[SLOT[name]] += n

    def snapshot(self) -> dict[str, int]:
        """All counters by name."""
        return dict(zip(NAMES, self.slots.tolist(), strict=True))
