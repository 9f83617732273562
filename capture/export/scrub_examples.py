"""A tf.Example made anew: the same feature keys, kinds and list lengths, and none of its values.

Messages: tensorflow/core/example/{example,feature}.proto. A feature of strings holds ``0`` unless a rule says
otherwise: it parses as a number, hashes, and is in no vocabulary; what decodes images needs a rule of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from capture.export.scrub_rules import CONSTANT, EXAMPLE, KEEP, VOCABULARY, ZERO, Rule
from capture.export.scrub_values import Unscrubbable, bounded, count_values, in_content, number
from capture.schema.tensor_bytes import Typed
from capture.schema.wire import FIXED32, LENGTH, VARINT, Field, WireError, fields, length_delimited
from capture.schema.wire import write_varint as varint

#: What a string that no rule speaks of is replaced with.
NEUTRAL: Final = "0"

_FEATURES, _ENTRY, _KEY, _VALUE, _LIST = 1, 1, 1, 2, 1
_BYTES, _FLOAT, _INT64 = 1, 2, 3
#: Kind of feature -> (where its numbers stand, tensorflow.DataType).
_NUMBERS: Final = {_FLOAT: (Typed(_LIST, FIXED32), 1), _INT64: (Typed(_LIST, VARINT), 9)}
_KINDS: Final = frozenset({_BYTES, _FLOAT, _INT64})


class NoExample(ValueError):
    """The bytes are no tf.Example with at least one feature, and nothing but that."""


def rebuilt(example: bytes, rule: Callable[[str], Rule | None], *, strict: bool) -> bytes:
    """The scrubbed tf.Example. ``rule`` gives the rule of a feature's key, and of ``*``. ``strict`` raises NoExample
    unless the bytes are one without doubt; otherwise what the schema does not know is left out. Raises Unscrubbable,
    WireError."""
    found = _read(example, strict)
    if strict and not found:
        raise NoExample
    out = []
    for key, (kind, listed) in found.items():
        feature = length_delimited(kind, _scrubbed(key, kind, listed, rule)) if kind else b""
        out.append(length_delimited(_ENTRY, length_delimited(_KEY, key.encode()) + length_delimited(_VALUE, feature)))
    return length_delimited(_FEATURES, b"".join(out)) if out else b""


def _scrubbed(key: str, kind: int, listed: bytes, rule: Callable[[str], Rule | None]) -> bytes:
    """The list of one feature."""
    given = rule(key)
    if given is None and kind == _BYTES:
        given = rule("*") or Rule(CONSTANT, (NEUTRAL,))
    given = given or Rule(ZERO)
    if given.kind == EXAMPLE or (given.kind == ZERO and kind == _BYTES):
        why = "holds strings, which have no zero; say constant:VALUE" if given.kind == ZERO else "is no tf.Example"
        raise Unscrubbable(f"feature {key} {why}")
    if given.kind == KEEP:
        return b"".join(listed[part.start : part.end] for part in fields(listed) if part.number == _LIST)
    values = given.values if given.kind in (CONSTANT, VOCABULARY) else ("0",)
    if kind == _BYTES:
        count = sum(part.number == _LIST and part.wire_type == LENGTH for part in fields(listed))
        return bounded([length_delimited(_LIST, value.encode()) for value in values], count)
    typed, dtype = _NUMBERS[kind]
    try:
        numbers = [number(text, dtype) for text in values]
    except Unscrubbable as error:
        raise Unscrubbable(f"feature {key}: {error}") from None
    packed = bounded([_packed(one, kind) for one in numbers], count_values(listed, typed))
    return length_delimited(_LIST, packed) if packed else b""


def _packed(value: float, kind: int) -> bytes:
    return in_content(value, 1) if kind == _FLOAT else varint(int(value) & 0xFFFF_FFFF_FFFF_FFFF)


def _read(example: bytes, strict: bool) -> dict[str, tuple[int, bytes]]:
    """Feature key -> (kind, its list's bytes), by protobuf's rules: of equal keys the last one counts, of several kinds
    too; parts of one list are put together."""
    try:
        # Occurring twice they merge, and concatenation is what merging means on the wire.
        features = b"".join(example[part.value : part.end] for part in _parts(example, {_FEATURES}, strict))
        entries = [_entry(features[part.value : part.end], strict) for part in _parts(features, {_ENTRY}, strict)]
        return {key: _feature(value, strict) for key, value in entries}
    except (WireError, UnicodeDecodeError):
        if strict:
            raise NoExample from None
        raise WireError("malformed tf.Example") from None


def _entry(entry: bytes, strict: bool) -> tuple[str, bytes]:
    key, value, seen = "", b"", set()
    for part in _parts(entry, {_KEY, _VALUE}, strict):
        seen.add(part.number)
        if part.number == _KEY:
            key = entry[part.value : part.end].decode()
        else:
            value += entry[part.value : part.end]
    if strict and seen != {_KEY, _VALUE}:
        raise NoExample
    return key, value


def _feature(feature: bytes, strict: bool) -> tuple[int, bytes]:
    kind, listed = 0, b""
    for part in _parts(feature, _KINDS, strict):
        if part.number != kind:
            kind, listed = part.number, b""
        listed += feature[part.value : part.end]
    if strict:
        if not kind:
            raise NoExample
        for part in fields(listed):
            if part.number != _LIST or (kind == _BYTES and part.wire_type != LENGTH):
                raise NoExample
    return kind, listed


def _parts(message: bytes, known: frozenset[int] | set[int], strict: bool) -> list[Field]:
    """The length-delimited fields of these numbers."""
    found = []
    for part in fields(message):
        if part.number in known and part.wire_type == LENGTH:
            found.append(part)
        elif strict:
            raise NoExample
    return found
