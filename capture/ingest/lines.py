"""JSON lines of requests: what ``capture export --format jsonl`` writes, and lines of other programs. Pure.

A line of another program is an object with ``path`` and ``body``; the rest may be missing, and what is not known is
passed over. The form is in docs/formats.md.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from datetime import datetime
from typing import Final

import msgspec

from capture.dialects.eas import EasDialect
from capture.dialects.table import BY_NAME, stored_route
from capture.export.jsonl import LINE_VERSION, Line
from capture.ingest.recorded import Recorded, Unread, grpc_message, grpc_target
from capture.store.base import UNKNOWN_VERSION

#: The first bytes of a path of gRPC, whose content type need not be told.
_GRPC_PATH: Final = "/tensorflow.serving."


class _Kind(msgspec.Struct):
    """Enough of a line to tell what it is."""

    warmtap_jsonl: int | None = None
    path: str | None = None


class _Other(msgspec.Struct):
    """A line of another program."""

    path: str
    body: msgspec.Raw = msgspec.Raw(b"")
    body_base64: str = ""
    method: str = "POST"
    headers: dict[str, str] = {}
    content_type: str = ""
    user_agent: str = ""
    status: int | None = None
    grpc_status: int | None = None
    time: float | str = 0.0
    version: str | int = ""
    service: str = ""
    dialect: str = ""


def read_line(number: int, raw: bytes) -> Recorded | Unread | None:
    """One line, without its end; ``number`` counts from 1. None for an empty one."""
    place = f"line {number}"
    if not raw.strip():
        return None
    try:
        kind = msgspec.json.decode(raw, type=_Kind)
        if kind.warmtap_jsonl is not None:
            return _own(place, raw, kind.warmtap_jsonl)
        if kind.path is None:
            return Unread(place, "has neither path and body nor warmtap_jsonl; docs/formats.md says what a line holds")
        return _other(place, msgspec.json.decode(raw, type=_Other))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Unread(place, f"is no JSON object of a request: {error}")


def _own(place: str, raw: bytes, form: int) -> Recorded | Unread:
    if form > LINE_VERSION:
        return Unread(place, f"was written by a newer warmtap (form {form}); upgrade warmtap")
    line = msgspec.json.decode(raw, type=Line)
    route = stored_route(line.family, line.model, line.path, line.method)
    dialect = BY_NAME.get(line.dialect) or (None if route is None else route.dialect)
    if dialect is None or route is None:
        return Unread(place, "is of a dialect that this warmtap does not know; upgrade warmtap")
    sent, proven = line.body if line.wire_body is None else line.wire_body, line.outcome == "proven"
    grpc = dialect.framing == "grpc"
    headers = dict(line.headers)
    if grpc:
        if not headers.get("content-type", "").startswith("application/grpc"):
            headers["content-type"] = "application/grpc"
        sent = grpc_message(sent, compressed=line.wire_body is not None)
    return Recorded(
        place=place,
        target=grpc_target(line.method) if grpc else line.path or "/",
        headers=headers,
        body=sent,
        status=200 if proven else None,
        # Of the answer only what became of it is told.
        response=dialect.success if proven and isinstance(dialect, EasDialect) else b"",
        grpc_status=0 if proven and grpc else None,
        at=line.captured_at,
        dialect=dialect.name,
        # A path that does not name the service was sent to a custom URL. Where it does, the same comes of it.
        service="" if grpc or not line.family.startswith("eas") else line.model,
        version="" if line.version == UNKNOWN_VERSION else line.version,
        # An older warmtap wrote how many calls, and not how many of them succeeded: the one that is here did.
        calls=max(1, line.proven) if proven else max(1, line.hits),
        failed=max(0, line.hits - max(1, line.proven)) if proven else 0,
    )


def _other(place: str, line: _Other) -> Recorded | Unread:
    headers = {name.lower(): value for name, value in line.headers.items()}
    for name, value in (("content-type", line.content_type), ("user-agent", line.user_agent)):
        if value:
            headers[name] = value
    if line.path.startswith(_GRPC_PATH):
        headers.setdefault("content-type", "application/grpc")
    try:
        body = b64decode(line.body_base64, validate=True) if line.body_base64 else _body(line.body)
    except (binascii.Error, ValueError):
        return Unread(place, "body_base64 is not base64")
    at = seconds(line.time)
    if at is None:
        return Unread(place, "time is neither seconds since 1970 nor a date as in 2026-11-24T12:00:00Z")
    if line.dialect and line.dialect not in BY_NAME:
        return Unread(place, f"dialect is none of {', '.join(BY_NAME)}")
    grpc = headers.get("content-type", "").startswith("application/grpc")
    return Recorded(
        place=place,
        method=line.method.upper(),
        target=line.path,
        headers=headers,
        body=grpc_message(body) if grpc else body,
        status=line.status,
        grpc_status=line.grpc_status,
        at=at,
        dialect=line.dialect,
        service=line.service,
        version=str(line.version),
    )


def _body(raw: msgspec.Raw) -> bytes:
    """A text is the body; any other value is the body as it is written there, JSON."""
    written = bytes(raw)
    if written[:1] == b'"':
        return msgspec.json.decode(written, type=str).encode()
    return b"" if written == b"null" else written


def seconds(time: float | str) -> float | None:
    """Seconds since 1970, of the same or of a date in ISO 8601 (UTC where it names no zone). None: it is neither."""
    if not isinstance(time, str):
        return time
    try:
        found = datetime.fromisoformat(time)
    except ValueError:
        return None
    return (found if found.tzinfo else datetime.fromisoformat(f"{time}+00:00")).timestamp()
