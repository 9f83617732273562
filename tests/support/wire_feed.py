"""Feeding observers, and their events as lines that a person can read and a vector can hold."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from capture.wire import events as ev
from capture.wire.detect import MAX_EARLY_SERVER_BYTES, FlowObserver
from capture.wire.events import Event, Side
from capture.wire.hpack_table import MAX_TABLE_BYTES, MEMO_BYTES
from capture.wire.http1_head import MAX_HEAD_BYTES
from capture.wire.http1_head import MEMO_BYTES as HEAD_MEMO_BYTES
from capture.wire.http2 import MAX_OPEN_STREAMS
from capture.wire.http2_frames import HUNT_BYTES
from capture.wire.observer import Observer

#: Bytes that one flow may hold: see the constants. Both directions; the largest is an HTTP/2 table of tiny entries.
HELD_BOUND = (
    2 * (HUNT_BYTES + MAX_TABLE_BYTES * 6 + MEMO_BYTES + 256 * 1024 + 16_384)
    + MAX_OPEN_STREAMS * 120
    + 2 * MAX_HEAD_BYTES
    + HEAD_MEMO_BYTES
    + MAX_EARLY_SERVER_BYTES
    + 1000 * 250
)

# One thing that happens to a flow: bytes, ("eof", side), ("gap", side, count), ("close",).
Step = tuple[Any, ...]

_SIDES = {"client": Side.CLIENT, "server": Side.SERVER}


def load(path: Path) -> tuple[list[Step], list[str]]:
    """A vector -> its steps and the lines expected."""
    vector = json.loads(path.read_text())
    steps: list[Step] = []
    for step in vector["flow"]:
        if "text" in step:
            steps.append(("data", _SIDES[step["from"]], step["text"].encode("latin-1")))
        elif "base64" in step:
            steps.append(("data", _SIDES[step["from"]], base64.b64decode("".join(step["base64"]))))
        elif "eof" in step:
            steps.append(("eof", _SIDES[step["eof"]]))
        elif "gap" in step:
            steps.append(("gap", _SIDES[step["gap"]], step["bytes"]))
        else:
            steps.append(("close",))
    return steps, vector["events"]


def dump(path: Path, note: str, steps: Iterable[Step], lines: list[str]) -> None:
    """Writes a vector."""
    flow: list[dict[str, Any]] = []
    for step in steps:
        if step[0] == "data":
            side, data = step[1].name.lower(), step[2]
            if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in data):
                flow.append({"from": side, "text": data.decode("ascii")})
            else:
                text = base64.b64encode(data).decode()
                flow.append({"from": side, "base64": [text[at : at + 100] for at in range(0, len(text), 100)]})
        elif step[0] == "gap":
            flow.append({"gap": step[1].name.lower(), "bytes": step[2]})
        else:
            flow.append({step[0]: step[1].name.lower() if len(step) > 1 else True})
    path.write_text(json.dumps({"note": note, "flow": flow, "events": lines}, indent=1, ensure_ascii=True) + "\n")


def run(observer: Observer, steps: Iterable[Step]) -> list[Event]:
    """All events of a flow."""
    events: list[Event] = []
    for step in steps:
        if step[0] == "data":
            events += observer.feed(step[1], step[2])
        elif step[0] == "eof":
            events += observer.eof(step[1])
        elif step[0] == "gap":
            events += observer.gap(step[1], step[2])
        else:
            events += observer.close()
    return events


def lines_of(steps: Iterable[Step]) -> list[str]:
    """What a fresh observer makes of a flow, data coalesced."""
    return [render(event).rstrip() for event in coalesce(run(FlowObserver(), steps))]


def bytewise(steps: Iterable[Step]) -> list[Step]:
    """The same flow, one byte at a time."""
    return [
        part
        for step in steps
        for part in ([("data", step[1], bytes([b])) for b in step[2]] if step[0] == "data" else [step])
    ]


def two_way_splits(steps: list[Step]) -> Iterator[list[Step]]:
    """The same flow once per place between two bytes of one chunk, split there."""
    for at, step in enumerate(steps):
        if step[0] == "data":
            for cut in range(1, len(step[2])):
                halves = [("data", step[1], step[2][:cut]), ("data", step[1], step[2][cut:])]
                yield [*steps[:at], *halves, *steps[at + 1 :]]


def coalesce(events: Iterable[Event]) -> list[Event]:
    """Joins neighbouring data of one message, so that splits do not show."""
    result: list[Event] = []
    pending: list[bytes] = []
    for event in events:
        last = result[-1] if result else None
        if (
            isinstance(event, ev.RequestData | ev.ResponseData)
            and type(last) is type(event)
            and isinstance(last, ev.RequestData | ev.ResponseData)
            and last.stream == event.stream
        ):
            pending.append(event.data)
            continue
        if pending and isinstance(last, ev.RequestData | ev.ResponseData):
            result[-1] = type(last)(last.stream, b"".join([last.data, *pending]))
        pending = []
        result.append(event)
    last = result[-1] if result else None
    if pending and isinstance(last, ev.RequestData | ev.ResponseData):
        result[-1] = type(last)(last.stream, b"".join([last.data, *pending]))
    return result


def _fields(headers: ev.Headers) -> str:
    return "".join(f" | {name.decode('latin-1')}: {value.decode('latin-1')}" for name, value in headers)


def _data(data: bytes) -> str:
    if len(data) <= 80:
        return ascii(data.decode("latin-1"))
    return f"{len(data)} bytes {hashlib.sha256(data).hexdigest()[:16]}"


def render(event: Event) -> str:
    """One line. The first word is the stream where there is one; ``>`` is the client's, ``<`` the server's."""
    doubt = "" if getattr(event, "verified", True) else " (unverified)"
    match event:
        case ev.RequestHead():
            line = f"{event.method.decode()} {event.target.decode('latin-1')} @{event.authority.decode('latin-1')}"
            return f"{event.stream} > {line}{doubt}{_fields(event.headers)}"
        case ev.RequestData():
            return f"{event.stream} > data {_data(event.data)}"
        case ev.RequestEnd():
            return f"{event.stream} > end{doubt}{_fields(event.trailers)}"
        case ev.ResponseInfo():
            return f"{event.stream} < {event.status} interim"
        case ev.ResponseHead():
            return f"{event.stream} < {event.status}{doubt}{_fields(event.headers)}"
        case ev.ResponseData():
            return f"{event.stream} < data {_data(event.data)}"
        case ev.ResponseEnd():
            return f"{event.stream} < end{doubt}{_fields(event.trailers)}"
        case ev.Aborted():
            return f"{event.stream} aborted by {event.by.name.lower()}, code {event.code}: {event.reason}"
        case ev.Lost():
            return f"{event.stream} lost: {event.reason}"
        case ev.Missed():
            return f"missed {event.requests} {'exactly' if event.exact else 'about'}"
        case ev.Unsynced():
            return f"unsynced {event.side.name.lower()}"
        case ev.Resynced():
            return f"resynced {event.side.name.lower()}, skipped {event.skipped}"
        case ev.Upgraded():
            return f"{event.stream} upgraded: {event.protocol.decode('latin-1')}"
        case ev.Undecodable():
            return f"undecodable {event.side.name.lower()} at {event.offset}: {event.reason}"
