"""Setting values in the text of a JSON document, and touching nothing else: order, spacing and what is not known stay.

Pure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

_SPACE: Final = " \t\r\n"


class JsonText(ValueError):
    """No JSON document, or none that has objects where they are looked for; the text says why."""


@dataclass(frozen=True, slots=True)
class _Member:
    key: str
    begin: int
    value: int
    end: int


@dataclass(frozen=True, slots=True)
class _Object:
    """``begin`` is behind its brace, ``end`` before the other one."""

    begin: int
    end: int
    members: tuple[_Member, ...]


def load(text: str) -> dict[str, Any]:
    """The document, which has to be an object. Raises JsonText."""
    try:
        found = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise JsonText(f"is no JSON document ({error})") from None
    if not isinstance(found, dict):
        raise JsonText("is no JSON object")
    return found


def with_value(text: str, keys: tuple[str, ...], value: Any) -> str:
    """The document with ``value`` at this path of keys; objects on the way are made where there are none. Of a key that
    stands there twice it is the last one that counts. Raises JsonText."""
    document = load(text)
    wanted: Any = document
    for key in keys[:-1]:
        wanted = wanted.setdefault(key, {})
        if not isinstance(wanted, dict):
            raise JsonText(f"{key} is no object in it")
    if keys[-1] in wanted and wanted[keys[-1]] == value and type(wanted[keys[-1]]) is type(value):
        return text
    wanted[keys[-1]] = value
    done = _set(text, text.index("{"), keys, value)
    if load(done) != document:
        raise JsonText("cannot be changed without changing more of it; is a key in it twice?")
    return done


def _set(text: str, place: int, keys: tuple[str, ...], value: Any) -> str:
    inside = _object(text, place)
    member = next((one for one in reversed(inside.members) if one.key == keys[0]), None)
    if member is not None and len(keys) > 1:
        return _set(text, member.value, keys[1:], value)
    if member is not None:
        return text[: member.value] + json.dumps(value, ensure_ascii=False) + text[member.end :]
    for key in reversed(keys[1:]):
        value = {key: value}
    return _inserted(text, inside, keys[0], value)


def _inserted(text: str, inside: _Object, key: str, value: Any) -> str:
    """A member behind the last one, set out as the first one is."""
    if inside.members:
        first, last = inside.members[0], inside.members[-1]
        gap = text[inside.begin : first.begin]
        colon = text[first.begin : first.value].rpartition(":")[2]
        begin, end, rest = last.end, last.end, ","
    else:
        # As deep as its own brace stands, and two more.
        line = text[: inside.begin].rpartition("\n")[2]
        margin = line[: len(line) - len(line.lstrip(" \t"))]
        newline = _newline(text) if "\n" in text else ""
        gap, colon, rest = (newline + margin + "  " if newline else ""), " ", ""
        begin, end = inside.begin, inside.end
    written = _dumped(value, gap, colon)
    tail = "" if inside.members else (gap[:-2] if gap else "")
    space = gap or ("" if not inside.members else " ")
    return text[:begin] + rest + space + json.dumps(key, ensure_ascii=False) + ":" + colon + written + tail + text[end:]


def _dumped(value: Any, gap: str, colon: str) -> str:
    """In lines, indented as what is around, where that is in lines."""
    if not isinstance(value, dict) or "\n" not in gap:
        return json.dumps(value, ensure_ascii=False, separators=(", ", ":" + (colon.strip("\r\n") or "")))
    indent = gap.rpartition("\n")[2]
    step = "\t" if indent.startswith("\t") else " " * (len(indent) if 0 < len(indent) <= 8 else 2)
    lines = json.dumps(value, ensure_ascii=False, indent=step).split("\n")
    return (("\r\n" if "\r\n" in gap else "\n") + indent).join(lines)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _skip(text: str, place: int) -> int:
    while text[place] in _SPACE:
        place += 1
    return place


def _object(text: str, place: int) -> _Object:
    """The object at this place of a text that is known to be JSON. Raises JsonText."""
    if text[place] != "{":
        raise JsonText("has another value where an object is looked for")
    decode = json.JSONDecoder().raw_decode
    begin = place + 1
    members = []
    place = _skip(text, begin)
    while text[place] != "}":
        key, end = decode(text, place)
        value = _skip(text, _skip(text, end) + 1)
        _, after = decode(text, value)
        members.append(_Member(key, place, value, after))
        place = _skip(text, after)
        if text[place] == ",":
            place = _skip(text, place + 1)
    return _Object(begin, place, tuple(members))
