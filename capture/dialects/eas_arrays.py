"""The arrays of EAS's TensorFlow and PyTorch messages: whether values, type and shape belong together."""

from __future__ import annotations

from math import prod
from typing import Any, Final

from capture.dialects.base import MAX_DIMENSIONS, Unreadable
from capture.signature import TensorSpec

#: The fields that hold values, the same in both messages; dtype and array_shape stand before them.
_FLOAT, _DOUBLE, _INT, _STRING, _INT64, _BOOL = range(3, 9)
_SHAPE: Final = 2
#: ArrayDataType -> the field that holds its values, and how many of them an element takes. DT_HALF, DT_BFLOAT16 and the
#: complex types are taken from DeepRec's message_coding.cc (half and bfloat16 in float_val; complex numbers as pairs).
_VALUES: Final = {
    1: (_FLOAT, 1),
    2: (_DOUBLE, 1),
    3: (_INT, 1),
    4: (_INT, 1),
    5: (_INT, 1),
    6: (_INT, 1),
    7: (_STRING, 1),
    8: (_FLOAT, 2),
    9: (_INT64, 1),
    10: (_BOOL, 1),
    11: (_INT, 1),
    12: (_INT, 1),
    13: (_INT, 1),
    14: (_FLOAT, 1),
    15: (_INT, 1),
    16: (_INT, 1),
    17: (_INT, 1),
    18: (_DOUBLE, 2),
    19: (_FLOAT, 1),
}


def array_spec(name: str, array: Any, message: str) -> TensorSpec:
    """The array's type and shape; ``message`` is what it should be part of. Raises Unreadable where values and type or
    shape disagree: then these bytes are another message that happens to parse."""
    dims = array.array_shape.dim
    if len(dims) > MAX_DIMENSIONS:
        raise Unreadable("too many dimensions")
    shape, dtype = tuple(dims), array.dtype
    if dtype not in _VALUES:
        raise Unreadable(f"not an {message} (dtype)")
    field, per_element = _VALUES[dtype]
    count = 0
    # This is most of what reading a request takes: every look at a field costs.
    for present, values in array.ListFields():
        number = present.number
        if number == field:
            count = len(values)
        elif number > _SHAPE:
            raise Unreadable(f"not an {message} (values of another dtype)")
    # The Python SDK drops the content of types it does not know, silently: no values at all are sent.
    if count != prod(shape) * per_element or (shape and min(shape) < 0):
        raise Unreadable("values and shape disagree")
    return TensorSpec(name, dtype, shape)
