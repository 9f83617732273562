"""Length-prefixed messages: any split gives the same messages, nothing is held, bombs are bounded."""

from __future__ import annotations

import gzip
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.wire.grpc import (
    DecompressError,
    GrpcReader,
    MessageData,
    MessageEnd,
    MessageError,
    MessageStart,
    decompress,
    grpc_status,
)


def _messages(chunks: list[bytes]) -> list[tuple[bool, bytes]]:
    reader = GrpcReader()
    found: list[tuple[bool, bytes]] = []
    flag, body, length = False, b"", 0
    for chunk in chunks:
        for event in reader.feed(chunk):
            match event:
                case MessageStart():
                    flag, body, length = event.compressed, b"", event.length
                case MessageData():
                    body += event.data
                case MessageEnd():
                    assert len(body) == length
                    found.append((flag, body))
    assert not reader.incomplete
    return found


@given(
    st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), max_size=6), st.lists(st.integers(0, 200), max_size=8)
)
def test_any_split(messages: list[tuple[bool, bytes]], cuts: list[int]) -> None:
    raw = b"".join(bytes([flag]) + len(body).to_bytes(4, "big") + body for flag, body in messages)
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    assert _messages([raw[a:b] for a, b in pairwise(places)]) == messages
    assert _messages([bytes([byte]) for byte in raw]) == messages


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_any_bytes(chunks: list[bytes]) -> None:
    reader = GrpcReader(100)
    for chunk in chunks:
        reader.feed(chunk)


def test_errors_are_events_and_final() -> None:
    reader = GrpcReader(10)
    assert reader.feed(b"\x00\x00\x00\x00\x0b") == [MessageError("message too large")]
    assert reader.failed
    assert reader.feed(b"\x00\x00\x00\x00\x00") == []
    assert GrpcReader().feed(b"\x02") == [MessageError("bad compressed flag")]
    cut = GrpcReader()
    assert cut.feed(b"\x00\x00") == []
    assert cut.incomplete


def test_decompress() -> None:
    data = b"tensor" * 100
    assert decompress(b"", data, 1000) == data
    assert decompress(b"identity", data, 1000) == data
    assert decompress(b"GZIP", gzip.compress(data), 1000) == data
    assert decompress(b"gzip", gzip.compress(b"a") + gzip.compress(b"b"), 1000) == b"ab"
    assert decompress(b"gzip", gzip.compress(b""), 10) == b""
    assert decompress(b"deflate", zlib.compress(data), len(data)) == data


@pytest.mark.parametrize(
    ("encoding", "data", "limit"),
    [
        (b"identity", b"12345", 4),
        (b"gzip", gzip.compress(b"12345", mtime=0), 4),
        (b"gzip", gzip.compress(b"x" * 50_000_000, mtime=0), 1_000_000),
        (b"gzip", gzip.compress(b"12345", mtime=0)[:-1], 10),
        (b"gzip", b"", 10),
        (b"gzip", gzip.compress(b"12345", mtime=0) + b"junk", 10),
        (b"deflate", zlib.compress(b"1") + b"x", 10),
        (b"deflate", b"\xff\xff", 10),
        (b"snappy", b"", 10),
    ],
)
def test_decompress_refuses(encoding: bytes, data: bytes, limit: int) -> None:
    with pytest.raises(DecompressError):
        decompress(encoding, data, limit)


def test_status() -> None:
    assert grpc_status((), ((b"grpc-status", b"0"),)) == 0
    assert grpc_status(((b"grpc-status", b"14"),), ()) == 14
    assert grpc_status((), ()) is None
    assert grpc_status((), ((b"grpc-status", b"x"),)) is None
    assert grpc_status((), ((b"grpc-status", b"0"), (b"grpc-status", b"1"))) is None
