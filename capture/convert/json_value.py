"""JSON as TF Serving reads it: RapidJSON with kParseIterativeFlag, kParseNanAndInfFlag and kParseStopWhenDoneFlag
(util/json_tensor.cc: ParseJson).

Python's own parser differs where it matters: the first of two equal keys counts to the server, and both are there;
``Inf`` and ``-NaN`` are numbers; nesting has no bound; what follows the document is not looked at; text that is not
UTF-8 passes through; ``1e400`` is an error. RapidJSON's rules that are general knowledge, not verified against a
running server, are marked [K].

A value is: bytes (a string), int or float, bool, None, list, or :class:`Members` (an object). Nothing here recurses.
"""

from __future__ import annotations

import json
import re
from math import inf, isinf, nan
from typing import Any, Final, TypeAlias

#: A byte order mark is skipped [K].
_BOM: Final = b"\xef\xbb\xbf"
_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
_STRING: Final = re.compile(rb'"((?:[^"\\\x00-\x1f]++|\\.)*+)"', re.DOTALL)
_NUMBER: Final = re.compile(rb"-?(?:NaN|Inf(?:inity)?|(?:0|[1-9][0-9]*+)(\.[0-9]++)?([eE][+-]?[0-9]++)?)")
#: Zero times a power of ten that may be one too many (see _number).
_ZERO_TIMES: Final = re.compile(rb"0[eE]\+?[0-9]{3}")
_ESCAPE: Final = re.compile(rb"\\(?:u([0-9A-Fa-f]{4})|(.))", re.DOTALL)
_ESCAPED: Final = {
    b'"': b'"',
    b"\\": b"\\",
    b"/": b"/",
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
}
_WORDS: Final = ((b"true", True), (b"false", False), (b"null", None))
_NONFINITE: Final = {b"NaN": nan, b"Inf": inf, b"Infinity": inf}
_CONTAINER: Final = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*+[\[{]")
#: The most that an exponent may be, beside a number's fraction digits (rapidjson/reader.h: ParseNumber, maxExp).
_MAX_EXPONENT: Final = 308
#: Digits of 2**64; integers that have more are doubles whatever their value.
_UINT64_DIGITS: Final = 20


class JsonError(ValueError):
    """The document is no JSON to the server; the text is its own (rapidjson/error/en.h)."""


class Members:
    """An object: its members in their order, equal names included."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: list[tuple[bytes, Value]] = []

    def first(self, name: bytes) -> Value | Absent:
        """The value that the server finds under this name; ABSENT where there is none."""
        for key, value in self.items:
            if key == name:
                return value
        return ABSENT


_CONTAINERS: Final = {list, Members}


def _members(pairs: list[tuple[str, Any]]) -> Members:
    found = Members()
    found.items = [(key.encode(), value) for key, value in pairs]
    return found


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_members)


class Absent:
    """No such member."""

    __slots__ = ()


ABSENT: Final = Absent()

Value: TypeAlias = "bytes | int | float | bool | list[Value] | Members | None"


def parse(body: bytes) -> Value:
    """The first JSON document in ``body``. Raises JsonError."""
    # Python's own parser, in C, for what both read alike: twenty times as fast.
    if _CONTAINER.match(body) and not _ZERO_TIMES.search(body):
        try:
            text = body.removeprefix(_BOM).decode()
            return _bytes_for_text(_DECODER.raw_decode(text, _skip(body.removeprefix(_BOM), 0))[0])
        except (ValueError, RecursionError):
            pass
    return parse_exactly(body)


def _bytes_for_text(value: Value) -> Value:
    """The same with strings as bytes. Raises ValueError for what the server reads otherwise, or not: half a surrogate
    pair, an integer of more than 64 bits, an infinite number."""
    waiting: list[Any] = [value]
    while waiting:
        one = waiting.pop()
        values = [part for _, part in one.items] if isinstance(one, Members) else one
        kinds = set(map(type, values))
        if int in kinds:
            integers = values if len(kinds) == 1 else [part for part in values if type(part) is int]
            if min(integers) < -(1 << 63) or max(integers) >= 1 << 64:
                raise ValueError
        if float in kinds and (inf in values or -inf in values):
            raise ValueError
        if str in kinds:
            values[:] = [part.encode() if isinstance(part, str) else part for part in values]
            if isinstance(one, Members):
                one.items = [(key, part) for (key, _), part in zip(one.items, values, strict=True)]
        if kinds & _CONTAINERS:
            waiting += [part for part in values if isinstance(part, (list, Members))]
    return value


def parse_exactly(body: bytes) -> Value:
    """The same by RapidJSON's rules throughout. Raises JsonError."""
    if not body:
        raise JsonError("The document is empty")
    at = _skip(body, len(_BOM) if body.startswith(_BOM) else 0)
    if at == len(body):
        raise JsonError(f"The document is empty. at offset: {at}")
    # Each container that is open, and for an object the name whose value is being read.
    open_containers: list[tuple[list[Value] | Members, bytes]] = []
    while True:
        value, at = _begin(body, at)
        if isinstance(value, (list, Members)):
            at = _skip(body, at)
            closing = b"]" if isinstance(value, list) else b"}"
            if body[at : at + 1] == closing:
                at += 1
            else:
                name = b""
                if isinstance(value, Members):
                    name, at = _name(body, at)
                open_containers.append((value, name))
                continue
        # The value is complete: so may be what holds it.
        while open_containers:
            container, name = open_containers[-1]
            at = _skip(body, at)
            if isinstance(container, Members):
                container.items.append((name, value))
                if body[at : at + 1] == b",":
                    name, at = _name(body, _skip(body, at + 1))
                    open_containers[-1] = (container, name)
                    break
                if body[at : at + 1] != b"}":
                    raise _error("Missing a comma or } after an object member.", at)
            else:
                container.append(value)
                if body[at : at + 1] == b",":
                    at = _skip(body, at + 1)
                    break
                if body[at : at + 1] != b"]":
                    raise _error("Missing a comma or ] after an array element.", at)
            open_containers.pop()
            value = container
            at += 1
        else:
            return value


def _error(text: str, at: int) -> JsonError:
    return JsonError(f"{text} at offset: {at}")


def _skip(body: bytes, at: int) -> int:
    match = _SPACE.match(body, at)
    return at if match is None else match.end()


def _begin(body: bytes, at: int) -> tuple[Value, int]:
    """A scalar, or an empty container of which only the opening bracket is read; and the offset behind it."""
    first = body[at : at + 1]
    if first == b"[":
        return [], at + 1
    if first == b"{":
        return Members(), at + 1
    if first == b'"':
        return _string(body, at)
    if match := _NUMBER.match(body, at):
        return _number(match, at), match.end()
    for word, value in _WORDS:
        if body.startswith(word, at):
            return value, at + len(word)
    raise _error("Invalid value.", at)


def _name(body: bytes, at: int) -> tuple[bytes, int]:
    """A member's name, and the offset at which its value begins."""
    if body[at : at + 1] != b'"':
        raise _error("Missing a name for object member.", at)
    name, at = _string(body, at)
    at = _skip(body, at)
    if body[at : at + 1] != b":":
        raise _error("Missing a colon after a name of object member.", at)
    return name, _skip(body, at + 1)


def _string(body: bytes, at: int) -> tuple[bytes, int]:
    match = _STRING.match(body, at)
    if match is None:
        raise _error("Missing a closing quotation mark in string.", at)
    try:
        return unescape(match[1]), match.end()
    except JsonError as error:
        raise _error(str(error), at) from None


def unescape(raw: bytes) -> bytes:
    """What a string between its quotes means, in UTF-8. Raises JsonError."""
    if b"\\" not in raw:
        return raw
    parts = []
    at = 0
    while (found := raw.find(b"\\", at)) >= 0:
        parts.append(raw[at:found])
        match = _ESCAPE.match(raw, found)
        if match is None or (match[1] is None and match[2] == b"u"):
            raise JsonError("Incorrect hex digit after \\u escape in string.")
        at = match.end()
        if match[1] is None:
            if match[2] not in _ESCAPED:
                raise JsonError("Invalid escape character in string.")
            parts.append(_ESCAPED[match[2]])
            continue
        code = int(match[1], 16)
        if 0xD800 <= code <= 0xDFFF:
            low = _ESCAPE.match(raw, at)
            number = int(low[1], 16) if low is not None and low[1] is not None else 0
            if low is None or code > 0xDBFF or not 0xDC00 <= number <= 0xDFFF:
                raise JsonError("The surrogate pair in string is invalid.")
            at = low.end()
            code = 0x10000 + ((code - 0xD800) << 10) + (number - 0xDC00)
        parts.append(chr(code).encode())
    parts.append(raw[at:])
    return b"".join(parts)


def _number(match: re.Match[bytes], at: int) -> int | float:
    """An integer where the literal has neither fraction nor exponent and fits 64 bits, else a double."""
    text = match[0]
    digits = text.removeprefix(b"-")
    if digits in _NONFINITE:
        return -_NONFINITE[digits] if text is not digits else _NONFINITE[digits]
    behind = match.string[match.end() : match.end() + 1]
    if match[1] is None and match[2] is None:
        if behind == b".":
            raise _error("Miss fraction part in number.", match.end())
        if behind in (b"e", b"E"):
            raise _error("Miss exponent in number.", match.end())
        if len(digits) <= _UINT64_DIGITS:
            number = int(text)
            if -(1 << 63) <= number < 1 << 64:
                return number
    elif match[2] is None and behind in (b"e", b"E"):
        raise _error("Miss exponent in number.", match.end())
    value = float(text)
    # The exponent is looked at whatever it multiplies: 0e309 is an error, 0.0e309 is not.
    if isinf(value) or (not value and match[2] is not None and _exceeds(match[2], len(match[1] or b".") - 1)):
        raise _error("Number too big to be stored in double.", at)
    return value


def _exceeds(exponent: bytes, fraction_digits: int) -> bool:
    digits = exponent[1:].removeprefix(b"+").lstrip(b"0")
    return digits[:1] != b"-" and (len(digits) > 9 or int(digits or b"0") > _MAX_EXPONENT + fraction_digits)
