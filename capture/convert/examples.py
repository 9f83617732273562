"""The body of a REST classify or regress call as the ClassificationRequest or RegressionRequest that the server makes
of it; both have the same fields (util/json_tensor.cc: FillClassifyRegressRequestFromJson)."""

from __future__ import annotations

from typing import Any, Final

from capture.convert.json_value import Absent, Members, Value
from capture.convert.values import ConversionError, decode_base64, document, is_base64, json_type, signature_name
from capture.schema import messages

#: Feature's kinds -> what the server calls them.
_KINDS: Final = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}
_INT64_MAX: Final = (1 << 63) - 1


def examples_request(body: bytes, model: str) -> bytes:
    """A serialized request for this model. Raises ConversionError."""
    found = document(body)
    request = messages.ExamplesRequest()
    request.model_spec.name = model
    try:
        request.model_spec.signature_name = signature_name(found).decode()
    except UnicodeDecodeError:
        raise ConversionError("No signature was found with the name: ...") from None
    context = found.first(b"context")
    if isinstance(context, Absent):
        into = request.input.example_list.examples
    else:
        _fill_example(context, request.input.example_list_with_context.context)
        into = request.input.example_list_with_context.examples
    examples = found.first(b"examples")
    if isinstance(examples, Absent):
        raise ConversionError("JSON Value: ... When method is classify, key 'examples' is expected and was not found")
    if not isinstance(examples, list):
        raise ConversionError("JSON Value: ... Expecting 'examples' value to be an list/array")
    if not examples:
        raise ConversionError("JSON Value: ... 'examples' value is an empty array")
    for example in examples:
        _fill_example(example, into.add())
    return bytes(request.SerializeToString(deterministic=True))


def _fill_example(value: Value, example: Any) -> None:
    if not isinstance(value, Members):
        raise ConversionError(f"Example must be JSON object but got JSON {json_type(value)}")
    # An object without members is an Example all the same.
    example.SetInParent()
    for key, content in value.items:
        # A name ends at a NUL: the server reads it as a C string. Of equal ones the last counts.
        raw = key.partition(b"\0")[0]
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise ConversionError("Feature: its name is not UTF-8, which protobuf does not take") from None
        feature = example.features.feature[name]
        feature.Clear()
        for one in content if isinstance(content, list) else (content,):
            _add(one, name, feature)


def _add(value: Value, name: str, feature: Any) -> None:
    if value is None or isinstance(value, list) or (isinstance(value, Members) and not is_base64(value)):
        raise ConversionError(f"Feature: {name} has element with unexpected JSON type: {json_type(value)}")
    if isinstance(value, (bytes, Members)):
        _of_kind(feature, name, "bytes_list")
        feature.bytes_list.value.append(value if isinstance(value, bytes) else decode_base64(value))
    elif isinstance(value, float):
        _of_kind(feature, name, "float_list")
        feature.float_list.value.append(value)
    else:
        # true and false are integers here.
        _of_kind(feature, name, "int64_list")
        if value > _INT64_MAX:
            raise ConversionError(f"Feature: {name} has uint64 element. Only int64 is supported.")
        feature.int64_list.value.append(int(value))


def _of_kind(feature: Any, name: str, kind: str) -> None:
    has = feature.WhichOneof("kind")
    if has not in (None, kind):
        raise ConversionError(f"Unexpected element type in feature: {name} expecting type: {_KINDS[has]}")
