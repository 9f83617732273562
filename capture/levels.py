"""Levels: what besides its names makes a request a record of its own.

TensorFlow's executor cache knows names only; what compiles for shapes (XLA, TensorRT, cuDNN, in-graph batching) or for
values (an input that XLA needs at compile time, such as the ``k`` of ``top_k``) is cold again for each new one. A level
says which of those a store tells apart: each **class** then has a sample, hits and held-out requests of its own, under
the digest of its wire signature with a suffix, ``w1-<32 digits>.<16 digits>``. The level ``names`` adds nothing.

A level is written ``names``, ``shapes``, ``shapes(batch=1,8,32)``, ``values(k, axis)``, or ``shapes+values(k)``.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from capture.convert.json_value import JsonError, Members, Value, parse
from capture.dialects.base import Unreadable
from capture.dialects.rest_scan import input_texts
from capture.memo import Memo
from capture.schema.tensors import elements
from capture.schema.wire import LENGTH, WireError, fields
from capture.signature import MEMO_BYTES, REST_METHODS, Call, TensorSpec

SEPARATOR: Final = "."
#: Hexadecimal digits of a class: 64 bits, within one wire signature.
CLASS_HEX: Final = 16
#: Digits of a digest, and of a class, that lists show; `capture show` takes any unique beginning of either.
SHORT, SHORT_CLASS = 15, 6
#: A constant of more elements is no scalar; its shape may tell it apart, its values do not.
MAX_ELEMENTS: Final = 64
MAX_BUCKETS: Final = 64
#: Bytes of JSON that such values are looked for in.
MAX_JSON_BYTES: Final = 64 << 10

_SHAPES: Final = re.compile(r"shapes(?:\(\s*batch\s*=([^()]*)\))?")
_VALUES: Final = re.compile(r"values\(([^()]*)\)")
_FORMS: Final = "names, shapes, shapes(batch=1,8,32), values(INPUT, ...) or shapes+values(INPUT, ...)"

# PredictRequest, TF Serving's and EAS's: its map of inputs, and an entry's key and value.
_INPUTS, _KEY, _VALUE = 2, 1, 2


@dataclass(frozen=True, slots=True)
class Level:
    """``shapes``: every input's dtype and shape tell requests apart, with dimension 0 rounded up to the next of
    ``buckets`` where any are given (a larger one stays itself); ``inputs``: the values of these inputs do."""

    shapes: bool = False
    buckets: tuple[int, ...] = ()
    inputs: tuple[str, ...] = ()

    def suffix(self, call: Call, body: bytes | None) -> str:
        """What the digest of a call's record ends with: "" at level ``names``, and where it cannot be told because the
        ``body`` is gone."""
        if not self.shapes and not self.inputs:
            return ""
        found = _shape_class(self.buckets, call.tensors) if self.shapes else ""
        if self.inputs:
            if body is None:
                return ""
            found = _hashed("\n".join([found, *(_value(call, body, alias) for alias in self.inputs)]))
        return SEPARATOR + found


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:CLASS_HEX]


#: The class of shapes that were seen before, by the buckets and the shapes: writing them out would cost every request.
_CLASSES: Final[Memo[tuple[tuple[int, ...], tuple[TensorSpec, ...]], str]] = Memo(MEMO_BYTES)
#: Bytes that an entry takes, rounded up: itself, for each tensor, and for each character of its name and dimension.
_ENTRY_COST, _TENSOR_COST, _PART_COST = 1000, 300, 40


def _shape_class(buckets: tuple[int, ...], tensors: tuple[TensorSpec, ...]) -> str:
    key = (buckets, tensors)
    known = _CLASSES.get(key)
    if known is not None:
        return known
    # Requests of one class are written alike: with the shapes that they are rounded to.
    found = _hashed(" ".join(str(one._replace(shape=_rounded(one.shape, buckets))) for one in tensors))
    parts = sum(len(one.name) + len(one.shape or ()) for one in tensors)
    return _CLASSES.put(key, found, _ENTRY_COST + _TENSOR_COST * len(tensors) + _PART_COST * parts)


def _rounded(shape: tuple[int, ...] | None, buckets: tuple[int, ...]) -> tuple[int, ...] | None:
    if not shape:
        return shape
    return (next((size for size in buckets if size >= shape[0]), shape[0]), *shape[1:])


NAMES: Final = Level()


class Levels:
    """The level of each model. Raises ValueError that begins with ``level`` or ``levels.MODEL``."""

    def __init__(self, level: str = "names", by_model: Mapping[str, str] | None = None) -> None:
        self._by_model: dict[str, Level] = {}
        place = "level"
        try:
            self._default = parse_level(level)
            for model, text in (by_model or {}).items():
                place = f"levels.{model}"
                self._by_model[model] = parse_level(text)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None

    def of(self, model: str) -> Level:
        """The level of this model."""
        return self._by_model.get(model, self._default)


def parse_level(text: str) -> Level:
    """A level as it is written in settings. Raises ValueError with a sentence."""
    if text.strip() == "names":
        return NAMES
    shapes, buckets, inputs = False, tuple[int, ...](), tuple[str, ...]()
    for part in map(str.strip, text.split("+")):
        if (found := _SHAPES.fullmatch(part)) and not shapes:
            shapes, buckets = True, _buckets(found[1])
        elif (found := _VALUES.fullmatch(part)) and not inputs:
            inputs = tuple(dict.fromkeys(name for word in found[1].split(",") if (name := word.strip())))
            if not inputs:
                raise ValueError(f"{text!r}: name the inputs, as in values(k)")
        else:
            raise ValueError(f"{text!r} is no level; write {_FORMS}")
    return Level(shapes, buckets, inputs)


def _buckets(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    words = [word.strip() for word in text.split(",")]
    if len(words) > MAX_BUCKETS or not all(re.fullmatch("[1-9][0-9]{0,8}", word) for word in words):
        raise ValueError(f"batch={text}: give up to {MAX_BUCKETS} sizes, as in batch=1,8,32")
    return tuple(sorted({int(word) for word in words}))


def _value(call: Call, body: bytes, alias: str) -> str:
    """The values of an input as text, the same however they were sent: over gRPC by its dtype, as JSON, whose dtype the
    model alone knows, by what they say. One that was not sent, or has too many elements, is told apart from all others
    by that alone."""
    spec = next((one for one in call.tensors if one.name == alias), None)
    if spec is None:
        return "absent"
    count = 1
    for size in spec.shape or ():
        count *= size
    if not 0 < count <= MAX_ELEMENTS:
        return f"{spec} not compared"
    if call.signature.method in REST_METHODS:
        told = None if spec.shape is None else _json_values(body, alias)
        return f"{spec} {'not compared' if told is None else ' '.join(told)}"
    try:
        tensor = _tensor(body, alias.encode("utf-8", "surrogatepass"))
        found = None if tensor is None else elements(tensor, spec.dtype, count, array=call.signature.family == "eas")
    except WireError:
        found = None
    if found is None:
        return f"{spec} not compared"
    return f"{spec} {' '.join(value.hex() for value in found)}"


def _json_values(body: bytes, alias: str) -> list[str] | None:
    """What a REST request says of an input, value by value; None where that cannot be told."""
    try:
        texts = input_texts(body, alias, MAX_ELEMENTS)
        if texts is None or sum(map(len, texts)) > MAX_JSON_BYTES:
            return None
        waiting = [parse(text) for text in reversed(texts)]
    except (Unreadable, JsonError):
        return None
    found: list[str] = []
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += reversed(value)
            continue
        if len(found) == MAX_ELEMENTS:
            return None
        found.append(_json_value(value))
    return found


def _json_value(value: Value) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 3.0 is what 3 is
    if isinstance(value, Members):
        # {"b64": "..."} are bytes. The server refuses any other object.
        coded = value.first(b"b64")
        try:
            value = b64decode(coded, validate=True) if isinstance(coded, bytes) else b""
        except ValueError:
            value = b""
    if isinstance(value, bytes):
        return f"text {value.hex()}"
    return json.dumps(value)


def _tensor(body: bytes, alias: bytes) -> bytes | None:
    """The tensor of an input; the last one, as in any map."""
    wanted = None
    for field in fields(body):
        if field.number == _INPUTS and field.wire_type == LENGTH:
            key, tensor = b"", b""
            for part in fields(body, field.value, field.end):
                if part.wire_type == LENGTH and part.number == _KEY:
                    key = body[part.value : part.end]
                elif part.wire_type == LENGTH and part.number == _VALUE:
                    tensor += body[part.value : part.end]
            if key == alias:
                wanted = tensor
    return wanted


def split(digest: str) -> tuple[str, str]:
    """(digest of the wire signature, class) of a record's digest; the class is "" at level ``names``."""
    wire, _, found = digest.partition(SEPARATOR)
    return wire, found


def short(digest: str) -> str:
    """As lists show it."""
    wire, found = split(digest)
    return wire[:SHORT] + (SEPARATOR + found[:SHORT_CLASS] if found else "")


def matches(digest: str, wanted: str, prefix: str) -> bool:
    """Whether ``wanted`` is a beginning of a record's digest, with or without ``prefix``, and of its class where it
    names one."""
    wire, found = split(digest)
    wire_wanted, class_wanted = split(wanted)
    return wire.startswith((wire_wanted, f"{prefix}-{wire_wanted}")) and found.startswith(class_wanted)
