"""EAS's warm-up data and JSON lines read for people: files that warmtap wrote, and others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from capture.dialects.base import Route, Unreadable
from capture.dialects.table import EAS, stored_route
from capture.export.eas_txt import TEXT, text_fault
from capture.export.entries import Contents, Entry, Request, Severity, as_sent
from capture.export.jsonl import LINE_VERSION, Line
from capture.signature import Call

#: The kind of service that a .bin is for where nobody says.
_USUAL: Final = "eas-tensorflow"
#: Dialects whose requests say which outputs they want.
_FILTERED: Final = frozenset({"eas-tensorflow", "eas-pytorch"})
#: Bytes that a compressed file may unpack to.
MAX_UNPACKED_BYTES: Final = 1 << 30


def read_eas_bin(files: Iterable[tuple[str, bytes]], service: str = "", dialect: str = "") -> Contents:
    """Requests to a service of this dialect, without one to the TensorFlow processor: (name, bytes) of each file."""
    spoken = EAS[dialect or _USUAL]
    contents = Contents("eas-bin")
    for number, (name, body) in enumerate(files, 1):
        entry = Entry(number, f"record {number} at byte 0 of {name}", "eas request", len(body), _hash(body))
        entry.request = Request(body)
        contents.entries.append(entry)
        try:
            call, unpacked = spoken.read_sent(Route(spoken, "predict", service, ""), body, MAX_UNPACKED_BYTES)
        except Unreadable as error:
            entry.remark(
                Severity.ERROR,
                f"{error}; a .bin is the body of one request to a service, read here as {spoken.name}; if it is for"
                " another kind, say --dialect",
            )
            continue
        entry.take(call)
        if unpacked is not body:
            entry.remark(Severity.NOTE, f"is compressed; unpacked it has {len(unpacked)} bytes")
        if spoken.name in _FILTERED and call.signature.outputs is None:
            entry.remark(Severity.NOTE, "has an empty output filter: fetches all outputs of the model that is served")
    if len(contents.entries) > 1:
        contents.remark(
            Severity.NOTE,
            f"{len(contents.entries)} files, and EAS documents one for a service (warm_up_data_path): what the others"
            " would warm is built by its first request",
        )
    contents.remark_repetitions()
    return contents


def read_eas_txt(data: bytes, service: str = "", dialect: str = "") -> Contents:
    """Requests of text services: a line each. Their signatures are told where the dialect says that it is one."""
    contents = Contents("eas-txt")
    for number, begin, line in _lines(data):
        entry = Entry(number, f"record {number} at byte {begin}", "text request", len(line), _hash(line))
        entry.request = Request(line)
        contents.entries.append(entry)
        if line.endswith(b"\r"):
            entry.remark(Severity.WARNING, "ends in a carriage return, which may be sent as part of the request")
        if wrong := text_fault(line.removesuffix(b"\r")):
            severity = Severity.WARNING if wrong == "is empty" else Severity.ERROR
            entry.remark(severity, f"{wrong}; a .txt holds one request of UTF-8 text in each line")
        elif dialect == TEXT.name:
            entry.take(TEXT.read(Route(TEXT, "predict", service, ""), line))
    contents.remark_repetitions()
    if not data:
        contents.remark(Severity.WARNING, "no request: nothing is warmed up")
    return contents


def read_jsonl(data: bytes) -> Contents:
    """Lines as ``capture export --format jsonl`` writes them."""
    contents = Contents("jsonl")
    for number, begin, raw in _lines(data):
        place = f"record {number} at byte {begin}"
        try:
            line = msgspec.json.decode(raw, type=Line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            contents.broken = f"{place}: not a line of warmtap's JSON lines ({error}); export it anew"
            break
        if line.warmtap_jsonl > LINE_VERSION:
            contents.broken = f"{place}: written by a newer warmtap (form {line.warmtap_jsonl}); upgrade warmtap"
            break
        entry = Entry(number, place, line.dialect or line.family, len(line.body), line.signature)
        entry.version, entry.hits, entry.outcome = line.version, line.hits, line.outcome
        contents.entries.append(entry)
        try:
            call = _read(line.family, line.model, line.body, line.path, line.method)
            entry.take(call)
            entry.request = as_sent(call.signature, line.body, line.wire_body, line.path, line.headers)
        except Unreadable as error:
            entry.remark(Severity.ERROR, f"its body cannot be read ({error}); export it anew")
        if entry.signature is not None and entry.identity != line.signature:
            entry.remark(Severity.WARNING, f"says {line.signature}, but its body is {entry.identity}: it was edited")
    if not data:
        contents.remark(Severity.WARNING, "no request in it")
    contents.remark_repetitions()
    return contents


def _read(family: str, model: str, body: bytes, path: str = "", method: str = "") -> Call:
    """Raises Unreadable."""
    route = stored_route(family, model, path, method)
    if route is None:
        raise Unreadable(f"no dialect of {family}")
    return route.dialect.read(route, body)


def _lines(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, byte at which it begins, line without its end)."""
    begin = 0
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        yield number, begin, line
        begin += len(line) + 1


def _hash(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()[:15]}"
