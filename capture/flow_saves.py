"""Which flows changed since they were last saved, and what of them is saved when there is no room for all. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from capture import tap
from capture.config import ListenerConfig
from capture.exchange import ExchangeTracker
from capture.wire.detect import FlowObserver
from capture.wire.saved import SavedFlow

#: Bytes of a save beside its header tables, an upper estimate; of a table's entry beside name and value.
_SAVE_COST: Final = 512
_ENTRY_COST: Final = 8


class FlowSave(msgspec.Struct, array_like=True, omit_defaults=True):
    """One save of one flow. ``opened`` is the payload of its OPEN, told once. ``exchanges`` were open at that time;
    they are not saved. ``ended``: it is over, nothing else is told."""

    flow: int
    ended: bool = False
    opened: bytes = b""
    exchanges: int = 0
    state: SavedFlow | None = None


class Flow:
    """A flow that is being read. ``opened`` is the payload of its OPEN. ``saved``: a save of it was made; ``changed``:
    the number of the last save in which it changed; ``forgotten``: there was no room for it when all were saved, and
    until they are again only that it is there is known."""

    __slots__ = ("changed", "forgotten", "listener", "observer", "opened", "saved", "tracker")

    def __init__(
        self, opened: bytes, observer: FlowObserver, tracker: ExchangeTracker, listener: ListenerConfig
    ) -> None:
        self.opened = opened
        self.observer = observer
        self.tracker = tracker
        self.listener = listener
        self.saved = self.forgotten = False
        self.changed = 0

    @property
    def client(self) -> str:
        """The client's address without its port. Seldom asked for, and tens of thousands of flows may be open."""
        return msgspec.json.decode(self.opened, type=tap.FlowOpen).peer.rpartition(":")[0]


class FlowSaver:
    """Remembers which flows were touched."""

    def __init__(self) -> None:
        self.touched: set[int] = set()
        self._ended: list[int] = []
        self._number = 0

    def end(self, number: int, flow: Flow) -> None:
        """A flow is over."""
        self.touched.discard(number)
        if flow.saved:
            self._ended.append(number)

    def changes(self, flows: dict[int, Flow]) -> list[FlowSave]:
        """What changed since the last call."""
        self._number += 1
        saves = [FlowSave(number, True) for number in self._ended]
        for number in self.touched:
            flow = flows.get(number)
            if flow is None or flow.forgotten:
                continue
            flow.changed = self._number
            state = flow.observer.save()
            exchanges = flow.tracker.open_exchanges
            if state is not None or not flow.saved:
                saves.append(FlowSave(number, False, b"" if flow.saved else flow.opened, exchanges, state))
                flow.saved = True
        self.touched.clear()
        self._ended.clear()
        return saves

    def everything(self, flows: dict[int, Flow], room: int) -> tuple[list[FlowSave], int]:
        """All flows, in some ``room`` bytes: (saves, flows of which only the beginning could be kept). Those that were
        quiet for longest lose first."""
        self.touched.clear()
        self._ended.clear()
        saves = []
        used = forgotten = 0
        room -= sum(_SAVE_COST + len(flow.opened) for flow in flows.values())
        for number, flow in sorted(flows.items(), key=lambda item: -item[1].changed):
            flow.saved = True
            state = flow.observer.save(whole=True)
            used += _table_bytes(state)
            flow.forgotten = used > room
            if flow.forgotten:
                forgotten += 1
                state = SavedFlow("", joined=True)
            saves.append(FlowSave(number, False, flow.opened, flow.tracker.open_exchanges, state))
        return saves, forgotten


def load(saves: Iterable[FlowSave], make: Callable[[int, bytes], Flow]) -> tuple[dict[int, Flow], int, int]:
    """The flows as they were when last saved, by number, ready to read on; HTTP/2 exchanges that were open; and HTTP/1
    flows that have to look for a place to read on. ``make`` builds a flow from its number and OPEN."""
    flows: dict[int, Flow] = {}
    exchanges: dict[int, int] = {}
    for save in saves:
        if save.ended:
            flows.pop(save.flow, None)
            continue
        if save.opened:
            flows[save.flow] = make(save.flow, save.opened)
        if save.state is not None:
            flows[save.flow].observer.load(save.state)
        exchanges[save.flow] = save.exchanges
    lost = unsynced = 0
    for number, flow in flows.items():
        flow.observer.resume()
        if flow.observer.protocol == "http/2":
            lost += exchanges[number]
        elif flow.observer.unsynced:
            unsynced += bool(flow.observer.protocol)  # while unknown, the observer announces it
    return flows, lost, unsynced


def _table_bytes(state: SavedFlow | None) -> int:
    if state is None or state.http2 is None:
        return 0
    tables = (state.http2.client.table, state.http2.server.table)
    return sum(len(name) + len(value) + _ENTRY_COST for table in tables if table for name, value, _ in table.entries)
