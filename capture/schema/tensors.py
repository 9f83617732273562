"""The values of a tensor, read on the wire: TF Serving's TensorProto and EAS's ArrayProto.

How they are meant: tensorflow/core/framework/tensor.cc, Tensor::FromProto. ``tensor_content`` wins over the typed
values; fewer values than elements repeat the last one; more are ignored; none are zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from capture.schema.tensor_bytes import CONTENT, DT_STRING, TENSOR_VALUES, Typed
from capture.schema.wire import FIXED32, FIXED64, LENGTH, VARINT, WireError, fields, read_varint

#: As TENSOR_VALUES, in EAS's ArrayProto (tf_request.proto of the SDK), which has no tensor_content.
ARRAY_VALUES: Final = {
    1: Typed(3, FIXED32),
    2: Typed(4, FIXED64),
    **dict.fromkeys((3, 4, 5, 6, 17), Typed(5, VARINT)),
    DT_STRING: Typed(6, LENGTH),
    9: Typed(7, VARINT),
    10: Typed(8, VARINT),
}
#: Bytes of an element of these dtypes.
ELEMENT_BYTES: Final = {
    1: 4, 2: 8, 3: 4, 4: 1, 5: 2, 6: 1, 8: 8, 9: 8, 10: 1, 14: 2, 17: 2, 18: 16, 19: 2, 22: 4, 23: 8,
}  # fmt: skip
_FIXED: Final = {FIXED32: 4, FIXED64: 8}


def read_values(proto: bytes, typed: Typed) -> list[bytes]:
    """Every value as its bytes on the wire; packed, one by one, or both, as parsers take them. Raises WireError."""
    found: list[bytes] = []
    for field in fields(proto):
        if field.number != typed.number:
            continue
        value = proto[field.value : field.end]
        if typed.wire_type == LENGTH:
            if field.wire_type == LENGTH:
                found.append(value)
        elif field.wire_type == typed.wire_type:
            found.append(value)
        elif field.wire_type == LENGTH:
            found += _unpacked(value, typed.wire_type)
    return found


def _unpacked(value: bytes, wire_type: int) -> Iterator[bytes]:
    at = 0
    while at < len(value):
        begin = at
        at = at + _FIXED[wire_type] if wire_type in _FIXED else read_varint(value, at, len(value))[1]
        if at > len(value):
            raise WireError(f"a packed value runs past the end at byte {begin}")
        yield value[begin:at]


def elements(proto: bytes, dtype: int, count: int, *, array: bool = False) -> list[bytes] | None:
    """The ``count`` elements of a small tensor, each as its bytes in memory (little endian; a string as it is), however
    they were sent; ``array`` for an ArrayProto. None where they cannot be told. Raises WireError."""
    typed = (ARRAY_VALUES if array else TENSOR_VALUES).get(dtype)
    size = ELEMENT_BYTES.get(dtype, 0)
    if typed is None or count < 1 or (dtype != DT_STRING and not size):
        return None
    if not array:
        content = b""
        for field in fields(proto):
            if field.number == CONTENT and field.wire_type == LENGTH:
                content = proto[field.value : field.end]
        if content and dtype == DT_STRING:
            # Lengths and strings as they stand: there is one way to write them.
            return [content]
        if content:
            return [content[at : at + size] for at in range(0, len(content), size)]
    found = read_values(proto, typed)
    if typed.wire_type == VARINT:
        mask = (1 << 8 * size) - 1
        found = [(read_varint(value, 0, len(value))[0] & mask).to_bytes(size, "little") for value in found]
    elif typed.parts > 1:
        found = [b"".join(found[at : at + typed.parts]) for at in range(0, len(found), typed.parts)]
    found = found[:count] or [b"" if dtype == DT_STRING else bytes(size)]
    return found + [found[-1]] * (count - len(found))
