"""The outline of a REST request's body: which keys it has, what it names, how its tensors are shaped.

The capture worker sees every body, and a body of numbers parsed into objects takes twenty times its bytes; so nothing
is made of values. msgspec passes over them where a body is strict JSON with each key once, which nearly all are; what
is not is looked through by regular expressions that run in C, hold nothing and take time in proportion to the bytes.
What the server would refuse is not noticed here: its answer says so. Of a body that the server takes, names and
signature are exactly what it finds (the first of equal keys counts, bytes behind the document do not:
util/json_tensor.cc).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from capture.convert.json_value import JsonError, unescape
from capture.dialects.base import Unreadable

#: Pseudo dtypes of what JSON shows of a tensor; the model knows the real one. Names are in signature.DTYPES.
NUMBER, TEXT, BOOL, UNKNOWN = -1, -2, -3, -4
#: A larger body is not handed to msgspec, which would take a copy of its values.
MAX_COPIED_BYTES: Final = 4 << 20
#: Elements of a list that are made objects of (some 80 bytes each) to count them, where their brackets do not tell the
#: number. The size of a longer list is shown as -1.
MAX_COUNTED: Final = 4096
#: Containers within containers that one expression passes over. Tensors have some six.
_DEPTH: Final = 40
#: Beyond that depth each bracket costs a step of Python; so many bytes of such a value are looked through.
MAX_DEEP_BYTES: Final = 1 << 18
#: Dimensions of a tensor that are shown. Real ones have some six.
MAX_SHOWN_RANK: Final = 8
#: Keys of one object that are looked at.
MAX_KEYS: Final = 10_000

_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'


def _nested(depth: int) -> bytes:
    inside = rb'(?:[^\[\]{}"]++|' + _STRING + rb")*+"
    for _ in range(depth):
        inside = rb'(?:[^\[\]{}"]++|' + _STRING + rb"|[\[{]" + inside + rb"[\]}])*+"
    return rb"[\[{]" + inside + rb"[\]}]"


_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
_VALUE: Final = re.compile(rb'(?s:[^\s\[\]{},:"]++|' + _nested(_DEPTH) + rb")")
_KEY: Final = re.compile(rb'[ \t\r\n]*+"([^"\\]*+(?:\\.[^"\\]*+)*+)"[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_NEXT: Final = re.compile(rb"[ \t\r\n]*+([,}\]])[ \t\r\n]*+")
_TEXT: Final = re.compile(_STRING, re.DOTALL)
_MARK: Final = re.compile(rb'[\[\]{}"]')
_BOM: Final = b"\xef\xbb\xbf"
_KEYS: Final = ("signature_name", "instances", "inputs", "examples")
_QUOTED: Final = {name: f'"{name}"'.encode() for name in _KEYS}
#: Letters and the underscore as escapes: a key may hide behind them.
_HIDDEN: Final = (b"\\u005", b"\\u006", b"\\u007")


class Tensor(NamedTuple):
    """One input as the body shows it; ``name`` is empty for the only input of a signature, which needs none. ``shape``
    has -1 for a dimension that was not counted, and is None beyond MAX_SHOWN_RANK."""

    name: str
    kind: int
    shape: tuple[int, ...] | None


class Outline(NamedTuple):
    """``form`` is ``row`` (instances), ``column`` (inputs) or ``examples``, of which ``examples`` is the number.
    ``named`` is False where the one tensor has no name."""

    form: str
    signature_name: str
    tensors: tuple[Tensor, ...]
    examples: int = 0
    named: bool = True


class _Span(NamedTuple):
    """A value: ``data[start:end]``."""

    data: bytes
    start: int
    end: int

    @property
    def first(self) -> bytes:
        """The byte that tells what it is."""
        return self.data[self.start : self.start + 1]


class _Top(msgspec.Struct):
    """A body, each value left as it is."""

    signature_name: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    instances: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    inputs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    examples: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_BODY: Final = msgspec.json.Decoder(_Top)
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_REFUSED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def scan_predict(body: bytes) -> Outline:
    """The outline of the body of a predict call. Raises Unreadable, also for what the server is sure to refuse."""
    found = _top(body)
    signature_name = _signature_name(found)
    instances, inputs = found.get("instances"), found.get("inputs")
    if instances is not None:
        if inputs is not None:
            raise Unreadable("both instances and inputs")
        return Outline("row", signature_name, *_row(instances))
    if inputs is None:
        raise Unreadable("neither instances nor inputs")
    return Outline("column", signature_name, *_column(inputs))


def scan_examples(body: bytes) -> Outline:
    """The outline of the body of a classify or regress call. Raises Unreadable."""
    found = _top(body)
    examples = found.get("examples")
    if examples is None or examples.first != b"[":
        raise Unreadable("no list of examples")
    count, first = _elements(examples)
    if first is None:
        raise Unreadable("no examples")
    return Outline("examples", _signature_name(found), (), count)


def input_texts(body: bytes, name: str, most: int) -> list[bytes] | None:
    """The JSON of a predict call's input: one text in column format, one for each instance in row format. None where an
    instance lacks it, or there are more than ``most``. Raises Unreadable."""
    found = _top(body)
    instances, inputs = found.get("instances"), found.get("inputs")
    holders = [one for one in (inputs,) if one is not None]
    if instances is not None:
        holders = _first_elements(instances, most + 1)
    texts = []
    for holder in holders:
        # A name ends at a NUL, as in an instance.
        named = {key.partition(b"\0")[0]: value for key, value in reversed(_named(holder) or [])}
        value = named.get(name.encode("utf-8", "replace"))
        if value is None:
            return None
        texts.append(value.data[value.start : value.end])
    return texts if 0 < len(texts) <= most else None


def _signature_name(found: dict[str, _Span]) -> str:
    value = found.get("signature_name")
    if value is None:
        return ""
    if value.first != b'"':
        raise Unreadable("signature_name is no string")
    return _name(_text(value.data[value.start + 1 : value.end - 1]))


def _row(instances: _Span) -> tuple[tuple[Tensor, ...], int, bool]:
    if instances.first != b"[":
        raise Unreadable("instances are no list")
    count, first = _elements(instances)
    if first is None:
        raise Unreadable("no instances")
    named = _named(first)
    if named is None:
        kind, shape = _shape(first, MAX_SHOWN_RANK - 1)
        return (Tensor("", kind, None if shape is None else (count, *shape)),), 0, False
    tensors = {}
    for key, value in named:
        kind, shape = _shape(value, MAX_SHOWN_RANK - 1)
        # A name ends at a NUL: the server reads it as a C string.
        name = _name(key.partition(b"\0")[0])
        tensors[name] = Tensor(name, kind, None if shape is None else (count, *shape))
    return tuple(tensors.values()), 0, True


def _column(inputs: _Span) -> tuple[tuple[Tensor, ...], int, bool]:
    named = _named(inputs)
    if named is None:
        return (Tensor("", *_shape(inputs, MAX_SHOWN_RANK)),), 0, False
    return tuple(Tensor(_name(key), *_shape(value, MAX_SHOWN_RANK)) for key, value in named), 0, True


def _name(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _named(value: _Span) -> list[tuple[bytes, _Span]] | None:
    """The members of an object, of equal keys the first; None where it is none, or base64 data: ``{"b64": "..."}`` and
    nothing else. Raises Unreadable for an empty one, of which no tensor can be made."""
    if value.first != b"{":
        return None
    members = _members(value)
    if not members:
        raise Unreadable("no inputs")
    if len(members) == 1 and members[0][0] == b"b64" and members[0][1].first == b'"':
        # Of one member, that is: a second "b64" makes it an object like others.
        return None if _walk(value)[1] == 1 else members
    return members


def _shape(value: _Span, most: int) -> tuple[int, tuple[int, ...] | None]:
    """(kind, shape) of a tensor's value: as the server does, along the first elements."""
    shape: list[int] = []
    while value.first == b"[":
        if len(shape) == most:
            return UNKNOWN, None
        count, first = _elements(value)
        shape.append(count)
        if first is None:
            return UNKNOWN, tuple(shape)
        value = first
    return _KINDS.get(value.first, NUMBER), tuple(shape)


_KINDS: Final = {b'"': TEXT, b"{": TEXT, b"t": BOOL, b"f": BOOL, b"n": UNKNOWN}


# --- the two ways to look into a value --------------------------------------------------------------------------------


def _top(body: bytes) -> dict[str, _Span]:
    """The first value under each key that counts."""
    if len(body) <= MAX_COPIED_BYTES:
        try:
            top = _BODY.decode(body)
        except _REFUSED:
            pass
        else:
            raws = ((name, getattr(top, name)) for name in _KEYS)
            found = {name: raw for name, raw in raws if raw is not msgspec.UNSET}
            if _once(body, found):
                return {name: _span(raw) for name, raw in found.items()}
    at = _skip(body, len(_BOM) if body.startswith(_BOM) else 0)
    if body[at : at + 1] != b"{":
        raise Unreadable("not a JSON object")
    first: dict[str, _Span] = {}
    for key, value in _walk(_Span(body, at, len(body)))[0]:
        first.setdefault(_name(key), value)
    return first


def _once(body: bytes, found: Iterable[str]) -> bool:
    """Whether none of these keys can be there twice, however it is written: msgspec finds the last one."""
    if b"\\" in body and any(one in body for one in _HIDDEN):
        return False
    return all(body.count(_QUOTED[name]) == 1 for name in found)


def _span(raw: msgspec.Raw) -> _Span:
    data = bytes(raw)
    return _Span(data, 0, len(data))


def _members(value: _Span) -> list[tuple[bytes, _Span]]:
    """The members of an object, of equal keys the first."""
    data, start, end = value
    if end - start <= MAX_COPIED_BYTES and data.count(b":", start, end) <= MAX_KEYS:
        try:
            found = _OBJECT.decode(data[start:end])
        except _REFUSED:
            pass
        else:
            # Of equal keys the server takes one or the other, by the form: for the names that is the same.
            return [(key.encode(), _span(raw)) for key, raw in found.items()]
    first: dict[bytes, _Span] = {}
    for key, span in _walk(value)[0]:
        first.setdefault(key, span)
    return list(first.items())


def _elements(value: _Span) -> tuple[int, _Span | None]:
    """(number, first) of a list's elements. The number is right for all lists whose elements are of one shape, which
    others the server refuses, and -1 where that is not counted; the first is None where there is none."""
    data, start, end = value
    at = _skip(data, start + 1)
    if data[at : at + 1] == b"]":
        return 0, None
    if data.find(b'"', start, end) < 0 and data.find(b"{", start, end) < 0:
        inside = data.count(b"[", start + 1, end)
        first = _Span(data, at, _value_end(data, at))
        if inside:
            return inside // (data.count(b"[", at, first.end) or inside), first
        return data.count(b",", start, end) + 1, first
    if end - start <= MAX_COPIED_BYTES and data.count(b",", start, end) < MAX_COUNTED:
        try:
            found = _LIST.decode(data[start:end])
        except _REFUSED:
            pass
        else:
            return len(found), _span(found[0])
    return _walked(data, at)


def _walked(data: bytes, at: int) -> tuple[int, _Span]:
    first = _Span(data, at, _value_end(data, at))
    end = first.end
    for count in range(1, MAX_COUNTED):
        behind = _NEXT.match(data, end)
        if behind is None:
            raise Unreadable("not JSON")
        if behind[1] != b",":
            return count, first
        end = _value_end(data, behind.end())
    return -1, first


def _first_elements(value: _Span, most: int) -> list[_Span]:
    """Of a list; none of what is no list."""
    found: list[_Span] = []
    at = _skip(value.data, value.start + 1)
    if value.first != b"[" or value.data[at : at + 1] == b"]":
        return found
    while len(found) < most:
        found.append(_Span(value.data, at, _value_end(value.data, at)))
        behind = _NEXT.match(value.data, found[-1].end)
        if behind is None:
            raise Unreadable("not JSON")
        if behind[1] != b",":
            break
        at = behind.end()
    return found


def _skip(body: bytes, at: int) -> int:
    match = _SPACE.match(body, at)
    return at if match is None else match.end()


def _walk(value: _Span) -> tuple[list[tuple[bytes, _Span]], int]:
    """All members of the object that begins there, and their number."""
    body, start, _ = value
    found: list[tuple[bytes, _Span]] = []
    at = _skip(body, start + 1)
    if body[at : at + 1] == b"}":
        return found, 0
    while len(found) < MAX_KEYS:
        match = _KEY.match(body, at)
        if match is None:
            raise Unreadable("not JSON")
        end = _value_end(body, match.end())
        found.append((_text(match[1]), _Span(body, match.end(), end)))
        behind = _NEXT.match(body, end)
        if behind is None or behind[1] == b"]":
            raise Unreadable("not JSON")
        if behind[1] == b"}":
            return found, len(found)
        at = behind.end()
    raise Unreadable("too many keys")


def _text(raw: bytes) -> bytes:
    try:
        return unescape(raw)
    except JsonError:
        raise Unreadable("not JSON") from None


def _string_end(body: bytes, at: int) -> int:
    """The offset behind the string that begins at ``at``."""
    end = body.find(b'"', at + 1)
    if end > 0 and body[end - 1] != 0x5C:
        return end + 1
    match = _TEXT.match(body, at)
    if match is None:
        raise Unreadable("not JSON")
    return match.end()


def _value_end(body: bytes, at: int) -> int:
    """The offset behind the value that begins at ``at``."""
    first = body[at : at + 1]
    if first == b'"':
        return _string_end(body, at)
    match = _VALUE.match(body, at)
    if match is not None:
        return match.end()
    if first not in (b"[", b"{"):
        raise Unreadable("not JSON")
    depth, stop = 0, at + MAX_DEEP_BYTES
    while mark := _MARK.search(body, at, stop):
        kind, at = mark[0], mark.end()
        if kind == b'"':
            at = _string_end(body, mark.start())
        elif kind in (b"[", b"{"):
            depth += 1
        else:
            depth -= 1
            if not depth:
                return at
    raise Unreadable("nested too deeply" if len(body) > stop else "not JSON")
