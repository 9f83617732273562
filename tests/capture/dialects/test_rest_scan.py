from __future__ import annotations

import json
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.convert.json_value import Absent, Members
from capture.convert.values import ConversionError, document, is_base64, signature_name
from capture.dialects import rest_scan
from capture.dialects.base import Unreadable
from capture.dialects.rest_scan import NUMBER, TEXT, UNKNOWN, Outline, Tensor, scan_examples, scan_predict


def outline(body: str | bytes) -> Outline:
    return scan_predict(body.encode() if isinstance(body, str) else body)


@pytest.mark.parametrize(
    ("body", "form", "tensors"),
    [
        ('{"instances": [1, 2, 3]}', "row", [("", NUMBER, (3,))]),
        ('{"instances": [[1, 2], [3, 4], [5, 6]]}', "row", [("", NUMBER, (3, 2))]),
        ('{"instances": [[[1], [2]], [[3], [4]]]}', "row", [("", NUMBER, (2, 2, 1))]),
        ('{"instances": [[], []]}', "row", [("", UNKNOWN, (2, 0))]),
        ('{"instances": ["a,b", "c]"]}', "row", [("", TEXT, (2,))]),
        ('{"instances": [{"b64": "aGk="}, {"b64": "aGk="}]}', "row", [("", TEXT, (2,))]),
        ('{"instances": [{"x": 1, "y": [1, 2]}, {"x": 2, "y": [3, 4]}]}', "row",
         [("x", NUMBER, (2,)), ("y", NUMBER, (2, 2))]),
        ('{"instances": [{"x": "}"}, {"x": "{"}]}', "row", [("x", TEXT, (2,))]),
        ('{"instances": [{"b64": "aGk=", "x": 1}]}', "row", [("b64", TEXT, (1,)), ("x", NUMBER, (1,))]),
        ('{"instances": [{"b64": 5}]}', "row", [("b64", NUMBER, (1,))]),
        ('{"instances": [{"b64": "a", "b64": "b"}]}', "row", [("b64", TEXT, (1,))]),
        (r'{"instances": [{"x\u0000y": true}]}', "row", [("x", rest_scan.BOOL, (1,))]),
        ('{"inputs": 5}', "column", [("", NUMBER, ())]),
        ('{"inputs": {"b64": "aGk="}}', "column", [("", TEXT, ())]),
        ('{"inputs": {"x": [[1, 2]], "y": []}}', "column", [("x", NUMBER, (1, 2)), ("y", UNKNOWN, (0,))]),
        ('{"inputs": {"x": [[[[[[[[[1]]]]]]]]]}}', "column", [("x", UNKNOWN, None)]),
        # What strict parsers refuse and the server takes
        ('{"instances": [NaN, -Infinity, Inf]}', "row", [("", NUMBER, (3,))]),
        ('{"inputs": 5}{"inputs": {"x": 1}}', "column", [("", NUMBER, ())]),
        ('{"inputs": {"x": 1}, "inputs": {"y": 1}}', "column", [("x", NUMBER, ())]),
        (r'{"\u0069nputs": {"x": 1}, "inputs": {"y": 1}}', "column", [("x", NUMBER, ())]),
        (r'{"inputs": {"\u0078": NaN}}', "column", [("x", NUMBER, ())]),
        (b'\xef\xbb\xbf{"inputs": {"x": 1}}', "column", [("x", NUMBER, ())]),
        (b'{"inputs": {"x": "\xff"}}', "column", [("x", TEXT, ())]),
        ('{"a": "\\"inputs\\"", "inputs": {"x": 1}}', "column", [("x", NUMBER, ())]),
        ('{"a": ' + "[" * 200 + "]" * 200 + ', "inputs": {"x": 1}}', "column", [("x", NUMBER, ())]),
    ],
)  # fmt: skip
def test_outlines(body: str | bytes, form: str, tensors: list[tuple[str, int, Any]]) -> None:
    named = bool(tensors[0][0])
    assert outline(body) == Outline(form, "", tuple(Tensor(*one) for one in tensors), named=named)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ('{"signature_name": "s", "inputs": 1}', "s"),
        (r'{"signature_name": "\u0073", "inputs": 1}', "s"),
        ('{"inputs": 1, "signature_name": "s"}', "s"),
        ('{"signature_name": "a", "inputs": 1, "signature_name": "b"}', "a"),
        (r'{"signature\u005fname": "a", "inputs": 1, "signature_name": "b"}', "a"),
        ('{"inputs": NaN, "signature_name": "s"}', "s"),
    ],
)
def test_signature_names(body: str, name: str) -> None:
    assert outline(body).signature_name == name


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ("{}", "neither instances nor inputs"),
        ('{"instances": [1], "inputs": [1]}', "both instances and inputs"),
        ('{"instances": []}', "no instances"),
        ('{"instances": {"x": 1}}', "instances are no list"),
        ('{"instances": [{}]}', "no inputs"),
        ('{"inputs": {}}', "no inputs"),
        ('{"inputs": 1, "signature_name": 5}', "signature_name is no string"),
        ('{"inputs": 1', "not JSON"),
        ('{"inputs" 1}', "not JSON"),
        ('{"inputs": [1, 2}', "not JSON"),
        ('{"inputs": "a', "not JSON"),
        ('{"inputs": ' + "[" * 600_000, "nested too deeply"),
        ("{" + '"a": NaN,' * 20_000 + "}", "too many keys"),
    ],
)
def test_bodies_without_an_outline(body: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=f"^{reason}$"):
        outline(body)


def test_examples() -> None:
    body = b'{"signature_name": "s", "context": {}, "examples": [{"a": "]"}, {"a": ["b", "c"]}, {}]}'
    assert scan_examples(body) == Outline("examples", "s", (), 3)
    for empty in (b"{}", b'{"examples": []}', b'{"examples": {}}'):
        with pytest.raises(Unreadable, match=r"^no .*examples$"):
            scan_examples(empty)


scalars = st.one_of(
    st.integers(-99, 99),
    st.booleans(),
    st.text(max_size=4),
    st.none(),
    st.floats(allow_nan=False, width=16, allow_infinity=False),
)
tensors = st.recursive(
    scalars, lambda inner: st.integers(1, 3).flatmap(lambda n: inner.map(lambda one: [one] * n)), max_leaves=3
)
names = st.dictionaries(st.text(max_size=3), tensors, min_size=1, max_size=3)
rows = st.one_of(
    st.tuples(tensors, st.integers(1, 4)).map(lambda made: [made[0]] * made[1]),
    st.tuples(names, st.integers(1, 4)).map(lambda made: [made[0]] * made[1]),
)


@given(
    st.one_of(rows.map(lambda made: {"instances": made}), st.one_of(names, tensors).map(lambda made: {"inputs": made})),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_both_ways_to_look_give_the_same(body: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    """Strict JSON goes through msgspec, the same with bytes behind it through regular expressions."""
    text = json.dumps({"signature_name": "s", **body}, ensure_ascii=ascii_only, indent=indent).encode(
        "utf-8", "surrogatepass"
    )
    assert scan_predict(text + b"}") == scan_predict(text)


def _joined(opening: str, closing: str) -> Any:
    return lambda parts: opening + ", ".join(parts) + closing


#: JSON as text, with all that strict parsers do not take or take otherwise.
NAMES = ['"x"', '"y"', '"b64"', r'"\u0078"', r'"x\u0000y"', '""', r'"\""']
KEYS = ['"inputs"', '"instances"', '"signature_name"', r'"\u0069nputs"', r'"instances\u0000"', '"other"']
LEAVES = [
    "1",
    "-0",
    "1.5e3",
    "NaN",
    "-Inf",
    "true",
    "null",
    '"a"',
    r'"\u00e9]"',
    r'"}\\"',
    '"[{"',
    "[]",
    "{}",
    '{"b64": "aGk="}',
    '{"b64": 1}',
]
values = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(_joined("[", "]")),
        st.lists(st.tuples(st.sampled_from(NAMES), inner).map(": ".join), max_size=3).map(_joined("{", "}")),
    ),
    max_leaves=6,
)
documents = st.lists(st.tuples(st.sampled_from(KEYS), values).map(": ".join), max_size=4).map(_joined("{", "}"))


def server(body: bytes) -> tuple[str, str, set[str] | None] | None:
    """(form, signature name, names or None) as the server finds them (json_tensor.cc) in the document; None where it
    refuses the body whatever the model is."""
    found = document(body)
    name = signature_name(found).decode()
    instances, inputs = found.first(b"instances"), found.first(b"inputs")
    if isinstance(instances, Absent) is isinstance(inputs, Absent):
        return None
    if isinstance(inputs, Absent):
        if not isinstance(instances, list) or not instances:
            return None
        form, value = "row", instances[0]
    else:
        form, value = "column", inputs
    if not isinstance(value, Members) or is_base64(value):
        return form, name, None
    names = {key.partition(b"\0")[0] if form == "row" else key for key, _ in value.items}
    return (form, name, {one.decode() for one in names}) if names else None


@given(documents, st.sampled_from(["", "\ufeff"]), st.sampled_from(["", "}", " x"]))
def test_names_are_those_that_the_server_finds(text: str, before: str, behind: str) -> None:
    body = (before + text + behind).encode()
    try:
        expected = server(body)
    except ConversionError:
        # signature_name is no string.
        expected = None
    if expected is None:
        with pytest.raises(Unreadable):
            scan_predict(body)
        return
    found = scan_predict(body)
    names = {one.name for one in found.tensors} if found.named else None
    assert (found.form, found.signature_name, names) == expected


@given(st.binary(max_size=40) | st.text('[]{}",:\\1nN ', max_size=40).map(lambda text: text.encode()))
def test_any_bytes(body: bytes) -> None:
    rows = b'{"instances": ['
    for data in (body, b'{"inputs": ' + body, rows + body + b"]}", rows + b'{"x": ' + body + b"}]}"):
        for scan in (scan_predict, scan_examples):
            with suppress(Unreadable):
                assert isinstance(scan(data), Outline)


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": [' + b"[1,2]," * 500_000 + b"[1,2]]}",
        b'{"instances": [' + b'"a",' * 500_000 + b'"a"]}',
        b'{"instances": [' + b'{"x":"a"},' * 300_000 + b'{"x":"a"}]}',
        b'{"inputs": {"b64": "' + b"ab" * 1_000_000 + b'"}}',
        b'{"a": [NaN], "inputs": {"x": [' + b"1.5," * 500_000 + b"1.5]}}",
    ],
    ids=["numbers", "strings", "objects", "one string", "not strict"],
)
def test_memory_is_bounded(body: bytes) -> None:
    tracemalloc.start()
    try:
        scan_predict(body)
        # Copies of what is looked at, and nothing for each value.
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body) + (1 << 20)
    finally:
        tracemalloc.stop()
