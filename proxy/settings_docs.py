"""Documentation of every setting, from the one table: docs/settings.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect

from capture.dialects.table import BY_NAME
from proxy.reload import FIXED, FIXED_LISTENER
from proxy.settings import LONGEST_SECONDS, Settings

#: What the head of the page says.
_HEAD: Final = """\
# Settings

Everything that a settings file (`capture proxy --config FILE.yaml`) may say. Only `listeners` is required. Durations
are seconds, sizes are bytes. An unknown key is an error that names the nearest known one. This page is made from the
one table of settings by `make docs`; a test keeps it up to date.

    capture config check FILE.yaml             # one line: ok, or what is wrong and where
    capture config show --config FILE.yaml     # the effective settings, defaults included

`config show` takes `--listen` and `--upstream` too, as `capture proxy` does. With `log_level: debug` the effective
settings are the first line of the sidecar's log. Neither holds a secret: keys and tokens are named by the paths of
their files.

"At SIGHUP" says whether a change takes effect when the running sidecar reads its settings again. Where it says
"restart", `capture proxy --take-over` replaces the sidecar without a refused connection. A listener, its `tls` or its
`upstream_tls` as a whole cannot be added or removed by SIGHUP.
"""


class Row(NamedTuple):
    """One setting. ``place`` is its name in a file, such as ``relay.connect_timeout`` or ``listeners[].tls.key``."""

    place: str
    type: str
    default: str
    help: str
    reloads: bool


def rows() -> list[Row]:
    """Every setting, in the order of the table, those that group others left out."""
    return [row for _, _, section in sections() for row in section]


def sections() -> Iterator[tuple[str, str, list[Row]]]:
    """(place, help, rows) of each group of settings; the place of those at the top is empty."""
    waiting: list[tuple[str, str, Any]] = [("", "Beside the groups below.", Settings)]
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
                note = ". A list, at least one" if listed else ". Optional" if optional else ""
                inner.append((name + ("[]" if listed else ""), f"{help_text[:1].upper()}{help_text[1:]}{note}.", group))
            else:
                found.append(Row(name, _type(info.type), _default(field), help_text, _reloads(name)))
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
        return "`[" + ", ".join(value) + "]`"
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


def _reloads(place: str) -> bool:
    first, _, rest = place.partition("[].")
    return rest not in FIXED_LISTENER if first == "listeners" else place not in FIXED


def markdown() -> str:
    """docs/settings.md."""
    parts = [_HEAD]
    for place, text, found in sections():
        parts.append(f"\n## {f'`{place}`' if place else 'At the top'}\n\n{text}\n")
        if found:
            parts.append("\n| Setting | Value | Default | At SIGHUP | What it is |\n|---|---|---|---|---|\n")
        for row in found:
            name = row.place.rpartition(".")[2]
            cells = (f"`{name}`", row.type, row.default, "yes" if row.reloads else "restart", row.help)
            parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    parts.append(f"\nDialects: `auto`, {', '.join(f'`{name}`' for name in BY_NAME)}.\n")
    return "".join(parts)
