"""One relay and its capture worker, each kept running; between them the tap."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from capture.counters import Counters
from capture.status_board import StatusBoard
from proxy.keeping import Orders
from proxy.logs import LineSink
from proxy.relay_keeper import RELAY_COMMAND, RelayKeeper
from proxy.sidecar import PairState
from proxy.worker_keeper import WORKER_COMMAND, WorkerKeeper
from proxy.worker_socket import WorkerSocket


class Pair:
    """Runs until ``orders.stop`` is set."""

    def __init__(
        self,
        number: int,
        *,
        sockets: Sequence[socket.socket],
        orders: Orders,
        counters: Counters,
        sink: LineSink,
        changed: Callable[[], None],
        relay_command: Sequence[str] = RELAY_COMMAND,
        worker_command: Sequence[str] = WORKER_COMMAND,
        elsewhere: WorkerSocket | None = None,
        board: StatusBoard | None = None,
    ) -> None:
        """``sockets`` are bound already, in the order of the settings; ``counters`` are this pair's. ``changed`` is
        called whenever relay or worker come or go. ``elsewhere``: where workers connect that are not started here;
        ``board``: where they learn what model servers say of their versions."""
        self.number = number
        self._counters = counters
        self.relay = RelayKeeper(
            number,
            sockets=sockets,
            orders=orders,
            counters=counters,
            sink=sink,
            on_ready=lambda: self.worker.send_tap(),
            on_death=lambda: self.worker.relay_died(),
            changed=changed,
            command=relay_command,
        )
        self.worker = WorkerKeeper(
            number,
            relay=self.relay,
            orders=orders,
            counters=counters,
            sink=sink,
            changed=changed,
            command=worker_command,
            elsewhere=elsewhere,
            board=board,
        )

    def state(self) -> PairState:
        """For health and API."""
        counts = self._counters.snapshot()
        starts = counts["relay_starts"], counts["worker_starts"]
        return PairState(self.number, self.relay.pid, starts[0], self.worker.pid, starts[1], self.worker.state)

    async def run(self) -> None:
        """Keep both running; ends when both have ended after a stop."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.relay.run())
            group.create_task(self.worker.run())

    def kill(self) -> None:
        """Leave no child behind."""
        self.relay.kill()
        self.worker.kill()
