"""The settings of a table, as documentation lists them: place, type, default and meaning of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from capture.settings_errors import LONGEST_SECONDS


class Row(NamedTuple):
    """One setting. ``place`` is its name in a file, such as ``relay.connect_timeout`` or ``listeners[].tls.key``."""

    place: str
    type: str
    default: str
    help: str


def sections(settings: type[msgspec.Struct]) -> Iterator[tuple[str, str, list[Row]]]:
    """(place, help, rows) of each group of these settings; the place of those at the top is empty. Every field is
    ``Annotated`` with a description."""
    waiting: list[tuple[str, str, Any]] = [("", "Beside the groups below.", settings)]
    while waiting:
        place, text, cls = waiting.pop(0)
        found, inner = [], []
        for field in msgspec.structs.fields(cls):
            name = f"{place}.{field.name}".lstrip(".")
            info = inspect.type_info(field.type)
            assert isinstance(info, inspect.Metadata), name
            help_text = (info.extra_json_schema or {})["description"]
            if (group := _group(info.type)) is not None:
                listed = isinstance(info.type, inspect.VarTupleType)
                optional = isinstance(info.type, inspect.UnionType)
                least = ", at least one" if field.required else ""
                note = f". A list{least}" if listed else ". Optional" if optional else ""
                inner.append((name + ("[]" if listed else ""), f"{help_text[:1].upper()}{help_text[1:]}{note}.", group))
            else:
                found.append(Row(name, _type(info.type), _default(field), help_text))
        waiting[:0] = inner
        yield place, text, found


def _group(info: inspect.Type) -> Any:
    """The struct that a setting holds, lists or may hold; None for a plain value."""
    if isinstance(info, inspect.VarTupleType):
        info = info.item_type
    if isinstance(info, inspect.UnionType):
        info = next((one for one in info.types if isinstance(one, inspect.StructType)), info)
    return info.cls if isinstance(info, inspect.StructType) else None


def _type(info: inspect.Type) -> str:
    if isinstance(info, inspect.Metadata):
        info = info.type
    if isinstance(info, inspect.BoolType):
        return "true or false"
    if isinstance(info, inspect.LiteralType):
        return "one of the names"
    if isinstance(info, inspect.VarTupleType):
        return f"list of {_type(info.item_type)}"
    if isinstance(info, inspect.DictType):
        return f"{_type(info.key_type)} to {_type(info.value_type)}"
    if isinstance(info, inspect.StrType):
        return "text" + (f" like `{info.pattern}`" if info.pattern else "")
    assert isinstance(info, (inspect.IntType, inspect.FloatType)), info
    name = "whole number" if isinstance(info, inspect.IntType) else "number"
    # A bound that only keeps out what is no number for the processes is not worth a word.
    if info.ge is not None and info.le is not None and info.le < LONGEST_SECONDS:
        return f"{name}, {_number(info.ge)} to {_number(info.le)}"
    if info.gt is not None:
        return f"{name} above {_number(info.gt)}"
    return name + ("" if info.ge is None else f", {_number(info.ge)} or more")


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (int, float)):
        return f"`{_number(value)}`{_size(field.name, value)}"
    if isinstance(value, tuple):
        return "`[" + ", ".join(map(str, value)) + "]`"
    return f"`{value}`" if value else "empty"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _size(name: str, value: float) -> str:
    """The number once more, where it is easier to read so."""
    if name.endswith("_bytes") and value >= 1 << 20:
        return f" ({_number(value / (1 << 30))} GiB)" if value >= 1 << 30 else f" ({_number(value / (1 << 20))} MiB)"
    for size, unit in ((86400, "days"), (3600, "hours")):
        if isinstance(value, float) | name.endswith("_seconds") and value >= size:
            count = _number(value / size)
            return f" ({count} {unit if count != '1' else unit[:-1]})"
    return ""


def cells(*texts: str) -> str:
    """One line of a table in Markdown."""
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |\n"
