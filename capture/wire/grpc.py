"""gRPC over HTTP/2: length-prefixed messages, compression, status.

Source: the gRPC protocol description (grpc/grpc doc/PROTOCOL-HTTP2.md): a message is one flag byte (0 plain, 1
compressed), a big-endian 32-bit length, and that many bytes. Message borders know nothing of DATA frame borders.
"""

from __future__ import annotations

import zlib

import msgspec

from capture.wire.events import Headers

PREFIX_BYTES = 5
# One message, in bytes. gRPC receivers default to 4 MiB and model servers raise it to 2 GiB - 1; beyond this bound a
# message would not be stored anyway, and the consumer's byte budget is what really limits memory.
MAX_MESSAGE_BYTES = 1 << 30
# DEFLATE shrinks at most about 1,032 to 1; steps of this many output bytes bound what one call to zlib allocates.
_INFLATE_STEP_BYTES = 1 << 20


class MessageStart(msgspec.Struct, gc=False):
    """A message begins: ``length`` bytes follow as sent, ``compressed`` by the stream's grpc-encoding."""

    length: int
    compressed: bool


class MessageData(msgspec.Struct, gc=False):
    """Some bytes of the message as sent."""

    data: bytes


class MessageEnd(msgspec.Struct, gc=False):
    """The message is complete."""


class MessageError(msgspec.Struct, gc=False):
    """The stream is not made of messages, or one is over the limit. The reader ignores all that follows."""

    reason: str


MessageEvent = MessageStart | MessageData | MessageEnd | MessageError


class GrpcReader:
    """Reads one direction of one stream. Holds at most four bytes; the consumer keeps the messages."""

    __slots__ = ("_failed", "_left", "_max", "_prefix")

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        """``max_message_bytes``: a longer message ends in ``MessageError("message too large")``."""
        self._max = max_message_bytes
        self._prefix = b""
        self._left = -1  # bytes left of the open message; -1 between messages
        self._failed = False

    @property
    def incomplete(self) -> bool:
        """True inside a message: at the end of the stream it was cut short."""
        return self._left >= 0 or bool(self._prefix)

    @property
    def failed(self) -> bool:
        """True after ``MessageError``."""
        return self._failed

    def feed(self, data: bytes) -> list[MessageEvent]:
        """The stream's next bytes (``RequestData.data`` or ``ResponseData.data``)."""
        events: list[MessageEvent] = []
        if self._failed:
            return events
        pos, end = 0, len(data)
        while pos < end:
            if self._left >= 0:
                take = min(self._left, end - pos)
                events.append(MessageData(data if take == end else data[pos : pos + take]))
                pos += take
                self._left -= take
            else:
                need = PREFIX_BYTES - len(self._prefix)
                prefix = self._prefix + data[pos : pos + need]
                pos += need
                if prefix[0] > 1:
                    return self._fail(events, "bad compressed flag")
                if len(prefix) < PREFIX_BYTES:
                    self._prefix = prefix
                    return events
                self._prefix = b""
                length = int.from_bytes(prefix[1:], "big")
                if length > self._max:
                    return self._fail(events, "message too large")
                self._left = length
                events.append(MessageStart(length, prefix[0] == 1))
            if self._left == 0:
                self._left = -1
                events.append(MessageEnd())
        return events

    def _fail(self, events: list[MessageEvent], reason: str) -> list[MessageEvent]:
        self._failed = True
        self._prefix = b""
        self._left = -1
        events.append(MessageError(reason))
        return events


class DecompressError(ValueError):
    """The bytes are not what their encoding says, are cut short, or unpack to more than the bound."""


def decompress(encoding: bytes, data: bytes, max_bytes: int) -> bytes:
    """The message behind a compressed flag. ``encoding`` is the value of grpc-encoding (or content-encoding).

    Raises DecompressError for a coding other than identity, gzip and deflate, for broken or truncated data, for bytes
    after the end, and as soon as the output exceeds ``max_bytes`` (a bomb costs no more than that plus 1 MiB).
    """
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        if len(data) > max_bytes:
            raise DecompressError("over the bound")
        return data
    if name == b"gzip":
        return _inflate(data, 16 + zlib.MAX_WBITS, max_bytes)
    if name == b"deflate":
        # zlib framing, as RFC 9110 §8.4.1.2 and gRPC define it.
        return _inflate(data, zlib.MAX_WBITS, max_bytes)
    raise DecompressError("unknown encoding")


def _inflate(data: bytes, wbits: int, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    total = 0
    while True:
        # A gzip file may have several members (RFC 1952 §2.2); each is inflated by an object of its own.
        inflater = zlib.decompressobj(wbits)
        while not inflater.eof:
            try:
                part = inflater.decompress(data, min(_INFLATE_STEP_BYTES, max_bytes - total + 1))
            except zlib.error as error:
                raise DecompressError("broken data") from error
            data = inflater.unconsumed_tail
            total += len(part)
            if total > max_bytes:
                raise DecompressError("over the bound")
            if part:
                parts.append(part)
            elif not inflater.eof and not data:
                raise DecompressError("cut short")
        data = inflater.unused_data
        if not data:
            return parts[0] if len(parts) == 1 else b"".join(parts)
        if wbits <= zlib.MAX_WBITS:
            raise DecompressError("bytes after the end")


def grpc_status(headers: Headers, trailers: Headers) -> int | None:
    """The call's status code: from the trailers, or from the head of a trailers-only response.

    None where there is no grpc-status, more than one, or one that is not a small decimal number.
    """
    for fields in (trailers, headers):
        values = [value for name, value in fields if name == b"grpc-status"]
        if values:
            value = values[0]
            return int(value) if len(values) == 1 and value.isdigit() and len(value) <= 3 else None
    return None
