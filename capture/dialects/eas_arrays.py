"""The arrays of EAS's TensorFlow and PyTorch messages: whether values, type and shape belong together."""

from __future__ import annotations

from math import prod
from typing import Any, Final

from capture.dialects.base import MAX_DIMENSIONS, Unreadable
from capture.signature import TensorSpec

#: ArrayDataType -> the field that holds its values, and how many of them an element takes. DT_HALF, DT_BFLOAT16 and the
#: complex types are taken from DeepRec's message_coding.cc (half and bfloat16 in float_val; complex numbers as pairs).
_VALUES: Final = {
    1: ("float_val", 1),
    2: ("double_val", 1),
    3: ("int_val", 1),
    4: ("int_val", 1),
    5: ("int_val", 1),
    6: ("int_val", 1),
    7: ("string_val", 1),
    8: ("float_val", 2),
    9: ("int64_val", 1),
    10: ("bool_val", 1),
    11: ("int_val", 1),
    12: ("int_val", 1),
    13: ("int_val", 1),
    14: ("float_val", 1),
    15: ("int_val", 1),
    16: ("int_val", 1),
    17: ("int_val", 1),
    18: ("double_val", 2),
    19: ("float_val", 1),
}
_VALUE_FIELDS: Final = frozenset(field for field, _ in _VALUES.values())


def array_spec(name: str, array: Any, message: str) -> TensorSpec:
    """The array's type and shape; ``message`` is what it should be part of. Raises Unreadable where values and type or
    shape disagree: then these bytes are another message that happens to parse."""
    if len(array.array_shape.dim) > MAX_DIMENSIONS:
        raise Unreadable("too many dimensions")
    shape = tuple(array.array_shape.dim)
    if array.dtype not in _VALUES:
        raise Unreadable(f"not an {message} (dtype)")
    field, per_element = _VALUES[array.dtype]
    count = 0
    for present, values in array.ListFields():
        if present.name == field:
            count = len(values)
        elif present.name in _VALUE_FIELDS:
            raise Unreadable(f"not an {message} (values of another dtype)")
    # The Python SDK drops the content of types it does not know, silently: no values at all are sent.
    if any(dim < 0 for dim in shape) or (count != prod(shape) * per_element):
        raise Unreadable("values and shape disagree")
    return TensorSpec(name, array.dtype, shape)
