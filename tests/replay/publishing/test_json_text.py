"""Values are set in the text of a JSON document, and nothing else changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from replay.publishing.json_text import JsonText, load, with_value

PATH = ("warm_up_data_path",)
COUNT = ("metadata", "rpc", "warm_up_count")

SERVICE = """{
  "name": "rank",
  "processor": "tensorflow_cpu_2.3",
  "big": 12345678901234567890, "small": 1.50,
  "metadata": {
    "instance": 2,
    "rpc": { "keepalive": 5000 }
  },
  "unknown": [1,2,  3]
}
"""


@pytest.mark.parametrize(
    ("text", "keys", "value", "line", "instead"),
    [
        (SERVICE, PATH, "oss://b/é.bin", '  "unknown": [1,2,  3]', ',\n  "warm_up_data_path": "oss://b/é.bin"'),
        (SERVICE, COUNT, 3, '"keepalive": 5000', ', "warm_up_count": 3'),
        (SERVICE, ("metadata", "cpu"), 4, '"rpc": { "keepalive": 5000 }', ',\n    "cpu": 4'),
        (
            SERVICE,
            ("storage", "a", "b"),
            1,
            '  "unknown": [1,2,  3]',
            ',\n  "storage": {\n    "a": {\n      "b": 1\n    }\n  }',
        ),
    ],
)
def test_a_new_value_stands_behind_the_others(
    text: str, keys: tuple[str, ...], value: Any, line: str, instead: str
) -> None:
    assert with_value(text, keys, value) == text.replace(line, line + instead)


@pytest.mark.parametrize(
    ("text", "keys", "value", "expected"),
    [
        ('{"a": 1, "b":2}', ("a",), 3, '{"a": 3, "b":2}'),
        ('{"a":1}', ("b",), 2, '{"a":1, "b":2}'),
        ("{}", ("a",), 1, '{"a": 1}'),
        ("{\n}\n", ("a",), 1, '{\n  "a": 1\n}\n'),
        ('{\r\n\t"a": 1\r\n}', ("b", "c"), 2, '{\r\n\t"a": 1,\r\n\t"b": {\r\n\t\t"c": 2\r\n\t}\r\n}'),
        ('{"a": {"b": {}}}', ("a", "b", "c"), "x", '{"a": {"b": {"c": "x"}}}'),
        ('\ufeff{"a": 1}', ("a",), 2, '\ufeff{"a": 2}'),
        ('{"a": 1, "a": 2}', ("a",), 3, '{"a": 1, "a": 3}'),
        ('{"a": 1}', ("a",), 1, '{"a": 1}'),
    ],
)
def test_all_kinds_of_setting_out(text: str, keys: tuple[str, ...], value: Any, expected: str) -> None:
    assert with_value(text, keys, value) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no JSON document"),
        ("{'a': 1}", "is no JSON document"),
        ("[1]", "is no JSON object"),
        ('{"metadata": 1}', "metadata is no object in it"),
        ('{"metadata": {"rpc": [1]}}', "rpc is no object in it"),
        ("[" * 100_000, "is no JSON document"),
    ],
)
def test_what_is_no_such_document(text: str, said: str) -> None:
    with pytest.raises(JsonText, match=said):
        with_value(text, COUNT, 5)


_VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.text(),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    some.dictionaries(some.sampled_from(["a", "b", "metadata", "x y"]), _VALUES),
    some.sampled_from([None, 0, 2, "\t"]),
    some.lists(some.sampled_from(["a", "b", "metadata", "rpc"]), min_size=1, max_size=3),
    _VALUES,
)
def test_any_document_and_path(document: dict[str, Any], indent: int | str | None, keys: list[str], value: Any) -> None:
    text = json.dumps(document, indent=indent)
    expected: Any = document
    for key in keys[:-1]:
        expected = expected.setdefault(key, {})
        if not isinstance(expected, dict):
            with pytest.raises(JsonText, match="is no object in it"):
                with_value(text, tuple(keys), value)
            return
    expected[keys[-1]] = value
    done = with_value(text, tuple(keys), value)
    assert load(done) == document
    assert with_value(done, tuple(keys), value) == done
