"""Where the values of a TensorProto stand on the wire.

Source: tensorflow/core/framework/tensor.cc, Tensor::FromProto. ``tensor_content`` wins over the typed values; fewer
values than elements repeat the last one; more are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from capture.schema.wire import FIXED32, FIXED64, LENGTH, VARINT

DT_STRING: Final = 7
#: Field numbers of TensorProto.
DTYPE, SHAPE, CONTENT = 1, 2, 4


class Typed(NamedTuple):
    """Where the values of a dtype stand: the field, its wire type, and how many values make an element."""

    number: int
    wire_type: int
    parts: int = 1


_INTS: Final = Typed(7, VARINT)
#: tensorflow.DataType -> its field in TensorProto (tensorflow/core/framework/tensor.cc: ProtoHelper).
TENSOR_VALUES: Final = {
    1: Typed(5, FIXED32),
    2: Typed(6, FIXED64),
    **dict.fromkeys((3, 4, 5, 6, 11, 12, 13, 15, 16, 17), _INTS),
    DT_STRING: Typed(8, LENGTH),
    8: Typed(9, FIXED32, 2),
    9: Typed(10, VARINT),
    10: Typed(11, VARINT),
    14: Typed(13, VARINT),
    18: Typed(12, FIXED64, 2),
    19: Typed(13, VARINT),
    22: Typed(16, VARINT),
    23: Typed(17, VARINT),
}


def cycled(pieces: Sequence[bytes], count: int) -> bytes:
    """The first ``count`` of these pieces, which begin anew as often as it takes."""
    if not pieces:
        return b""
    whole, rest = divmod(count, len(pieces))
    return b"".join(pieces) * whole + b"".join(pieces[:rest])
