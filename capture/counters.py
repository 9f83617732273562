"""Counters in shared memory: each process adds to slots of its own, and a process that dies takes none with it.

One anonymous file (``memfd_create``) holds an array of unsigned 64-bit integers, one a row of :data:`TABLE`, for each
pair of relay and capture worker. The supervisor creates it and hands the descriptor and the pair's number to both. A
slot has one writer (its owner), so no lock is needed. Memory, not a file on disk: a full disk must not turn a counter
into SIGBUS on the data path.
"""

from __future__ import annotations

import mmap
import os
from typing import Final, Literal, NamedTuple

Owner = Literal["supervisor", "relay", "worker"]


#: ``count`` only grows. A gauge is overwritten; over several pairs it is added up (``sum``) or its largest value taken
#: (``max``).
Kind = Literal["count", "sum", "max"]


class Counter(NamedTuple):
    """One row of the table. ``help`` is the sentence that users read."""

    name: str
    owner: Owner
    help: str
    kind: Kind = "count"


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
    "tls_failed",  # a TLS handshake failed, on either side, or a record could not be read
    "tls_timeout",  # the client's TLS handshake did not end in time
    "idle_timeout",  # nothing moved for idle_timeout (off by default)
    "drained",  # idle while the relay was stopping
    "shutdown",  # still busy when the relay had to stop
)

#: Upper bounds in seconds of the buckets of two histograms; one bucket more holds what is above. Slots are named
#: ``<histogram>_<number of the bucket>``, and ``<histogram>_us`` holds the sum in microseconds.
HISTOGRAMS: Final = {
    "connect": (0.0005, 0.002, 0.01, 0.05, 0.25, 1.0, 5.0),
    "loop_lag": (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0),
}
_HISTOGRAM_HELP: Final = {
    "connect": "Connects to the model server",
    "loop_lag": "How late the relay's loop was for a timer, four times a second",
}


def _histogram(name: str) -> list[Counter]:
    bounds = (*(f"at most {bound:g} s" for bound in HISTOGRAMS[name]), "longer")
    rows = [
        Counter(f"{name}_{number}", "relay", f"{_HISTOGRAM_HELP[name]}: {text}") for number, text in enumerate(bounds)
    ]
    return [*rows, Counter(f"{name}_us", "relay", f"{_HISTOGRAM_HELP[name]}: sum in microseconds")]


#: The one table of counters. A row may be added anywhere: slots are numbered per run, never stored by number.
TABLE: Final[tuple[Counter, ...]] = (
    Counter("relay_starts", "supervisor", "Relay processes started"),
    Counter("worker_starts", "supervisor", "Capture worker processes started"),
    Counter("status_polls", "supervisor", "Requests to model servers for their versions and SignatureDefs"),
    Counter("status_failures", "supervisor", "Of those, the ones without a usable answer"),
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
    Counter("relay_beats", "relay", "Heartbeats of the relay, four a second"),
    *_histogram("connect"),
    *_histogram("loop_lag"),
    Counter("flows_open", "relay", "Client connections open now", "sum"),
    Counter("tap_attached", "relay", "Taps with a capture worker at their end", "sum"),
    Counter("tap_queued_bytes", "relay", "Bytes that wait in the relay for the capture worker", "sum"),
    Counter("tap_queued_frames", "relay", "Frames that wait in the relay for the capture worker", "sum"),
    Counter("relay_log_dropped", "relay", "Log lines of the relay that were dropped to keep it from waiting"),
    Counter("worker_ready", "worker", "Times a capture worker had its store open and began to read"),
    Counter("requests_observed", "worker", "Requests read completely, of any kind"),
    Counter("requests_proven", "worker", "Captured calls that the server answered with success"),
    Counter("requests_unproven", "worker", "Captured calls that may have run and failed or were cut off"),
    Counter("requests_retried", "worker", "EAS attempts that repeat one that failed just before: the same call"),
    Counter("requests_refused", "worker", "Captured calls that failed provably before the model ran"),
    Counter("requests_undecodable", "worker", "Calls that the server answered with success and warmtap cannot read"),
    Counter("requests_incomplete", "worker", "Requests cut off before they were complete"),
    Counter("signatures_turned_away", "worker", "Calls of new signatures that came in a flood and were not admitted"),
    Counter("requests_ignored", "worker", "Requests that are no model call (metadata, health, other paths)"),
    Counter("requests_oversized", "worker", "Requests whose body was over the limit and could not be kept"),
    Counter("requests_unscrubbed", "worker", "Calls counted, and not kept because they could not be scrubbed"),
    Counter("requests_lost", "worker", "Requests of which bytes were missed by the tap"),
    Counter("requests_shed", "worker", "Requests passed over, chosen at random, because the worker was behind"),
    Counter("requests_missed", "worker", "Requests that passed unseen (estimated: in gaps and before a joined flow)"),
    Counter("versions_attributed", "worker", "Calls whose version the status of the model server told"),
    Counter("versions_unknown", "worker", "Calls whose version it could not tell; they are stored as unknown"),
    Counter("metadata_stored", "worker", "SignatureDefs of model versions handed to the store"),
    Counter("flows_undecodable", "worker", "Flows that are not readable HTTP"),
    Counter("flows_tls", "worker", "Flows that are TLS on a listener without tls; counted in flows_undecodable too"),
    Counter("flows_unsynced", "worker", "Flows whose framing was lost by missed bytes"),
    Counter("flows_resynced", "worker", "Flows read again after missed bytes"),
    Counter("flows_blind", "worker", "Flows that ended unsynced: their rest was never read"),
    Counter("flows_forgotten", "worker", "Times a flow found no room in the memory that a restarted worker reads"),
    Counter("store_writes", "worker", "Batches written to the store"),
    Counter("store_failures", "worker", "Batches that the store refused; they are tried again"),
    Counter("store_dropped", "worker", "Records dropped because the store was away for too long"),
    Counter("store_waiting_calls", "worker", "Calls that wait for a store that has taken nothing for a second", "sum"),
    Counter("store_waiting_bytes", "worker", "Bytes of requests that wait for a store as the calls do", "sum"),
    Counter("worker_limit_restarts", "worker", "Times a capture worker ended by itself at 80 % of its memory"),
    Counter("worker_lag_us", "worker", "How far the capture worker is behind the relay, in microseconds", "max"),
    Counter("store_delay_us", "worker", "Age of the oldest batch that the store has not taken, in microseconds", "max"),
    Counter("worker_memory_bytes", "worker", "Resident memory of the capture worker", "sum"),
    Counter("worker_open_flows", "worker", "Flows that the capture worker is reading", "sum"),
    Counter("worker_open_bytes", "worker", "Bytes of bodies that the capture worker holds", "sum"),
)

#: Counters of what production sent and no signature stands for: part of what no warm-up file can cover.
LOSSES: Final = (
    "tap_lost_client_bytes",
    "tap_lost_server_bytes",
    "tap_lost_flows",
    "requests_lost",
    "requests_shed",
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
_RELAYED_CLIENT, _RELAYED_SERVER = SLOT["client_bytes"], SLOT["server_bytes"]
_READ_CLIENT, _READ_SERVER = SLOT["tap_client_bytes"], SLOT["tap_server_bytes"]
_QUEUED_FRAMES = SLOT["tap_queued_frames"]
_LOST_CLIENT, _LOST_SERVER = SLOT["tap_lost_client_bytes"], SLOT["tap_lost_server_bytes"]


_COUNTS: Final = tuple(row.kind == "count" for row in TABLE)
_ROW_BYTES: Final = 8 * len(TABLE)


class Counters:
    """One pair's part of the shared array. ``slots[SLOT[name]] += n`` is the way to count on the data path."""

    def __init__(self, fd: int, pair: int = 0) -> None:
        """Map an existing descriptor. Raises ValueError if it does not hold whole tables (another version), or not this
        pair's."""
        size = os.fstat(fd).st_size
        if size % _ROW_BYTES or pair >= size // _ROW_BYTES:
            raise ValueError(f"counters: descriptor {fd} holds {size} bytes, no table of {_ROW_BYTES} for pair {pair}")
        self.fd = fd
        self.pair = pair
        self._map = mmap.mmap(fd, size)
        self._all = memoryview(self._map).cast("Q")
        self.slots: memoryview = self._all[pair * len(TABLE) : (pair + 1) * len(TABLE)]

    @classmethod
    def create(cls, pairs: int = 1) -> Counters:
        """A fresh array of zeros in anonymous memory; the descriptor is inheritable only through ``pass_fds``."""
        fd = os.memfd_create("warmtap-counters", os.MFD_CLOEXEC)
        os.ftruncate(fd, _ROW_BYTES * pairs)
        return cls(fd)

    def of(self, pair: int) -> Counters:
        """The view of another pair."""
        return Counters(self.fd, pair)

    def add(self, name: str, n: int = 1) -> None:
        """Add ``n`` to a counter that this process owns."""
        self.slots[SLOT[name]] += n

    def put(self, name: str, value: int) -> None:
        """Overwrite a gauge that this process owns."""
        self.slots[SLOT[name]] = value

    def tapped(self) -> tuple[int, int]:
        """(bytes that the worker has read, bytes that were relayed and neither read nor lost)."""
        slots = self.slots
        read = slots[_READ_CLIENT] + slots[_READ_SERVER]
        lost = slots[_LOST_CLIENT] + slots[_LOST_SERVER]
        return read, slots[_RELAYED_CLIENT] + slots[_RELAYED_SERVER] - read - lost

    def tap_fill(self, most_bytes: int, most_frames: int) -> float:
        """The share of the tap's buffer that is in use, by what relay and worker have counted."""
        of_bytes = self.tapped()[1] / most_bytes if most_bytes else 0.0
        of_frames = self.slots[_QUEUED_FRAMES] / most_frames if most_frames else 0.0
        return max(of_bytes, of_frames)

    def settle(self) -> None:
        """Of all pairs, whose processes have ended: what was relayed and neither read nor counted as lost was sent to a
        worker that never read it, and is lost."""
        width = len(TABLE)
        for base in range(0, len(self._all), width):
            for side in ("client", "server"):
                relayed, read, lost = (
                    base + SLOT[name] for name in (f"{side}_bytes", f"tap_{side}_bytes", f"tap_lost_{side}_bytes")
                )
                unread = self._all[relayed] - self._all[read] - self._all[lost]
                if unread > 0:
                    self._all[lost] += unread

    def snapshot(self) -> dict[str, int]:
        """This pair's counters by name, without the gauges."""
        values = self.slots.tolist()
        return {name: value for name, value, count in zip(NAMES, values, _COUNTS, strict=True) if count}

    def values(self) -> dict[str, int]:
        """This pair's counters and gauges by name."""
        return dict(zip(NAMES, self.slots.tolist(), strict=True))

    def total(self) -> dict[str, int]:
        """Counters and gauges by name, over all pairs."""
        values, width = self._all.tolist(), len(TABLE)
        return {
            row.name: max(values[number::width]) if row.kind == "max" else sum(values[number::width])
            for number, row in enumerate(TABLE)
        }
