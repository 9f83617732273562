"""The relay's end of the tap: never blocks, bounded in bytes and frames, exact about what it lost.

How losses stay exact when a worker is killed: what was sent may still lie unread in the kernel. The reader therefore
counts the frames it hands out in shared memory, and the writer keeps a ledger of (flow, size) of the frames that
are not yet acknowledged. When the worker is gone, the ledger is what it never read.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from itertools import islice
from typing import Final

import msgspec

from capture.counters import SLOT
from capture.tap import (
    CLIENT,
    CLOSED,
    EOF_CLIENT,
    EOF_SERVER,
    GAP,
    GAP_PAYLOAD,
    HEADER,
    HELLO,
    HELLO_PAYLOAD,
    LOST,
    LOST_PAYLOAD,
    MAGIC,
    MAX_PAYLOAD,
    OPEN,
    SERVER,
    TIME,
    TIME_PAYLOAD,
    VERSION,
    FlowOpen,
)

#: ``sendmsg`` raises EMSGSIZE above it (IOV_MAX).
MAX_BUFFERS: Final = 1024
#: A batch goes out when it holds this many bytes ...
FLUSH_BYTES: Final = 64 << 10
#: ... or is this many seconds old.
FLUSH_SECONDS: Final = 0.005
#: Asked from the kernel, which grants at most net.core.wmem_max (often 212,992: 340 KB of 10 KB frames).
SEND_BUFFER: Final = 1 << 20
#: A flow that has carried fewer bytes than this is short: it loses first when the buffer gets full, since a long-lived
#: flow (a gRPC channel) is harder to read again after a gap.
LONG_FLOW_BYTES: Final = 64 << 10
#: Unacknowledged frames that are remembered; a kernel buffer of 1 MiB cannot hold more. Older ones count as read.
LEDGER_FRAMES: Final = 1 << 16

_RELAYED_CLIENT: Final = SLOT["client_bytes"]
_RELAYED_SERVER: Final = SLOT["server_bytes"]
_READ_FRAMES: Final = SLOT["tap_frames"]
_READ_CLIENT: Final = SLOT["tap_client_bytes"]
_READ_SERVER: Final = SLOT["tap_server_bytes"]
_LOST_CLIENT: Final = SLOT["tap_lost_client_bytes"]
_LOST_SERVER: Final = SLOT["tap_lost_server_bytes"]
_LOST_FLOWS: Final = SLOT["tap_lost_flows"]
_DETACHED: Final = SLOT["tap_detached"]


class TapFlow:
    """What the writer knows of one flow. The relay keeps it and hands it back with every chunk."""

    __slots__ = (
        "alpn",
        "announced",
        "client_eof",
        "client_offset",
        "closed",
        "id",
        "listener",
        "lost_client",
        "lost_server",
        "missed",
        "peer",
        "server_before",
        "server_eof",
        "server_offset",
        "synced",
        "tls",
    )

    def __init__(self, flow_id: int, listener: int, peer: str, tls: bool, alpn: str) -> None:
        self.id = flow_id
        self.listener = listener
        self.peer = peer
        self.tls = tls
        self.alpn = alpn
        #: Bytes relayed so far, tapped or not.
        self.client_offset = 0
        self.server_offset = 0
        #: ``server_offset`` when the client last sent something.
        self.server_before = 0
        #: Bytes lost since the last GAP.
        self.lost_client = 0
        self.lost_server = 0
        self.client_eof = False
        self.server_eof = False
        self.closed = False
        #: Already counted in tap_lost_flows.
        self.missed = False
        #: The attachment (see TapWriter._epoch) whose worker got OPEN, and the one in which no byte is missing.
        self.announced = -1
        self.synced = -1


class TapWriter:
    """The relay's end. Every call returns at once, whatever the worker does; memory is bounded in bytes and frames.

    Without a worker, or with the buffer full, a chunk costs a few additions. Below half of the buffer everything is
    tapped. At half, flows that start or that already lost bytes are not tapped (they join below half again); at three
    quarters, flows under :data:`LONG_FLOW_BYTES` lose too; at the bound all lose. EOF and CLOSED of an announced flow
    are always queued: at most four small frames a flow, and flows are announced below half only.

    ``slots`` is :attr:`capture.counters.Counters.slots`; ``client_bytes`` and ``server_bytes`` are counted here, so
    that read + lost = relayed holds to the byte once the worker has read what is queued.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        slots: memoryview,
        *,
        first_flow: int = 1,
        max_bytes: int = 64 << 20,
        max_frames: int = 16384,
    ) -> None:
        """``first_flow`` is the id of the first flow: generation of the relay << 40 | 1 keeps ids unique."""
        self._loop = loop
        self._slots = slots
        self._next_flow = first_flow
        self._max_bytes = max_bytes
        self._max_frames = max_frames
        self._sock: socket.socket | None = None
        #: Counts attachments and detachments; odd while attached. Flows compare against it.
        self._epoch = 0
        #: Header and payload in turn; bytes already sent of the first.
        self._queue: deque[bytes] = deque()
        self._sent_of_first = 0
        self._queued_bytes = 0
        #: (flow, client bytes > 0 or server bytes < 0) of each frame that the worker has not acknowledged.
        self._ledger: deque[tuple[TapFlow | None, int]] = deque()
        self._acknowledged = 0
        self._batch_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._blocked = False
        self._drained: asyncio.Future[None] | None = None
        #: For the next LOST.
        self._lost_flows = self._lost_client = self._lost_server = 0

    @property
    def attached(self) -> bool:
        """Whether there is a worker to write to."""
        return self._sock is not None

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait to be sent, headers included."""
        return self._queued_bytes

    @property
    def queued_frames(self) -> int:
        """Frames that wait to be sent."""
        return (len(self._queue) + 1) // 2

    # -- the worker comes and goes

    def attach(self, sock: socket.socket) -> None:
        """Write to this socket from now on; the writer owns it. The worker that had the former one must have ended.

        Flows that live on are announced again when they next carry something.
        """
        self.detach()
        slots = self._slots
        # Bytes that were queued in a relay that was killed: neither read nor counted as lost by anybody.
        for relayed, read, lost in (
            (_RELAYED_CLIENT, _READ_CLIENT, _LOST_CLIENT),
            (_RELAYED_SERVER, _READ_SERVER, _LOST_SERVER),
        ):
            slots[lost] += max(0, slots[relayed] - slots[read] - slots[lost])
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._sock = sock
        self._epoch += 1
        self._acknowledged = slots[_READ_FRAMES]
        self._put(HELLO, 0, 0, HELLO_PAYLOAD.pack(MAGIC, VERSION))
        self._begin()
        self._end_batch()

    def detach(self) -> None:
        """Forget the worker; what it never read is counted as lost. Does nothing without one."""
        if self._sock is None:
            return
        self._slots[_DETACHED] += 1
        self._acknowledge()
        self._count_lost(list(self._ledger))
        # The worker is gone and may have died between two of its additions; by now all is either read or lost.
        self._slots[_READ_CLIENT] = max(0, self._slots[_RELAYED_CLIENT] - self._slots[_LOST_CLIENT])
        self._slots[_READ_SERVER] = max(0, self._slots[_RELAYED_SERVER] - self._slots[_LOST_SERVER])
        self._drop()

    async def drain(self, seconds: float) -> None:
        """Wait until all that is queued is sent, the worker is gone, or ``seconds`` have passed."""
        if self._sock is not None and not self._blocked:
            self._flush()
        if self._queue:
            self._drained = self._loop.create_future()
            await asyncio.wait({self._drained}, timeout=seconds)

    def close(self) -> None:
        """End the stream: the worker reads what was sent and then EOF. What is still queued here is lost."""
        if self._sock is None:
            return
        unsent = (len(self._queue) + 1) // 2
        self._count_lost(list(islice(self._ledger, len(self._ledger) - unsent, None)))
        self._drop()

    def _drop(self) -> None:
        assert self._sock is not None
        if self._blocked:
            self._loop.remove_writer(self._sock)
            self._blocked = False
        self._sock.close()
        self._sock = None
        self._epoch += 1
        self._queue.clear()
        self._ledger.clear()
        self._sent_of_first = self._queued_bytes = self._batch_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()

    def _count_lost(self, frames: list[tuple[TapFlow | None, int]]) -> None:
        ended: set[TapFlow] = set()
        for flow, size in frames:
            if flow is None:
                continue
            if size > 0:
                flow.lost_client += size
                self._slots[_LOST_CLIENT] += size
            else:
                flow.lost_server -= size
                self._slots[_LOST_SERVER] -= size
            self._miss(flow)
            if flow.closed:
                ended.add(flow)
        for flow in ended:
            self._forget(flow)

    # -- the data path

    def open(self, listener: int, peer: str, *, tls: bool = False, alpn: str = "", announce: bool = True) -> TapFlow:
        """A new flow; hand the result to every other call about it. Without ``announce`` the worker hears of it with
        its first bytes: until then ``tls`` and ``alpn`` may still change."""
        flow = TapFlow(self._next_flow, listener, peer, tls, alpn)
        self._next_flow += 1
        if announce:
            self._resume(flow)
        return flow

    def client(self, flow: TapFlow, data: bytes) -> None:
        """Bytes of the client that were relayed. A reference is kept, nothing is copied."""
        size = len(data)
        self._slots[_RELAYED_CLIENT] += size
        flow.server_before = flow.server_offset
        offset = flow.client_offset
        if (flow.synced != self._epoch and not self._resume(flow)) or (self._blocked and self._refuses(flow, size)):
            flow.client_offset = offset + size
            flow.lost_client += size
            self._slots[_LOST_CLIENT] += size
            self._miss(flow)
            return
        flow.client_offset = offset + size
        if size > MAX_PAYLOAD:
            for start in range(0, size, MAX_PAYLOAD):
                piece = data[start : start + MAX_PAYLOAD]
                self._put(CLIENT, flow.id, offset + start, piece, flow, len(piece))
            return
        if not self._batch_bytes:
            self._begin()
        self._queue += (HEADER.pack(CLIENT, size, flow.id, offset), data)
        self._ledger.append((flow, size))
        size += HEADER.size
        self._queued_bytes += size
        self._batch_bytes += size
        if self._batch_bytes >= FLUSH_BYTES:
            self._end_batch()

    def server(self, flow: TapFlow, data: bytes) -> None:
        """Bytes of the server that were relayed. A reference is kept, nothing is copied."""
        # The same as client(), written twice: a shared function would cost a call per chunk.
        size = len(data)
        self._slots[_RELAYED_SERVER] += size
        offset = flow.server_offset
        if (flow.synced != self._epoch and not self._resume(flow)) or (self._blocked and self._refuses(flow, size)):
            flow.server_offset = offset + size
            flow.lost_server += size
            self._slots[_LOST_SERVER] += size
            self._miss(flow)
            return
        flow.server_offset = offset + size
        if size > MAX_PAYLOAD:
            for start in range(0, size, MAX_PAYLOAD):
                piece = data[start : start + MAX_PAYLOAD]
                self._put(SERVER, flow.id, offset + start, piece, flow, -len(piece))
            return
        if not self._batch_bytes:
            self._begin()
        self._queue += (HEADER.pack(SERVER, size, flow.id, offset), data)
        self._ledger.append((flow, -size))
        size += HEADER.size
        self._queued_bytes += size
        self._batch_bytes += size
        if self._batch_bytes >= FLUSH_BYTES:
            self._end_batch()

    def eof_client(self, flow: TapFlow) -> None:
        """The client sends no more."""
        flow.client_eof = True
        if flow.announced == self._epoch:
            self._gap(flow)
            self._put(EOF_CLIENT, flow.id, flow.client_offset)

    def eof_server(self, flow: TapFlow) -> None:
        """The server sends no more."""
        flow.server_eof = True
        if flow.announced == self._epoch:
            self._gap(flow)
            self._put(EOF_SERVER, flow.id, flow.server_offset)

    def closed(self, flow: TapFlow, reason: str) -> None:
        """The flow ended; one of counters.FLOW_END_REASONS."""
        flow.closed = True
        if flow.announced == self._epoch:
            self._gap(flow)
            self._put(CLOSED, flow.id, 0, reason.encode())
        else:
            self._forget(flow)

    # -- what a flow may do, and what it lost

    def _resume(self, flow: TapFlow) -> bool:
        """Announce a flow that is new to the worker or has a gap, if there is room for it."""
        if self._sock is None or (
            self._blocked
            and (self._queued_bytes * 2 >= self._max_bytes or len(self._queue) >= self._max_frames)  # two a frame
        ):
            return False
        if flow.announced != self._epoch:
            flow.announced = self._epoch
            start = FlowOpen(
                flow.listener,
                flow.peer,
                flow.tls,
                flow.alpn,
                flow.client_offset - flow.lost_client,
                flow.server_offset - flow.lost_server,
            )
            self._put(OPEN, flow.id, 0, msgspec.json.encode(start))
            self._gap(flow)
            if flow.client_eof:
                self._put(EOF_CLIENT, flow.id, flow.client_offset)
            if flow.server_eof:
                self._put(EOF_SERVER, flow.id, flow.server_offset)
        else:
            self._gap(flow)
        if self._sock is None:  # a write of the above found the worker gone
            return False
        flow.synced = self._epoch
        return True

    def _refuses(self, flow: TapFlow, size: int) -> bool:
        """Whether the buffer is too full for this chunk; the flow then has a gap."""
        queued, frames = self._queued_bytes + size, len(self._queue) // 2
        if queued * 4 < self._max_bytes * 3 and frames * 4 < self._max_frames * 3:
            return False
        if (
            queued <= self._max_bytes
            and frames < self._max_frames
            and flow.client_offset + flow.server_offset >= LONG_FLOW_BYTES
        ):
            return False
        flow.synced = -1
        return True

    def _miss(self, flow: TapFlow) -> None:
        if not flow.missed:
            flow.missed = True
            self._slots[_LOST_FLOWS] += 1

    def _gap(self, flow: TapFlow) -> None:
        if flow.lost_client or flow.lost_server:
            self._put(GAP, flow.id, 0, GAP_PAYLOAD.pack(flow.lost_client, flow.lost_server))
            flow.lost_client = flow.lost_server = 0

    def _forget(self, flow: TapFlow) -> None:
        """A flow that ended unknown to the worker: its losses are told in sum."""
        if flow.lost_client or flow.lost_server:
            self._lost_flows += 1
            self._lost_client += flow.lost_client
            self._lost_server += flow.lost_server
            flow.lost_client = flow.lost_server = 0

    # -- batches and the socket

    def _put(
        self, kind: int, flow_id: int, offset: int, payload: bytes = b"", owner: TapFlow | None = None, size: int = 0
    ) -> None:
        if self._sock is None:  # an earlier frame of the same call found the worker gone
            self._count_lost([(owner, size)])
            return
        if not self._batch_bytes and kind not in (HELLO, TIME, LOST):
            self._begin()
        self._queue += (HEADER.pack(kind, len(payload), flow_id, offset), payload)
        self._ledger.append((owner, size))
        self._queued_bytes += HEADER.size + len(payload)
        self._batch_bytes += HEADER.size + len(payload)
        if self._batch_bytes >= FLUSH_BYTES:
            self._end_batch()

    def _begin(self) -> None:
        self._put(TIME, 0, 0, TIME_PAYLOAD.pack(time.monotonic_ns(), time.time_ns()))
        if self._lost_flows:
            self._put(LOST, 0, 0, LOST_PAYLOAD.pack(self._lost_flows, self._lost_client, self._lost_server))
            self._lost_flows = self._lost_client = self._lost_server = 0
        if self._timer is None:
            self._timer = self._loop.call_later(FLUSH_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._end_batch()

    def _end_batch(self) -> None:
        self._batch_bytes = 0
        if not self._blocked and self._queue:
            self._flush()

    def _flush(self) -> None:
        """One ``sendmsg``. What the socket does not take is sent when it is writable, with no retry before."""
        sock, queue = self._sock, self._queue
        assert sock is not None
        buffers: list[bytes | memoryview] = list(islice(queue, MAX_BUFFERS))
        if self._sent_of_first:
            buffers[0] = memoryview(buffers[0])[self._sent_of_first :]
        try:
            sent = sock.sendmsg(buffers)
        except BlockingIOError:
            sent = 0
        except OSError:
            # EPIPE and ECONNRESET: the worker is gone. Anything else: it meets EOF, ends, and is started anew.
            self.detach()
            return
        self._queued_bytes -= sent
        if not self._queued_bytes:
            queue.clear()
            self._sent_of_first = 0
        else:
            sent += self._sent_of_first
            while sent >= len(queue[0]):
                sent -= len(queue.popleft())
            self._sent_of_first = sent
        self._acknowledge()
        if bool(queue) != self._blocked:
            self._blocked = bool(queue)
            if self._blocked:
                self._loop.add_writer(sock, self._on_writable)
            else:
                self._loop.remove_writer(sock)
        if not queue:
            self._wake()

    def _on_writable(self) -> None:
        self._batch_bytes = 0
        self._flush()

    def _acknowledge(self) -> None:
        """Strike from the ledger what the worker has read."""
        ledger = self._ledger
        read: int = self._slots[_READ_FRAMES]
        for _ in range(min(read - self._acknowledged, len(ledger))):
            ledger.popleft()
        self._acknowledged = read
        while len(ledger) > LEDGER_FRAMES + len(self._queue):
            ledger.popleft()

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
