"""HPACK against the hpack library and RFC 7541's own examples; what is remembered and what is believed."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.wire.hpack_table import MAX_LIST_BYTES, MEMO_BYTES, HpackError, HpackTable

NAMES = st.sampled_from([b"x-a", b"x-b", b"x-request-id", b"te", b"user-agent", b"grpc-timeout"])
FIELDS = st.lists(st.tuples(NAMES, st.binary(max_size=60)), max_size=8)


@given(
    st.lists(
        st.tuples(FIELDS, st.sampled_from([None, None, None, 0, 60, 200, 4096, 65536]), st.booleans()), max_size=12
    )
)
def test_same_as_the_library(blocks: list[tuple[list[tuple[bytes, bytes]], int | None, bool]]) -> None:
    encoder, table = hpack.Encoder(), HpackTable()
    decoder = hpack.Decoder(max_header_list_size=1 << 20)
    decoder.max_allowed_table_size = 1 << 16
    for fields, size, huffman in blocks:
        if size is not None:
            encoder.header_table_size = size
        block = encoder.encode(fields, huffman=huffman)
        theirs = tuple((bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True))
        ours = table.decode(block)
        assert ours.headers == theirs == tuple(fields)
        assert ours.verified
        assert [entry[:2] for entry in table._entries] == list(decoder.header_table.dynamic_entries)


@given(st.binary(max_size=80))
def test_any_block(block: bytes) -> None:
    """Decodes exactly what the library decodes, and refuses what it refuses."""
    decoder = hpack.Decoder(max_header_list_size=1 << 20)
    decoder.max_allowed_table_size = 1 << 16
    try:
        theirs = [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
    except hpack.HPACKError:
        theirs = None
    try:
        ours = HpackTable().decode(block)
    except HpackError:
        ours = None
    if ours is None or theirs is None:
        # The library takes integers of any length and a size update of any place but behind a field.
        assert ours is None or not ours.fault or theirs is None
    elif not ours.fault:
        assert [pair for pair in theirs if pair[0][:1] != b":"] == list(ours.headers)


def test_rfc_7541_c_4() -> None:
    """Requests with Huffman coding, on one table (RFC 7541 C.4)."""
    table = HpackTable()
    first = table.decode(bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff"))
    second = table.decode(bytes.fromhex("828684be5886a8eb10649cbf"))
    third = table.decode(bytes.fromhex("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"))
    assert [(each.method, each.scheme, each.path, each.authority) for each in (first, second, third)] == [
        (b"GET", b"http", b"/", b"www.example.com"),
        (b"GET", b"http", b"/", b"www.example.com"),
        (b"GET", b"https", b"/index.html", b"www.example.com"),
    ]
    assert second.headers == ((b"cache-control", b"no-cache"),)
    assert third.headers == ((b"custom-key", b"custom-value"),)


def test_memo_sees_an_identical_insertion_into_a_full_table() -> None:
    """The table holds a and b and no third entry of their size. Inserting b again pushes out a and leaves length, size
    and newest entry as they were, and yet index 63 now means b. A memo keyed on those three would answer a."""
    table = HpackTable()

    def insert(value: bytes) -> bytes:
        return b"\x40\x01k" + bytes([len(value)]) + value

    # Two entries of 34 bytes fit into 68.
    table.decode(b"\x3f\x25" + insert(b"a") + insert(b"b"))
    second_newest = b"\xbf"
    assert table.decode(second_newest).headers == ((b"k", b"a"),)
    assert table.decode(second_newest).headers == ((b"k", b"a"),)
    table.decode(insert(b"b"))
    assert table.decode(second_newest).headers == ((b"k", b"b"),)


def test_block_that_inserts_is_not_remembered() -> None:
    table = HpackTable()
    block = b"\x40\x01k\x01v"
    for count in range(1, 4):
        assert table.decode(block).headers == ((b"k", b"v"),)
        assert len(table._entries) == count


def test_repeated_block_is_one_object() -> None:
    table = HpackTable()
    assert table.decode(b"\x82\x86\x84") is table.decode(b"\x82\x86\x84")


def test_entries_from_before_a_gap_are_not_verified_and_newer_ones_are() -> None:
    table = HpackTable()
    table.decode(b"\x40\x01k\x01v")
    table.distrust()
    assert not table.decode(b"\xbe").verified
    assert table.decode(b"\x82\x86\x84").verified
    # A new entry named by an old one is as doubtful as its name, and so is whoever refers to it.
    assert not table.decode(b"\x7e\x01w").verified
    assert not table.decode(b"\xbe").verified
    assert table.decode(b"\x40\x01n\x01v").verified
    assert table.decode(b"\xbe").verified
    # An index beyond the table is no error any more: the entry was inserted in the gap.
    assert table.decode(b"\xff\x10").fault == "header history lost"


def test_joined_table_reads_what_needs_no_history() -> None:
    table = HpackTable(joined=True)
    assert table.decode(b"\x83\x86\xbe").fault == "header history lost"
    assert table.decode(b"\x83\x86\x84").path == b"/"
    assert table.decode(b"\x83\x86\x84").verified


def test_bounds() -> None:
    """A block that names a large entry many times costs neither memory nor the table."""
    table = HpackTable()
    table.decode(b"\x3f\xe1\xff\x03\x40\x01k\x7f\x81\xa2\x03" + b"v" * 53632)
    bomb = table.decode(b"\xbe" * 50_000)
    assert bomb.fault == "header list too large"
    assert table.decode(b"\xbe").headers[0][0] == b"k"
    for number in range(3000):
        table.decode(b"\x00\x02id\x04%04d" % number)
    assert table.held_bytes() <= 65536 + 300 * 150 + MEMO_BYTES
    assert MAX_LIST_BYTES >= 65536


@pytest.mark.parametrize("block", [b"\x80", b"\xff", b"\x40\x05ab", b"\x82\x20", b"\xff\xff\xff\xff\xff\xff", b"\x40"])
def test_broken_blocks(block: bytes) -> None:
    with pytest.raises(HpackError):
        HpackTable().decode(block)
