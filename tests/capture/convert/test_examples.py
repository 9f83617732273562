"""REST classify and regress bodies. Cases named after tests of tensorflow/serving's util/json_tensor_test.cc have their
documents and results; both request types have the same fields."""

from __future__ import annotations

import math
from typing import Any

import pytest

from capture.convert.rest import grpc_request
from capture.convert.values import ConversionError
from replay import tf_protos

CLASSES = {
    "REST Classify": ("classification", "ClassificationRequest"),
    "REST Regress": ("regression", "RegressionRequest"),
}


def converted(method: str, body: str) -> Any:
    module, name = CLASSES[method]
    request = getattr(tf_protos.load(f"tensorflow_serving.apis.{module}_pb2"), name)
    return request.FromString(grpc_request(method, body.encode(), "m", {}))


def features(example: Any) -> dict[str, tuple[str, list[Any]]]:
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = (kind, list(getattr(feature, kind).value) if kind else [])
    return found


@pytest.fixture(params=CLASSES)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_request_no_context(method: str) -> None:
    request = converted(
        method,
        """{"examples": [{"names": ["foo", "bar"], "ratings": [8.0, 9.0], "age": 20},
                         {"names": ["baz"], "ratings": 6.0}]}""",
    )
    assert (request.model_spec.name, request.model_spec.signature_name) == ("m", "")
    assert [features(one) for one in request.input.example_list.examples] == [
        {"names": ("bytes_list", [b"foo", b"bar"]), "ratings": ("float_list", [8, 9]), "age": ("int64_list", [20])},
        {"names": ("bytes_list", [b"baz"]), "ratings": ("float_list", [6])},
    ]


def test_request_with_context_and_signature(method: str) -> None:
    request = converted(
        method,
        """{"signature_name": "custom_signture", "context": {"query": "pizza", "location": ["sfo"]},
            "examples": [{"names": ["foo", "bar"], "ratings": [8.0, 9.0, NaN, Infinity], "age": 20},
                         {"names": ["baz", {"b64": "aGVsbG8="}], "ratings": 6.0, "intboolmix": [1, true, false]},
                         {"names": "bar", "ratings": -Infinity}]}""",
    )
    assert request.model_spec.signature_name == "custom_signture"
    listed = request.input.example_list_with_context
    assert features(listed.context) == {"query": ("bytes_list", [b"pizza"]), "location": ("bytes_list", [b"sfo"])}
    first, second, third = map(features, listed.examples)
    assert first["ratings"][1] == pytest.approx([8, 9, math.nan, math.inf], nan_ok=True)
    assert second == {
        "names": ("bytes_list", [b"baz", b"hello"]),
        "ratings": ("float_list", [6]),
        "intboolmix": ("int64_list", [1, 1, 0]),
    }
    assert third == {"names": ("bytes_list", [b"bar"]), "ratings": ("float_list", [-math.inf])}


def test_corners(method: str) -> None:
    request = converted(
        method, r'{"examples": [{}, {"none": [], "a": 1, "a": 2.0, "big": 1e39, "wide": 18446744073709551616}]}'
    )
    empty, filled = map(features, request.input.example_list.examples)
    assert empty == {}
    # Of equal names the last counts; an integer of more than 64 bits is a double.
    assert filled == {
        "none": (None, []),
        "a": ("float_list", [2]),
        "big": ("float_list", [math.inf]),
        "wide": ("float_list", [2.0**64]),
    }
    assert converted(method, '{"context": {}, "examples": [{"a": -9223372036854775808}]}').input.WhichOneof("kind") == (
        "example_list_with_context"
    )


@pytest.mark.parametrize(
    ("body", "phrase"),
    [
        # JsonErrors
        ('{"signature_name": ["hello"], "examples": [{"names": ["foo"]}]}', "'signature_name' key must be a string"),
        ('{"context": [{"names": ["foo"]}]}', "Example must be JSON object but got JSON Array"),
        ('{"examples": {"names": ["foo"]}}', "list/array"),
        ('{"examples": [[{"names": ["foo"]}]]}', "Example must be JSON object"),
        ('{"examples": [{"names": [10, null]}]}', "names has element with unexpected JSON type: Null"),
        ('{"examples": [{"names": [10, 10.0]}]}', "feature: names expecting type: int64"),
        ('{"examples": [{"names": [10, {"test": 10}]}]}', "names has element with unexpected JSON type: Object"),
        ('{"examples": [{"names": [[10], 20]}]}', "names has element with unexpected JSON type: Array"),
        ('{"examples": [{"names": [20, 18446744073709551603]}]}', "Only int64 is supported"),
        # And others
        ('{"examples": []}', "'examples' value is an empty array"),
        ("{}", "key 'examples' is expected and was not found"),
        ('{"instances": [1]}', "key 'examples' is expected and was not found"),
        ('{"examples": [{"a": ["x", 1]}]}', "feature: a expecting type: bytes"),
        ('{"examples": [{"a": [1.5, 1]}]}', "feature: a expecting type: float"),
        ('{"examples": [{"a": {"b64": "?"}}]}', "Unable to base64 decode"),
        ('{"examples": [{"a": 1e999}]}', "Number too big"),
        ("", "The document is empty"),
    ],
)
def test_errors(method: str, body: str, phrase: str) -> None:
    with pytest.raises(ConversionError) as caught:
        converted(method, body)
    assert phrase in str(caught.value)
    assert caught.value.code == "INVALID_ARGUMENT"
