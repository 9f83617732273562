"""Answers of TF Serving's REST API as JSON, by util/json_tensor.cc (MakeJsonFromTensors and its neighbours). Pure.

Text passes as the bytes that it is, also where those are not UTF-8: RapidJSON's writer does not look.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Mapping
from typing import Any, Final

from capture.signature import DTYPES
from replay.executor import api
from replay.predict import RequestError

#: DataType -> the field of TensorProto that holds its values; others have no JSON form.
_FIELDS: Final = {
    1: "float_val",
    2: "double_val",
    3: "int_val",
    4: "int_val",
    5: "int_val",
    6: "int_val",
    7: "string_val",
    9: "int64_val",
    10: "bool_val",
    22: "uint32_val",
    23: "uint64_val",
}
_FLOAT, _DOUBLE, _STRING, _BOOL = 1, 2, 7, 10
#: An output of bytes whose name ends so is written as base64.
_BYTES_SUFFIX: Final = "_bytes"
_SPECIAL: Final = re.compile(rb'["\\\x00-\x1f]')
_ESCAPES: Final = {
    b'"': b'\\"',
    b"\\": b"\\\\",
    b"\b": b"\\b",
    b"\f": b"\\f",
    b"\n": b"\\n",
    b"\r": b"\\r",
    b"\t": b"\\t",
}


def predictions(outputs: Mapping[str, Any], *, row: bool) -> bytes:
    """The answer to a predict call: TensorProtos by alias, in row or column format. Raises RequestError where they have
    no JSON form: by then the model ran."""
    if not outputs:
        raise RequestError(api.INVALID_ARGUMENT, "Cannot convert empty tensor map to JSON")
    aliases = sorted(outputs)
    written = {alias: _Values(alias, outputs[alias]) for alias in aliases}
    if not row:
        columns = {alias: written[alias].nested(0) for alias in aliases}
        return _document(b"outputs", _object(columns) if len(aliases) > 1 else columns[aliases[0]])
    batch = -1
    for alias in aliases:
        shape = written[alias].shape
        if not shape:
            raise RequestError(api.INVALID_ARGUMENT, f"Tensor name: {alias} has no shape information ")
        if batch >= 0 and shape[0] != batch:
            raise RequestError(
                api.INVALID_ARGUMENT,
                f"Tensor name: {alias} has inconsistent batch size: {shape[0]} expecting: {batch}",
            )
        batch = shape[0]
    rows = []
    for _ in range(batch):
        items = {alias: written[alias].nested(1) for alias in aliases}
        rows.append(_object(items) if len(aliases) > 1 else items[aliases[0]])
    return _document(b"predictions", _array(rows))


def classifications(result: Any) -> bytes:
    """The answer to a classify call: a ClassificationResult."""
    rows = []
    for one in result.classifications:
        pairs = (_array([_string(item.label.encode()), _decimal(item.score, single=True)]) for item in one.classes)
        rows.append(_array(list(pairs)))
    return _document(b"results", _array(rows))


def regressions(result: Any) -> bytes:
    """The answer to a regress call: a RegressionResult."""
    return _document(b"results", _array([_decimal(one.value, single=True) for one in result.regressions]))


def error(message: str) -> bytes:
    """The answer to a call that failed."""
    return _document(b"error", _string(message.encode("utf-8", "replace")))


class _Values:
    """A tensor's values, read in order."""

    def __init__(self, alias: str, tensor: Any) -> None:
        self.shape = [dim.size for dim in tensor.tensor_shape.dim]
        self._dtype = tensor.dtype
        self._as_base64 = alias.endswith(_BYTES_SUFFIX)
        self._values = iter(getattr(tensor, _FIELDS[tensor.dtype]) if tensor.dtype in _FIELDS else ())

    def nested(self, dim: int) -> bytes:
        """What comes next, from this dimension on."""
        if dim == len(self.shape):
            return self._one()
        return _array([self.nested(dim + 1) for _ in range(self.shape[dim])])

    def _one(self) -> bytes:
        if self._dtype not in _FIELDS:
            raise RequestError(
                api.INVALID_ARGUMENT,
                f"Failed to write JSON value for tensor type: {DTYPES.get(self._dtype, self._dtype)}",
            )
        value = next(self._values)
        if self._dtype in (_FLOAT, _DOUBLE):
            return _decimal(value, single=self._dtype == _FLOAT)
        if self._dtype == _STRING:
            return _object({"b64": _string(base64.b64encode(value))}) if self._as_base64 else _string(value)
        if self._dtype == _BOOL:
            return b"true" if value else b"false"
        return b"%d" % value


def _decimal(value: float, *, single: bool) -> bytes:
    """WriteDecimal: six digits where they give the number back, otherwise all that it takes."""
    if math.isnan(value):
        return b"NaN"
    if math.isinf(value):
        return b"-Infinity" if value < 0 else b"Infinity"
    text = f"{value:.6g}"
    read = struct.unpack("<f", struct.pack("<f", float(text)))[0] if single else float(text)
    if read != value:
        text = f"{value:.{9 if single else 17}g}"
    return (text if "." in text or "e" in text else text + ".0").encode()


def _string(text: bytes) -> bytes:
    return b'"' + _SPECIAL.sub(lambda found: _ESCAPES.get(found[0]) or b"\\u%04X" % ord(found[0]), text) + b'"'


def _array(items: list[bytes]) -> bytes:
    return b"[" + b", ".join(items) + b"]"


def _object(items: Mapping[str, bytes]) -> bytes:
    return b"{" + b", ".join(_string(name.encode()) + b": " + value for name, value in items.items()) + b"}"


def _document(key: bytes, value: bytes) -> bytes:
    return b'{\n    "' + key + b'": ' + value + b"\n}"
