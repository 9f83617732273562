"""The values of a tensor, replaced on the wire: as many of them, in the same dtype and shape, and nothing else.

A scrubbed message is made anew from what is understood of the old one: dtype, sizes of the dimensions, the number of
values. Unknown fields and names of dimensions could hold anything, and stay out. How values stand in a TensorProto:
tensorflow/core/framework/tensor.cc, Tensor::FromProto; in EAS's ArrayProto: :mod:`capture.dialects.eas_arrays`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from capture.schema import messages
from capture.schema.tensor_bytes import CONTENT, DT_STRING, TENSOR_VALUES, Typed, cycled
from capture.schema.wire import FIXED32, FIXED64, LENGTH, VARINT, WireError, fields, length_delimited, read_varint
from capture.schema.wire import write_varint as varint

#: A scrubbed request; a long constant for many values would make it larger.
MAX_SCRUBBED_BYTES: Final = 256 << 20

_HALF, _BFLOAT16, _BOOL = 19, 14, 10
#: Those whose values in TensorProto are their bits, as a varint.
_BITS: Final = {_HALF: "<e", _BFLOAT16: ""}
#: tensorflow.DataType -> one element in tensor_content (struct); bfloat16 is the upper half of a float.
_CONTENT: Final = {
    1: "<f", 2: "<d", 3: "<i", 4: "<B", 5: "<h", 6: "<b", 8: "<ff", 9: "<q", 10: "<?", 11: "<b", 12: "<B", 13: "<i",
    14: "<H", 15: "<h", 16: "<H", 17: "<H", 18: "<dd", 19: "<e", 22: "<I", 23: "<Q",
}  # fmt: skip
_FLOATS: Final = frozenset({1, 2, 8, 14, 18, 19})


class Unscrubbable(ValueError):
    """A request whose values cannot be replaced. The text names the input and the remedy, never a value."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A kind of tensor message: dtype is field 1 and the shape field 2 in all. ``content`` is the field of raw bytes,
    0 where there is none; ``head`` makes dtype and shape anew; ``bits``: half and bfloat16 stand as their bits."""

    content: int
    values: Mapping[int, Typed]
    head: Callable[[bytes], tuple[bytes, int, Sequence[int]]]
    bits: bool


def _tensor_head(proto: bytes) -> tuple[bytes, int, Sequence[int]]:
    """(serialized, dtype, dimensions)."""
    given = messages.Tensor.FromString(proto)
    head = messages.Tensor(dtype=given.dtype)
    if given.HasField("tensor_shape"):
        head.tensor_shape.unknown_rank = given.tensor_shape.unknown_rank
        for dim in given.tensor_shape.dim:
            head.tensor_shape.dim.add(size=dim.size)
        head.tensor_shape.SetInParent()
    return head.SerializeToString(), given.dtype, [dim.size for dim in given.tensor_shape.dim]


def _array_head(proto: bytes) -> tuple[bytes, int, Sequence[int]]:
    given = messages.EasArrayProto.FromString(proto)
    head = messages.EasArrayProto(dtype=given.dtype)
    head.array_shape.dim.extend(given.array_shape.dim)
    head.array_shape.SetInParent()
    return head.SerializeToString(), given.dtype, list(given.array_shape.dim)


TENSOR: Final = Layout(content=CONTENT, values=TENSOR_VALUES, head=_tensor_head, bits=True)
_EAS_INTS: Final = Typed(5, VARINT)
#: EAS's TensorFlow and PyTorch messages.
ARRAY: Final = Layout(
    content=0,
    values={
        1: Typed(3, FIXED32),
        2: Typed(4, FIXED64),
        **dict.fromkeys((3, 4, 5, 6, 11, 12, 13, 15, 16, 17), _EAS_INTS),
        DT_STRING: Typed(6, LENGTH),
        8: Typed(3, FIXED32, 2),
        9: Typed(7, VARINT),
        10: Typed(8, VARINT),
        14: Typed(3, FIXED32),
        18: Typed(4, FIXED64, 2),
        19: Typed(3, FIXED32),
    },
    head=_array_head,
    bits=False,
)


class Values:
    """One tensor message, ready to be made anew. Raises WireError, DecodeError, Unscrubbable."""

    def __init__(self, proto: bytes, layout: Layout) -> None:
        short, self._content = [], b""
        for part in fields(proto):
            if part.number in (1, 2):
                short.append(proto[part.start : part.end])
            elif part.number == layout.content and part.wire_type == LENGTH:
                self._content = proto[part.value : part.end]
        self._proto, self._layout = proto, layout
        self._head, self.dtype, self._dims = layout.head(b"".join(short))
        typed = layout.values.get(self.dtype)
        if typed is None:
            raise Unscrubbable(f"values of dtype {self.dtype} cannot be replaced")
        self._typed = typed

    def kept(self) -> bytes:
        """With the values that it has."""
        if self._content:
            return self._head + length_delimited(self._layout.content, self._content)
        proto = self._proto
        return self._head + b"".join(
            proto[part.start : part.end] for part in fields(proto) if part.number == self._typed.number
        )

    def numbers(self, texts: Sequence[str]) -> bytes:
        """With these numbers in turn in place of its own. Raises Unscrubbable where one is none of the dtype."""
        numbers = [number(text, self.dtype) for text in texts]
        if self._content:
            made = [in_content(one, self.dtype) for one in numbers]
            if len(self._content) % len(made[0]):
                raise Unscrubbable(f"its content of {len(self._content)} bytes is no whole number of values")
            return self._head + length_delimited(
                self._layout.content, bounded(made, len(self._content) // len(made[0]))
            )
        made = [self._in_field(one) for one in numbers]
        packed = bounded(made, count_values(self._proto, self._typed) // self._typed.parts)
        return self._head + (length_delimited(self._typed.number, packed) if packed else b"")

    def strings(self) -> list[bytes]:
        """Its strings, where it has that dtype."""
        if self._content:
            return list(_string_list(self._content, prod(self._dims)))
        return [
            self._proto[part.value : part.end]
            for part in fields(self._proto)
            if part.number == self._typed.number and part.wire_type == LENGTH
        ]

    def with_each(self, values: Sequence[bytes]) -> bytes:
        """With these strings in turn in place of its own; none where it has none."""
        if not values:
            return self._head
        made = [length_delimited(self._typed.number, value) for value in values]
        return self._head + bounded(made, len(self.strings()))

    def _in_field(self, value: float) -> bytes:
        typed = self._typed
        if typed.wire_type == VARINT:
            if self._layout.bits and self.dtype in _BITS:
                return varint(int.from_bytes(in_content(value, self.dtype), "little"))
            return varint(int(value) & 0xFFFF_FFFF_FFFF_FFFF)
        one = struct.pack("<f" if typed.wire_type == FIXED32 else "<d", value)
        return one + bytes(len(one)) * (typed.parts - 1)


def number(text: str, dtype: int) -> float:
    """A rule's value as a number of this dtype. Raises Unscrubbable."""
    try:
        if dtype in _FLOATS:
            value = float(text)
        elif dtype == _BOOL:
            return {"true": 1, "1": 1, "false": 0, "0": 0}[text.lower()]
        else:
            value = int(text)
        in_content(value, dtype)
    except (ValueError, KeyError, OverflowError, struct.error):
        raise Unscrubbable(f"a value of its rule is no number of its dtype ({dtype})") from None
    return value


def in_content(value: float, dtype: int) -> bytes:
    """One element as it stands in tensor_content. Raises KeyError, struct.error, OverflowError."""
    if dtype == _BFLOAT16:
        return struct.pack("<f", value)[2:]
    form = _CONTENT[dtype]
    return struct.pack(form, value, 0) if len(form) == 3 else struct.pack(form, value)


def count_values(message: bytes, typed: Typed) -> int:
    """How many values of a numeric field there are: packed, one by one, or both, as parsers take them."""
    count = 0
    for part in fields(message):
        if part.number != typed.number:
            continue
        if part.wire_type == typed.wire_type:
            count += 1
        elif part.wire_type == LENGTH and typed.wire_type == VARINT:
            # Every varint ends with the one byte below 128.
            count += len(message[part.value : part.end].translate(None, _CONTINUED))
        elif part.wire_type == LENGTH:
            count += (part.end - part.value) // (4 if typed.wire_type == FIXED32 else 8)
    return count


_CONTINUED: Final = bytes(range(128, 256))


def _string_list(content: bytes, count: int) -> Iterator[bytes]:
    """All lengths as varints, then all strings (tensorflow/core/platform/coding: DecodeStringList)."""
    if not 0 <= count <= len(content):
        raise WireError("string content and shape disagree")
    lengths, at = [], 0
    for _ in range(count):
        length, at = read_varint(content, at, len(content))
        lengths.append(length)
    if at + sum(lengths) != len(content):
        raise WireError("string content does not end where it should")
    for length in lengths:
        yield content[at : at + length]
        at += length


def bounded(pieces: Sequence[bytes], count: int) -> bytes:
    """The first ``count`` of these pieces, repeated. Raises Unscrubbable where that is too long."""
    if sum(map(len, pieces)) // len(pieces) * count > MAX_SCRUBBED_BYTES:
        raise Unscrubbable(f"scrubbed it would take more than {MAX_SCRUBBED_BYTES >> 20} MiB; give shorter values")
    return cycled(pieces, count)


def plain(message: Any) -> bytes:
    """A message without what its schema does not know."""
    message.DiscardUnknownFields()
    serialized: bytes = message.SerializeToString()
    return serialized
