"""The protobuf wire format, read without a schema: just enough to cut fields out and to skip over large ones.

Source of the rules: protobuf.dev, "Encoding". Used where re-encoding a message is forbidden (export) or where most of
a message must not be looked at (a PredictResponse's outputs, the graph in saved_model.pb).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

VARINT: Final = 0
FIXED64: Final = 1
LENGTH: Final = 2
START_GROUP: Final = 3
END_GROUP: Final = 4
FIXED32: Final = 5

#: A varint is at most ten bytes (64 bits in groups of seven).
MAX_VARINT_BYTES: Final = 10
#: Top-level fields of a request: an entry for each input, a name for each output. Real ones have at most hundreds.
MAX_FIELDS: Final = 10_000
#: No message is longer (protobuf.dev, "Proto Limits").
MAX_MESSAGE_BYTES: Final = 2**31 - 1
#: Messages up to this many bytes are not looked through for their number of fields.
UNCROWDED_BYTES: Final = 128 << 10


class WireError(ValueError):
    """The bytes are not a protobuf message. The text names what and where, never contents."""


class Field(NamedTuple):
    """One field of a message: ``buffer[start:end]`` is the whole field with its tag, ``buffer[value:end]`` its value
    (without the length for length-delimited fields)."""

    number: int
    wire_type: int
    start: int
    value: int
    end: int


def read_varint(data: bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    """The varint at ``at`` and the offset behind it. Raises WireError when it is cut off or too long."""
    shift = 0
    result = 0
    for position in range(at, min(end, at + MAX_VARINT_BYTES)):
        byte = data[position]
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position + 1
        shift += 7
    raise WireError(f"bad varint at byte {at}")


def write_varint(value: int) -> bytes:
    """The varint encoding of a non-negative integer."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def length_delimited(number: int, value: bytes) -> bytes:
    """A whole length-delimited field."""
    return write_varint(number << 3 | LENGTH) + write_varint(len(value)) + value


def fields(data: bytes | memoryview, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """The top-level fields of the message ``data[start:end]`` in order, a group as one field. Raises WireError on what
    is malformed. Everything that protobuf parses is read: a server that answered a request has parsed it."""
    stop = len(data) if end is None else end
    at = start
    while at < stop:
        begin = at
        tag, at = read_varint(data, at, stop)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise WireError(f"field number 0 at byte {begin}")
        value = at
        if wire_type == LENGTH:
            size, value = read_varint(data, at, stop)
            at = value + size
        elif wire_type == VARINT:
            _, at = read_varint(data, at, stop)
        elif wire_type == FIXED64:
            at += 8
        elif wire_type == FIXED32:
            at += 4
        elif wire_type == START_GROUP:
            at = _group_end(data, at, stop, number)
        else:
            raise WireError(f"wire type {wire_type} at byte {begin}")
        if at > stop:
            raise WireError(f"field {number} at byte {begin} runs past the end")
        yield Field(number, wire_type, begin, value, at)


def crowded(data: bytes) -> bool:
    """Whether a message has more top-level fields than any real one: what a parser makes of many tiny fields takes far
    more memory and time than their bytes (each entry of a map some 150 bytes). Looks at large messages only; below that
    the harm is small, and looking would cost every request."""
    if len(data) <= UNCROWDED_BYTES:
        return False
    at, end = 0, len(data)
    try:
        for _ in range(MAX_FIELDS):
            if at >= end:
                return False
            tag, at = read_varint(data, at, end)
            wire_type = tag & 7
            if wire_type == LENGTH:
                size, at = read_varint(data, at, end)
                at += size
            elif wire_type == VARINT:
                _, at = read_varint(data, at, end)
            elif wire_type in (FIXED64, FIXED32):
                at += 8 if wire_type == FIXED64 else 4
            else:
                return False  # a group, which no real request has: nothing is made of it but a copy
    except WireError:
        return False  # the parser says it better
    return at < end


def count_fields(data: bytes, start: int, end: int, number: int, limit: int) -> int:
    """How many length-delimited fields ``number`` the message ``data[start:end]`` has; ``limit`` where it has more
    fields of any kind than that (a hostile message has millions). Raises WireError on what is malformed up to there."""
    wanted = number << 3 | LENGTH
    count = 0
    at = start
    for _ in range(limit):
        if at >= end:
            break
        begin = at
        if data[at] == wanted and at + 2 < end and (data[at + 1] < 0x80 or data[at + 2] < 0x80):
            # The usual field, shorter than 16 KiB: a call for each would take three times as long.
            size = data[at + 1]
            at += 2 + size if size < 0x80 else 3 + (size & 0x7F | data[at + 2] << 7)
            count += 1
        else:
            field = next(fields(data, at, end))
            at = field.end
            count += field.number == number and field.wire_type == LENGTH
        if at > end:
            raise WireError(f"field {number} at byte {begin} runs past the end")
    return count if at >= end else limit


def _group_end(data: bytes | memoryview, at: int, stop: int, number: int) -> int:
    """The offset behind the end of the group ``number`` that began before ``at``. Groups nest; no recursion."""
    begin = at
    inside = [number]
    while inside:
        tag, at = read_varint(data, at, stop)
        wire_type = tag & 7
        if wire_type == START_GROUP:
            inside.append(tag >> 3)
        elif wire_type == END_GROUP:
            if inside.pop() != tag >> 3:
                break
        elif wire_type == LENGTH:
            size, at = read_varint(data, at, stop)
            at += size
        elif wire_type == VARINT:
            _, at = read_varint(data, at, stop)
        elif wire_type in (FIXED64, FIXED32):
            at += 8 if wire_type == FIXED64 else 4
        else:
            break
    else:
        return at
    raise WireError(f"group {number} at byte {begin} does not end")


class FieldProbe:
    """Reads one top-level field out of a message that arrives in pieces, skipping all others.

    Made for PredictResponse: ``model_spec`` (field 2) comes last, behind megabytes of outputs. Holds at most
    ``max_bytes`` of the wanted field; a longer one makes the probe give up. ``value`` is the payload once the message
    has been fed: fields that occur twice are concatenated, which is protobuf's merge. With ``wire_type`` VARINT it is
    the varint, the last one that occurs. ``known`` maps further fields to their wire types: another one there means
    that this is another message. ``failed`` is True when the bytes were no message.
    """

    __slots__ = ("_fed", "_held", "_keep", "_known", "_max", "_number", "_skip", "_value", "_wire_type", "failed")

    def __init__(
        self,
        number: int,
        max_bytes: int = MAX_VARINT_BYTES,
        *,
        wire_type: int = LENGTH,
        known: Mapping[int, int] | None = None,
    ) -> None:
        self._number = number
        self._max = max_bytes
        self._wire_type = wire_type
        self._known = known
        self._fed = False
        self._held = b""
        self._skip = 0
        self._keep = 0
        self._value = b""
        self.failed = False

    def feed(self, data: bytes) -> None:
        """The next piece of the message."""
        at = 0
        size = len(data)
        self._fed = self._fed or size > 0
        if self._held and not self.failed:
            data = self._held + data
            size = len(data)
            self._held = b""
        while at < size and not self.failed:
            if self._skip:
                step = min(self._skip, size - at)
                self._skip -= step
                at += step
            elif self._keep:
                step = min(self._keep, size - at)
                self._keep -= step
                self._kept(data[at : at + step])
                at += step
            else:
                moved = self._tag(data, at, size)
                if moved < 0:
                    self._held = data[at:]
                    return
                at = moved

    def _kept(self, data: bytes) -> None:
        """Some bytes of the wanted field; ``_keep`` is what is still to come of it."""
        self._value += data

    def _tag(self, data: bytes, at: int, size: int) -> int:
        """Read a tag and what it announces; the offset behind it, or -1 when more bytes are needed."""
        try:
            tag, at_value = read_varint(data, at, size)
            wire_type = tag & 7
            if not tag >> 3 or (self._known is not None and self._known.get(tag >> 3, wire_type) != wire_type):
                self.failed = True
            elif wire_type == FIXED64:
                self._skip = 8
            elif wire_type == FIXED32:
                self._skip = 4
            elif wire_type == VARINT:
                start = at_value
                _, at_value = read_varint(data, at_value, size)
                if tag >> 3 == self._number and self._wire_type == VARINT:
                    self._value = data[start:at_value]
            elif wire_type == LENGTH:
                length, at_value = read_varint(data, at_value, size)
                if tag >> 3 != self._number or self._wire_type != LENGTH:
                    self._skip = length
                elif length + len(self._value) <= self._max:
                    self._keep = length
                else:
                    self.failed = True
            else:
                self.failed = True
        except WireError:
            # Cut off: wait for more, unless even two whole varints would have fitted.
            if size - at >= 2 * MAX_VARINT_BYTES:
                self.failed = True
                return size
            return -1
        return at_value

    @property
    def between(self) -> bool:
        """Whether what was fed ends where a field ends."""
        return not (self.failed or self._held or self._keep or self._skip)

    @property
    def value(self) -> bytes | None:
        """The wanted field's payload; None when it was absent, cut off, too long or not protobuf."""
        return self._value if self._value and self.between else None

    @property
    def whole(self) -> bool:
        """Whether the message was fed to its end. Nothing at all is not taken for one."""
        return self._fed and self.between


class NestedProbe(FieldProbe):
    """Reads one length-delimited field ``inner`` of every message in the top-level field ``number``.

    Made for MultiInferenceResponse, where the model_spec stands in each of ``results``. Holds what a
    :class:`FieldProbe` for ``inner`` holds: the messages themselves are passed through.
    """

    __slots__ = ("_inner",)

    def __init__(self, number: int, inner: int, max_bytes: int) -> None:
        super().__init__(number, MAX_MESSAGE_BYTES)
        self._inner = FieldProbe(inner, max_bytes)

    def _kept(self, data: bytes) -> None:
        self._inner.feed(data)
        if not self._keep and not self._inner.between:
            self.failed = True

    @property
    def value(self) -> bytes | None:
        return self._inner.value if self.between else None
