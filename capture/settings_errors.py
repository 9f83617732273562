"""Settings files: YAML into a table of settings, and what is wrong in one line that names the place and the nearest
known key."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

#: Ten years. "Never" is 0: infinity is no number that the processes could be told.
LONGEST_SECONDS: Final = 315_360_000.0

_Settings = TypeVar("_Settings", bound=msgspec.Struct)


class SettingsError(ValueError):
    """What the user wrote cannot be used. One line that names the place and the remedy."""


def read_yaml(path: Path) -> Any:
    """What a settings file says, as plain data. Raises SettingsError that names the file."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    try:
        return msgspec.yaml.decode(text)
    except msgspec.DecodeError as error:
        raise SettingsError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def convert(data: Any, settings: type[_Settings]) -> _Settings:
    """Plain data as these settings. Raises SettingsError that names the place."""
    try:
        return msgspec.convert(data, settings)
    except msgspec.ValidationError as error:
        raise SettingsError(explain(str(error), settings)) from None


def explain(message: str, settings: type[msgspec.Struct]) -> str:
    """One line with the place first, from msgspec's "... - at `$.place`" for this struct."""
    text, _, place = message.partition(" - at `$")
    place = re.sub(r"^\.", "", place.rstrip("`"))
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", text):
        key = unknown[1]
        known = _keys(place, settings)
        near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        return f"{place}.{key}".lstrip(".") + f": unknown key; {hint}"
    if missing := re.fullmatch(r"Object missing required field `(.*)`", text):
        return f"{place}.{missing[1]}".lstrip(".") + ": missing"
    if enum := re.fullmatch(r"Invalid enum value (.*)", text):
        return f"{place}: {enum[1]} is not known; known are {', '.join(_names(place, settings))}"
    return f"{place or 'settings'}: {text[:1].lower()}{text[1:]}"


def _keys(place: str, settings: type[msgspec.Struct]) -> list[str]:
    """Known keys at a place such as ``capture.limits`` or ``listeners[1]``."""
    found = _at(place, settings)
    return list((found.cls if isinstance(found, msgspec.inspect.StructType) else settings).__struct_fields__)


def _names(place: str, settings: type[msgspec.Struct]) -> list[str]:
    """What may be said at a place that takes one of some names."""
    found = _at(place, settings)
    return [str(name) for name in found.values] if isinstance(found, msgspec.inspect.LiteralType) else []


def _at(place: str, settings: type[msgspec.Struct]) -> msgspec.inspect.Type:
    """The type of a place; of a list, what it lists."""
    found: Any = msgspec.inspect.type_info(settings)
    for name in filter(None, re.sub(r"\[[^]]*\]", "", place).split(".")):
        at = found.cls if isinstance(found, msgspec.inspect.StructType) else settings
        found = msgspec.inspect.type_info({field.name: field for field in msgspec.structs.fields(at)}[name].type)
        while isinstance(found, msgspec.inspect.Metadata):
            found = found.type
        if isinstance(found, msgspec.inspect.VarTupleType):
            found = found.item_type
    return found  # type: ignore[no-any-return]
