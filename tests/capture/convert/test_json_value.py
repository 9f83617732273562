"""Both ways to parse say the same; what the rules are is in test_predict.py."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from capture.convert.json_value import JsonError, Members, parse, parse_exactly
from tests.capture.dialects.test_rest_scan import documents


def plain(value: Any) -> Any:
    """As lists and tuples, with the types of numbers."""
    if isinstance(value, Members):
        return {"members": [(key, plain(part)) for key, part in value.items]}
    if isinstance(value, list):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return ("float", "nan" if math.isnan(value) else value, math.copysign(1, value))
    return (type(value).__name__, value)


def outcome(function: Any, body: bytes) -> Any:
    try:
        return plain(function(body))
    except JsonError as error:
        return str(error)


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(anything, st.booleans(), st.sampled_from(["", " ", "\ufeff", "\ufeff\n"]), st.sampled_from(["", "]", "1"]))
def test_json(value: Any, ascii_only: bool, before: str, behind: str) -> None:
    text = before + json.dumps([value], ensure_ascii=ascii_only) + behind
    body = text.encode("utf-8", "surrogatepass")
    assert outcome(parse, body) == outcome(parse_exactly, body)


@given(st.one_of(documents, st.text('[]{}",:\\u01eE+-.N If\t', max_size=30)))
@example("1e99")
@example("1E+400")
@example("9" * 18)
@example("-0")
@example("-0.0")
@example("1.")
@example("[1e5, 1E-400, 123456789012345678901234567890]")
@example(r'"\ud83d"')
@example(r'["\ud83d\ude00", "\u0000"]')
@example('"\x00"')
@example('{"a": 1, "a": [2, {"a": "b"}]}')
@example("[[\n1\f]]")
def test_what_is_nearly_json(text: str) -> None:
    body = text.encode()
    assert outcome(parse, body) == outcome(parse_exactly, body)


@pytest.mark.parametrize("depth", [10, 900, 1100, 50_000])
def test_depth(depth: int) -> None:
    body = b"[" * depth + b"]" * depth
    assert isinstance(parse(body), list)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("0e308", True),
        ("0e309", False),
        ("-0E+000309", False),
        ("0.0e309", True),
        ("0.0e310", False),
        ("0e99999999999999999999", False),
        ("0e-999", True),
        ("10e309", False),
        ("0." + "0" * 400 + "1e400", True),
    ],
)
def test_an_exponent_counts_whatever_it_multiplies(text: str, taken: bool) -> None:
    for read in (parse, parse_exactly):
        found = outcome(read, f"[{text}]".encode())
        assert found == [plain(float(text))] if taken else "Number too big to be stored in double" in str(found)
