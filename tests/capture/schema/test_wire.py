"""The schema-less reader against protobuf itself."""

from __future__ import annotations

from itertools import pairwise

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from capture.schema import messages
from capture.schema.wire import (
    MAX_FIELDS,
    MAX_VARINT_BYTES,
    UNCROWDED_BYTES,
    FieldProbe,
    NestedProbe,
    WireError,
    count_fields,
    crowded,
    fields,
    length_delimited,
    read_varint,
    write_varint,
)
from tests.support.calls import predict, predict_response


@given(st.integers(0, 2**64 - 1))
def test_a_varint_reads_back(value: int) -> None:
    raw = write_varint(value)
    assert len(raw) <= MAX_VARINT_BYTES
    assert read_varint(b"\xff" + raw + b"\xff", 1, len(raw) + 2) == (value, len(raw) + 1)


@pytest.mark.parametrize("raw", [b"", b"\x80", b"\xff" * 11])
def test_a_varint_that_does_not_end_is_an_error(raw: bytes) -> None:
    with pytest.raises(WireError, match="bad varint at byte 0"):
        read_varint(raw, 0, len(raw))


_MESSAGES = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 40), st.just(2), st.binary(max_size=40)),
        st.tuples(st.integers(1, 40), st.just(0), st.integers(0, 2**64 - 1).map(write_varint)),
        st.tuples(st.integers(1, 40), st.just(1), st.binary(min_size=8, max_size=8)),
        st.tuples(st.integers(1, 40), st.just(5), st.binary(min_size=4, max_size=4)),
    ),
    max_size=12,
)


def _raw(number: int, wire_type: int, value: bytes) -> bytes:
    if wire_type == 2:
        return length_delimited(number, value)
    return write_varint(number << 3 | wire_type) + value


@given(_MESSAGES)
def test_fields_are_found_in_order(message: list[tuple[int, int, bytes]]) -> None:
    parts = [_raw(*field) for field in message]
    data = b"".join(parts)
    found = list(fields(data))
    assert [data[field.start : field.end] for field in found] == parts
    assert [(field.number, field.wire_type, data[field.value : field.end]) for field in found] == message


@given(st.binary(max_size=60))
def test_whatever_protobuf_parses_is_read(data: bytes) -> None:
    try:
        messages.PredictLog.FromString(data)
    except DecodeError:
        return
    assert b"".join(data[field.start : field.end] for field in fields(data)) == data


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x0a\x05ab", "field 1 at byte 0 runs past the end"),
        (b"\x09\x00", "field 1 at byte 0 runs past the end"),
        (b"\x0d\x00", "field 1 at byte 0 runs past the end"),
        (b"\x02\x00", "field number 0 at byte 0"),
        (b"\x0f", "wire type 7 at byte 0"),
        (b"\x0c", "wire type 4 at byte 0"),
        (b"\x0a", "bad varint at byte 1"),
        (b"\x0b\x10\x01", "bad varint at byte 3"),
        (b"\x0b\x14", "group 1 at byte 1 does not end"),
    ],
)
def test_malformed_messages_are_named(data: bytes, text: str) -> None:
    with pytest.raises(WireError, match=f"^{text}$"):
        list(fields(data))


def test_a_group_is_one_field() -> None:
    group = b"\x0b" + b"\x10\x05" + b"\x1b\x1c" + length_delimited(2, b"\x0c") + b"\x25abcd" + b"\x29abcdefgh" + b"\x0c"
    assert [(field.number, field.end - field.start) for field in fields(group + b"\x10\x01")] == [
        (1, len(group)),
        (2, 2),
    ]


def _probe(pieces: list[bytes], number: int = 2, most: int = 1000) -> FieldProbe:
    probe = FieldProbe(number, most)
    for piece in pieces:
        probe.feed(piece)
    return probe


def _split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


@given(_MESSAGES, st.lists(st.integers(0, 2000), max_size=6))
def test_a_probe_finds_what_a_full_parse_finds(message: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    data = b"".join(_raw(*field) for field in message)
    wanted = b"".join(value for number, wire_type, value in message if (number, wire_type) == (2, 2))
    assert _probe(_split(data, cuts)).value == (wanted or None)
    assert _probe([data[at : at + 1] for at in range(len(data))]).value == (wanted or None)


@given(st.binary(max_size=200), st.lists(st.integers(0, 2000), max_size=8))
def test_a_probe_never_raises_and_does_not_depend_on_the_split(data: bytes, cuts: list[int]) -> None:
    whole, parts = _probe([data]), _probe(_split(data, cuts))
    assert whole.value == parts.value


def test_a_probe_reads_a_real_response_in_any_two_pieces() -> None:
    response = predict_response(41, outputs=b"o" * 300)
    for cut in range(len(response)):
        found = _probe([response[:cut], response[cut:]]).value
        assert found is not None
        assert messages.ModelSpec.FromString(found).version.value == 41


def _nested(pieces: list[bytes], most: int = 1000) -> NestedProbe:
    probe = NestedProbe(2, 2, most)
    for piece in pieces:
        probe.feed(piece)
    return probe


@given(st.lists(st.tuples(st.sampled_from([1, 2]), _MESSAGES), max_size=4), st.lists(st.integers(0, 2000), max_size=6))
def test_a_nested_probe_finds_what_a_full_parse_finds(
    message: list[tuple[int, list[tuple[int, int, bytes]]]], cuts: list[int]
) -> None:
    data = b"".join(length_delimited(number, b"".join(_raw(*field) for field in inner)) for number, inner in message)
    wanted = b"".join(
        value
        for number, inner in message
        for inner_number, wire_type, value in inner
        if (number, inner_number, wire_type) == (2, 2, 2)
    )
    assert _nested(_split(data, cuts)).value == (wanted or None)
    assert _nested([data[at : at + 1] for at in range(len(data))]).value == (wanted or None)


@given(st.binary(max_size=200), st.lists(st.integers(0, 2000), max_size=8))
def test_a_nested_probe_never_raises_and_does_not_depend_on_the_split(data: bytes, cuts: list[int]) -> None:
    for raw in (data, length_delimited(2, data) * 2):
        assert _nested([raw]).value == _nested(_split(raw, cuts)).value


def test_a_nested_probe_gives_up_on_what_ends_inside_a_field_or_is_over_its_bound() -> None:
    good = length_delimited(2, length_delimited(2, b"spec"))
    assert _nested([good]).value == b"spec"
    for bad in (length_delimited(2, b"\x12\x05spec"), length_delimited(2, b"\x12"), length_delimited(2, b"\xff")):
        assert _nested([bad]).value is None
        assert _nested([bad, good]).value is None
        assert _nested([good, bad]).value is None
    assert _nested([length_delimited(2, length_delimited(2, bytes(600)))] * 2).value is None


@given(_MESSAGES, st.sampled_from([1, 2]), st.integers(1, 12))
def test_fields_are_counted(message: list[tuple[int, int, bytes]], number: int, limit: int) -> None:
    data = b"\0" + b"".join(_raw(*field) for field in message) + b"\0"
    expected = sum((found, wire_type) == (number, 2) for found, wire_type, _ in message)
    counted = count_fields(data, 1, len(data) - 1, number, limit)
    assert counted == (expected if len(message) <= limit else limit)


@given(st.binary(max_size=60), st.binary(max_size=3))
def test_counting_reads_what_the_reader_reads(data: bytes, behind: bytes) -> None:
    """The bytes behind the message are never looked at."""
    try:
        expected = sum((field.number, field.wire_type) == (1, 2) for field in fields(data))
    except WireError:
        with pytest.raises(WireError):
            count_fields(data + behind, 0, len(data), 1, 1000)
        return
    assert count_fields(data + behind, 0, len(data), 1, 1000) == expected


def test_large_fields_are_counted_too() -> None:
    for size in (0, 127, 128, 16383, 16384, 70_000):
        data = length_delimited(1, bytes(size)) * 3
        assert count_fields(data, 0, len(data), 1, 10) == 3
        with pytest.raises(WireError):
            count_fields(data, 0, len(data) - 1, 1, 10)


def test_a_probe_gives_up_on_a_field_over_its_bound() -> None:
    probe = _probe([length_delimited(2, bytes(600)), length_delimited(2, bytes(600))])
    assert probe.failed
    assert probe.value is None


def test_a_message_that_was_cut_off_has_no_value() -> None:
    whole = predict_response(3) + length_delimited(9, b"tail")
    assert _probe([whole]).value is not None
    assert _probe([whole[:-1]]).value is None
    assert _probe([predict_response(3)[:-1]]).value is None


def test_a_probe_holds_only_what_it_wants() -> None:
    import sys

    probe = FieldProbe(2, 1000)
    chunk = bytes(1 << 20)
    probe.feed(write_varint(1 << 3 | 2) + write_varint(50 << 20))
    for _ in range(50):
        probe.feed(chunk)
    assert sys.getsizeof(probe._held) + sys.getsizeof(probe._value) < 200
    probe.feed(length_delimited(2, b"spec"))
    assert probe.value == b"spec"


def test_the_request_builder_is_read_by_fields() -> None:
    assert [field.number for field in fields(predict(["a", "b"], outputs=["o"]))] == [1, 2, 2, 3]


@pytest.mark.parametrize(
    "field", [length_delimited(3, bytes(20)), b"\x18" + write_varint(2**63), b"\x19" + bytes(8), b"\x1d1234"]
)
def test_a_message_of_too_many_fields_is_crowded(field: bytes) -> None:
    rest = length_delimited(4, bytes(UNCROWDED_BYTES))
    assert not crowded(field * (MAX_FIELDS - 1) + rest)
    assert crowded(field * MAX_FIELDS + rest)


@pytest.mark.parametrize(
    "raw", [b"\x18\x00" * (UNCROWDED_BYTES // 2), b"\x80" * 200_000, b"\x1b" * 200_000, b"\xff" * 200_000]
)
def test_what_is_small_or_no_message_is_left_to_the_parser(raw: bytes) -> None:
    assert not crowded(raw)
