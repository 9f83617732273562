"""Recordings of real clients: what the observer says, against a plain reader on the hpack library."""

from __future__ import annotations

from pathlib import Path

import pytest

from capture.wire import events as ev
from capture.wire.detect import FlowObserver
from capture.wire.events import Side
from tests.support.wire_feed import coalesce, load, run
from tests.support.wire_h2 import PREFACE, frames, read_direction

FOLDER = Path(__file__).parents[2] / "vectors" / "wire" / "http2"
CASES = sorted(path.stem for path in FOLDER.glob("recorded-*.json"))


def _raw(case: str, side: Side) -> bytes:
    steps, _ = load(FOLDER / f"{case}.json")
    raw = b"".join(step[2] for step in steps if step[0] == "data" and step[1] == side)
    return raw.removeprefix(PREFACE) if side == Side.CLIENT else raw


@pytest.mark.parametrize("case", CASES)
def test_same_as_the_plain_reader(case: str) -> None:
    steps, _ = load(FOLDER / f"{case}.json")
    events = coalesce(run(FlowObserver(), steps))
    sent = {Side.CLIENT: read_direction(_raw(case, Side.CLIENT)), Side.SERVER: read_direction(_raw(case, Side.SERVER))}
    seen: dict[Side, dict[int, list[object]]] = {Side.CLIENT: {}, Side.SERVER: {}}
    for event in events:
        match event:
            case ev.RequestHead():
                pseudo = {":method": event.method, ":path": event.target, ":authority": event.authority}
                fields = {(name.encode(), value) for name, value in pseudo.items() if value}
                seen[Side.CLIENT].setdefault(event.stream, []).append((fields, event.headers))
            case ev.ResponseHead():
                status = {(b":status", str(event.status).encode())}
                seen[Side.SERVER].setdefault(event.stream, []).append((status, event.headers))
            case ev.RequestData() | ev.ResponseData():
                side = Side.CLIENT if isinstance(event, ev.RequestData) else Side.SERVER
                seen[side].setdefault(event.stream, []).append(event.data)
            case ev.RequestEnd() | ev.ResponseEnd():
                side = Side.CLIENT if isinstance(event, ev.RequestEnd) else Side.SERVER
                if event.trailers:
                    seen[side][event.stream].append((set(), event.trailers))
    for side in Side:
        plain: dict[int, list[object]] = {}
        for stream, items in sent[side].items():
            for item in items:
                if isinstance(item, tuple):
                    pseudo_fields = {pair for pair in item if pair[0][:1] == b":" and pair[0] != b":scheme"}
                    item = (pseudo_fields, tuple(pair for pair in item if pair[0][:1] != b":"))
                if not isinstance(item, int):  # resets are compared by the vectors
                    plain.setdefault(stream, []).append(item)
        if any(isinstance(event, ev.Aborted) for event in events):
            aborted = {event.stream for event in events if isinstance(event, ev.Aborted)}
            plain = {stream: items for stream, items in plain.items() if stream not in aborted}
            seen[side] = {stream: items for stream, items in seen[side].items() if stream not in aborted}
        assert seen[side] == {stream: items for stream, items in plain.items() if stream % 2}


def test_recordings_hold_what_they_are_for() -> None:
    def kinds(case: str, side: Side) -> set[int]:
        return {kind for kind, _, _, _ in frames(_raw(case, side))}

    assert 9 in kinds("recorded-nghttp-continuation", Side.CLIENT)
    assert 2 in kinds("recorded-nghttp-padding", Side.CLIENT)
    assert any(flags & 8 for _, flags, _, _ in frames(_raw("recorded-nghttp-padding", Side.CLIENT)))
    assert 5 in kinds("recorded-nghttpd-push", Side.SERVER)
    assert 3 in kinds("recorded-grpcio-concurrent", Side.CLIENT) | kinds("recorded-grpcio-concurrent", Side.SERVER)
    blocks = [block for kind, _, _, block in frames(_raw("recorded-nghttp-table-0", Side.CLIENT)) if kind == 1]
    assert b"\x20" in blocks[0][:6], "a table-size update to 0"
