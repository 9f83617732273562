"""HTTP/1.1 heads: strict parsing (RFC 9112), and a memo of heads seen before.

A head that a proxy and a server could read in two ways is refused, never guessed at: a wrong message border would put
one client's bytes into another's request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from capture.wire.events import Headers

# One head, in bytes with its line ends: nginx allows 32 KiB, Node 16 KiB, h11 64 KiB. More is an attack or no HTTP.
MAX_HEAD_BYTES = 64 * 1024
# Fields in one head or trailer section: Apache and Envoy stop at 100; a margin for chatty meshes.
MAX_FIELDS = 256
# Raw bytes of heads remembered by one memo, shared by any number of flows. A keep-alive client repeats its head; 512
# heads of 500 bytes cover a busy sidecar.
MEMO_BYTES = 256 * 1024
# What remembering one head costs beside its bytes: parsed fields are about three times as large, plus the objects.
_MEMO_FACTOR, _MEMO_ENTRY = 4, 600

LENGTH, CHUNKED, UNTIL_CLOSE = 0, 1, 2

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e\x80-\xff]+) HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_BARE_CR = re.compile(rb"\r(?!\n)")
# Control characters other than HTAB and the line ends, which are checked by themselves (RFC 9110 §5.5).
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# 18 digits: beyond any real length and still a 64-bit integer.
_DIGITS = re.compile(rb"[0-9]{1,18}")


@dataclass(slots=True)
class RequestLine:
    """A parsed request head. ``framing`` is LENGTH or CHUNKED; ``length`` counts body bytes (LENGTH only)."""

    method: bytes
    target: bytes
    authority: bytes
    headers: Headers
    framing: int
    length: int


@dataclass(slots=True)
class StatusLine:
    """A parsed response head. ``framing`` is what the fields say; status and method can overrule it (§6.3)."""

    status: int
    headers: Headers
    framing: int
    length: int


def find_bare_lf(data: bytes | bytearray, start: int = 0, end: int | None = None) -> int:
    """Index of the first LF without a CR before it, or -1. ``start`` > 0 looks behind itself."""
    match = _BARE_LF.search(data, start, len(data) if end is None else end)
    # The look-behind of a search that starts at `start` does not see the byte before it.
    while match and match.start() == start and start > 0 and data[start - 1] == 0x0D:
        match = _BARE_LF.search(data, start + 1, len(data) if end is None else end)
        start += 1
    return match.start() if match else -1


def parse_fields(lines: list[bytes]) -> Headers | str:
    """Field lines without line ends -> headers, or the reason why they are refused (RFC 9112 §5)."""
    if len(lines) > MAX_FIELDS:
        return "too many header fields"
    headers: list[tuple[bytes, bytes]] = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            if line[:1] in (b" ", b"\t"):
                return "obs-fold"
            return "white space before colon" if name[-1:] in (b" ", b"\t") else "bad header line"
        headers.append((name.lower(), value.strip(b" \t")))
    return tuple(headers)


def split_lines(raw: bytes) -> list[bytes] | str:
    """A section that ends in an empty line -> its lines, or the reason why its bytes are refused."""
    if _BARE_LF.search(raw):
        return "bare LF"
    if _BARE_CR.search(raw):
        return "bare CR"
    if _CONTROL.search(raw):
        return "control character in head"
    return raw[:-4].split(b"\r\n") if len(raw) > 4 else []


def _framing(headers: Headers, minor: bytes, otherwise: int) -> tuple[int, int] | str:
    """(framing, length) by RFC 9112 §6.3, before status and method have their say."""
    lengths: set[bytes] = set()
    codings: list[bytes] = []
    for name, value in headers:
        if name == b"content-length":
            lengths.update(part.strip(b" \t") for part in value.split(b","))
        elif name == b"transfer-encoding":
            codings.extend(part.strip(b" \t").lower() for part in value.split(b","))
    if codings:
        if lengths:
            return "content-length and transfer-encoding"
        if minor == b"0":
            return "transfer-encoding in HTTP/1.0"
        # Other codings are legal but no client or server of this field uses them, and proxies disagree about them.
        return (CHUNKED, 0) if codings == [b"chunked"] else "unknown transfer coding"
    if lengths:
        if len(lengths) > 1:
            return "conflicting content-length"
        (only,) = lengths
        return (LENGTH, int(only)) if _DIGITS.fullmatch(only) else "bad content-length"
    return otherwise, 0


def parse_request(raw: bytes) -> RequestLine | str:
    """A head with its empty line -> its meaning, or the reason why it is refused."""
    lines = split_lines(raw)
    if isinstance(lines, str):
        return lines
    match = _REQUEST_LINE.fullmatch(lines[0]) if lines else None
    if not match:
        return "bad request line"
    headers = parse_fields(lines[1:])
    if isinstance(headers, str):
        return headers
    framing = _framing(headers, match[3], LENGTH)
    if isinstance(framing, str):
        return framing
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1:
        return "several host fields"
    return RequestLine(match[1], match[2], hosts[0] if hosts else b"", headers, *framing)


def parse_response(raw: bytes) -> StatusLine | str:
    """A head with its empty line -> its meaning, or the reason why it is refused."""
    lines = split_lines(raw)
    if isinstance(lines, str):
        return lines
    match = _STATUS_LINE.fullmatch(lines[0]) if lines else None
    if not match:
        return "bad status line"
    headers = parse_fields(lines[1:])
    if isinstance(headers, str):
        return headers
    framing = _framing(headers, match[1], UNTIL_CLOSE)
    if isinstance(framing, str):
        return framing
    return StatusLine(int(match[2]), headers, *framing)


class HeadMemo:
    """Heads seen before, by their bytes: looking one up costs a tenth of parsing it. One may serve many flows, since
    an HTTP/1.1 head means the same on each. Holds at most ``max_bytes``; full, it starts again."""

    __slots__ = ("_max", "_requests", "_responses", "_size")

    def __init__(self, max_bytes: int = MEMO_BYTES) -> None:
        self._max = max_bytes
        self._size = 0
        self._requests: dict[bytes, RequestLine] = {}
        self._responses: dict[bytes, StatusLine] = {}

    def request(self, raw: bytes) -> RequestLine | str:
        """As ``parse_request``."""
        known = self._requests.get(raw)
        if known is not None:
            return known
        parsed = parse_request(raw)
        if not isinstance(parsed, str) and self._room(len(raw)):
            self._requests[raw] = parsed
        return parsed

    def response(self, raw: bytes) -> StatusLine | str:
        """As ``parse_response``."""
        known = self._responses.get(raw)
        if known is not None:
            return known
        parsed = parse_response(raw)
        if not isinstance(parsed, str) and self._room(len(raw)):
            self._responses[raw] = parsed
        return parsed

    def _room(self, length: int) -> bool:
        cost = length * _MEMO_FACTOR + _MEMO_ENTRY
        if cost > self._max // 8:  # a giant head must not push out the useful ones
            return False
        self._size += cost
        if self._size > self._max:
            self._requests.clear()
            self._responses.clear()
            self._size = cost
        return True

    def held_bytes(self) -> int:
        """Upper estimate in bytes."""
        return self._size
