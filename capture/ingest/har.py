"""HTTP archives (HAR 1.2) as browsers and mitmproxy write them. Pure.

A body that is no text is base64 where the writer says so (``encoding``); else it was decoded by UTF-8 or, byte by byte,
by Latin-1, and ``bodySize`` tells which. One that is not whole, by that size, is not read: a shortened request is none.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64decode
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from capture.ingest.lines import seconds
from capture.ingest.recorded import Recorded, Unread

#: The content coding that is none.
_PLAIN: Final = "identity"


class _Named(msgspec.Struct):
    name: str
    value: str = ""


class _Post(msgspec.Struct):
    text: str = ""
    encoding: str = ""


class _Content(msgspec.Struct):
    text: str = ""
    encoding: str = ""


class _Request(msgspec.Struct, rename="camel"):
    method: str
    url: str
    headers: list[_Named] = []
    post_data: _Post | None = None
    body_size: int = -1


class _Response(msgspec.Struct):
    status: int = 0
    headers: list[_Named] = []
    content: _Content = msgspec.field(default_factory=_Content)


class _Entry(msgspec.Struct, rename="camel"):
    request: _Request
    response: _Response = msgspec.field(default_factory=_Response)
    started_date_time: str = ""


def read_har(data: bytes) -> Iterator[Recorded | Unread]:
    """Each entry, in the order of the file."""
    try:
        # Not msgspec: what was no UTF-8 may stand there as half a surrogate pair.
        entries = json.loads(data)["log"]["entries"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        yield Unread("the file", f"is no HAR: {type(error).__name__}: {error}")
        return
    if not isinstance(entries, list):
        yield Unread("the file", "is no HAR: log.entries is no list")
        return
    for number, entry in enumerate(entries):
        yield _entry(f"log.entries[{number}]", entry)


def _entry(place: str, data: Any) -> Recorded | Unread:
    try:
        entry = msgspec.convert(data, _Entry)
    except msgspec.ValidationError as error:
        return Unread(place, f"is no entry of a HAR: {error}")
    request, response = entry.request, entry.response
    headers = _headers(request.headers)
    try:
        url = urlsplit(request.url)
        body = _body(request.post_data, request.body_size, headers)
        content = _content(response.content)
    except UnicodeEncodeError:
        return Unread(place, "its text is no Unicode")
    except ValueError as error:
        return Unread(place, str(error))
    answered = _headers(response.headers)
    grpc_status = answered.get("grpc-status", "")
    return Recorded(
        place=place,
        method=request.method.upper(),
        target=(url.path or "/") + (f"?{url.query}" if url.query else ""),
        headers=headers,
        body=body,
        status=response.status if response.status > 0 else None,
        grpc_status=int(grpc_status) if re.fullmatch("[0-9]{1,2}", grpc_status) else None,
        response=content,
        at=seconds(entry.started_date_time) or 0.0,
    )


def _headers(named: list[_Named]) -> dict[str, str]:
    return {one.name.lower(): one.value for one in named if not one.name.startswith(":")}


def _body(post: _Post | None, size: int, headers: dict[str, str]) -> bytes:
    """The body as it was sent. Raises ValueError where that cannot be told, and takes a content coding off
    ``headers`` that the writer took off the text."""
    if post is None:
        if size > 0:
            raise ValueError(f"its body of {size} bytes was not recorded")
        return b""
    if post.encoding == "base64":
        try:
            body = b64decode(post.text, validate=True)
        except binascii.Error:
            raise ValueError("postData.text is not base64") from None
        return _whole(body, size)
    if post.encoding:
        raise ValueError("postData.encoding is not base64")
    if headers.get("content-encoding", _PLAIN) != _PLAIN:
        del headers["content-encoding"]
        size = -1
    body = post.text.encode("utf-8", "surrogateescape")
    if len(body) != size > 0 and max(post.text, default="") <= "\xff":
        # Bytes that are no text, each as the character of its number.
        body = post.text.encode("latin-1")
    return _whole(body, size)


def _whole(body: bytes, size: int) -> bytes:
    if len(body) != size > 0:
        raise ValueError(f"its body was not recorded whole: {len(body)} of {size} bytes")
    return body


def _content(content: _Content) -> bytes:
    """The response's body as far as it is told: dialects look into it for success and version."""
    if content.encoding == "base64":
        try:
            return b64decode(content.text, validate=True)
        except binascii.Error:
            return b""
    return content.text.encode("utf-8", "surrogateescape")
