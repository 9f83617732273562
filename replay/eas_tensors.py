"""EAS's ArrayProto to TensorFlow's TensorProto and back.

Which field holds which dtype follows the EAS SDKs and the closest public processor (DeepRec,
``serving/processor/serving/util.cc``: Proto2Tensor, Tensor2Proto); the stock TensorFlow processor is closed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from replay import tf_protos

# TensorFlow's DataType numbers; ArrayDataType has the same up to 21.
_FLOAT, _DOUBLE, _INT32, _UINT8, _INT16, _INT8, _STRING, _COMPLEX64, _INT64, _BOOL = range(1, 11)
_BFLOAT16, _UINT16, _COMPLEX128, _HALF = 14, 17, 18, 19


class ArrayError(ValueError):
    """An array that the processor refuses; one line."""


def _same(values: Sequence[Any]) -> list[Any]:
    return list(values)


def _to_half(values: Sequence[float]) -> list[int]:
    try:
        return [struct.unpack("<H", struct.pack("<e", value))[0] for value in values]
    except OverflowError as error:
        raise ArrayError(f"a value is out of range of DT_HALF: {error}") from None


def _from_half(values: Sequence[int]) -> list[float]:
    return [struct.unpack("<e", struct.pack("<H", value))[0] for value in values]


def _to_bfloat16(values: Sequence[float]) -> list[int]:
    """Round to nearest even on the upper 16 bits, as TensorFlow's cast does."""
    bits = (struct.unpack("<I", struct.pack("<f", value))[0] for value in values)
    return [((b + 0x7FFF + ((b >> 16) & 1)) >> 16) & 0xFFFF for b in bits]


def _from_bfloat16(values: Sequence[int]) -> list[float]:
    return [struct.unpack("<f", struct.pack("<I", value << 16))[0] for value in values]


@dataclass(frozen=True, slots=True)
class _Field:
    """How one dtype travels: ArrayProto field, TensorProto field, values per element, and the conversions."""

    array: str
    tensor: str
    per_element: int = 1
    to_tensor: Callable[[Sequence[Any]], list[Any]] = _same
    to_array: Callable[[Sequence[Any]], list[Any]] = _same


_FIELDS: dict[int, _Field] = {
    _FLOAT: _Field("float_val", "float_val"),
    _DOUBLE: _Field("double_val", "double_val"),
    _INT32: _Field("int_val", "int_val"),
    _UINT8: _Field("int_val", "int_val"),
    _INT16: _Field("int_val", "int_val"),
    _INT8: _Field("int_val", "int_val"),
    _UINT16: _Field("int_val", "int_val"),
    _STRING: _Field("string_val", "string_val"),
    _COMPLEX64: _Field("float_val", "scomplex_val", per_element=2),
    _INT64: _Field("int64_val", "int64_val"),
    _BOOL: _Field("bool_val", "bool_val"),
    _BFLOAT16: _Field("float_val", "half_val", to_tensor=_to_bfloat16, to_array=_from_bfloat16),
    _COMPLEX128: _Field("double_val", "dcomplex_val", per_element=2),
    _HALF: _Field("float_val", "half_val", to_tensor=_to_half, to_array=_from_half),
}


def to_tensor(array: Any) -> Any:
    """A TensorProto with the array's values. Raises ArrayError for an unknown dtype, a negative dimension, or a number
    of values that is not the product of the dimensions."""
    field = _FIELDS.get(array.dtype)
    if field is None:
        raise ArrayError(f"dtype {array.dtype} is not supported")
    dims = list(array.array_shape.dim)
    if any(dim < 0 for dim in dims):
        raise ArrayError(f"shape {dims} has a negative dimension")
    values = getattr(array, field.array)
    wanted = prod(dims) * field.per_element
    if len(values) != wanted:
        raise ArrayError(f"{len(values)} values in {field.array}, but shape {dims} needs {wanted}")
    tensor = tf_protos.load("tensorflow.core.framework.tensor_pb2").TensorProto(dtype=array.dtype)
    for dim in dims:
        tensor.tensor_shape.dim.add(size=dim)
    getattr(tensor, field.tensor).extend(field.to_tensor(values))
    return tensor


def fill_array(array: Any, tensor: Any) -> None:
    """Write a TensorProto (values in its typed fields) into an ArrayProto. Raises ArrayError for a dtype that EAS's
    message cannot hold."""
    field = _FIELDS.get(tensor.dtype)
    if field is None:
        raise ArrayError(f"dtype {tensor.dtype} is not supported")
    array.dtype = tensor.dtype
    array.array_shape.dim.extend(dim.size for dim in tensor.tensor_shape.dim)
    array.array_shape.SetInParent()
    getattr(array, field.array).extend(field.to_array(getattr(tensor, field.tensor)))
