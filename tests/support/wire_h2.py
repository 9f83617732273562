"""Building HTTP/2 traffic, and reading it in the plainest way: whole buffers, and the hpack library as it is."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import hpack

from capture.wire.http2_layer import PREFACE

__all__ = [
    "PREFACE",
    "continuation",
    "data",
    "frame",
    "frames",
    "goaway",
    "headers",
    "read_direction",
    "rst",
    "settings",
]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(stream: int, block: bytes, end_stream: bool = False, end_headers: bool = True) -> bytes:
    """HEADERS."""
    return frame(1, (1 if end_stream else 0) | (4 if end_headers else 0), stream, block)


def continuation(stream: int, block: bytes, end_headers: bool = True) -> bytes:
    """CONTINUATION."""
    return frame(9, 4 if end_headers else 0, stream, block)


def data(stream: int, payload: bytes, end_stream: bool = False, padding: int = 0) -> bytes:
    """DATA."""
    if padding:
        return frame(0, 8 | end_stream, stream, bytes([padding - 1]) + payload + bytes(padding - 1))
    return frame(0, int(end_stream), stream, payload)


def rst(stream: int, code: int) -> bytes:
    """RST_STREAM."""
    return frame(3, 0, stream, struct.pack(">I", code))


def goaway(last: int, code: int, debug: bytes = b"") -> bytes:
    """GOAWAY."""
    return frame(7, 0, 0, struct.pack(">II", last, code) + debug)


def settings(values: Iterable[tuple[int, int]] = ()) -> bytes:
    """SETTINGS."""
    return frame(4, 0, 0, b"".join(struct.pack(">HI", name, value) for name, value in values))


def frames(raw: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, flags, stream, payload) of each whole frame."""
    found, at = [], 0
    while at + 9 <= len(raw):
        length = int.from_bytes(raw[at : at + 3], "big")
        found.append(
            (raw[at + 3], raw[at + 4], int.from_bytes(raw[at + 5 : at + 9], "big"), raw[at + 9 : at + 9 + length])
        )
        at += 9 + length
    return found


def read_direction(raw: bytes) -> dict[int, list[object]]:
    """Stream -> its header lists, bodies (joined) and resets in order, of one direction without preface."""
    decoder = hpack.Decoder(max_header_list_size=1 << 20)
    decoder.max_allowed_table_size = 1 << 16
    streams: dict[int, list[object]] = {}
    block, opened, promise = b"", 0, False
    for kind, flags, stream, payload in frames(raw):
        if kind in (0, 1, 5) and flags & 8:
            payload = payload[1 : len(payload) - payload[0]]
        if kind == 0:
            items = streams.setdefault(stream, [])
            if items and isinstance(items[-1], bytes):
                items[-1] += payload
            elif payload:
                items.append(payload)
        elif kind == 3:
            streams.setdefault(stream, []).append(int.from_bytes(payload, "big"))
        elif kind in (1, 5, 9):
            if kind != 9:
                payload = payload[5:] if kind == 1 and flags & 0x20 else payload[4:] if kind == 5 else payload
                block, opened, promise = b"", stream, kind == 5
            block += payload
            if flags & 4:
                fields = tuple((bytes(n), bytes(v)) for n, v in decoder.decode(block, raw=True))
                if not promise:
                    streams.setdefault(opened, []).append(fields)
    return streams
