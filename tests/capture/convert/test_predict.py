"""REST predict bodies and the PredictRequests that the server makes of them. Cases named after tests of
tensorflow/serving's util/json_tensor_test.cc have their documents and results."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest

from capture.convert.predict import predict_request
from capture.convert.values import ConversionError
from capture.signature import SignatureDef, TensorInfo
from replay import tf_protos

FLOAT, DOUBLE, INT32, UINT8, INT16, INT8, STRING = 1, 2, 3, 4, 5, 6, 7
COMPLEX64, INT64, BOOL, BFLOAT16, UINT16, HALF, UINT32, UINT64 = 8, 9, 10, 14, 17, 19, 22, 23
INF, NAN = math.inf, math.nan

THREE_BY_TWO = {"default": (INT32, [3, 2], [1, 2, 3, 4, 5, 6])}
NAMED_IN = {"int_tensor": INT32, "str_tensor": STRING, "float_tensor": FLOAT, "dbl_tensor": DOUBLE}
TWO = {"int_tensor": INT32, "str_tensor": STRING}
BIN = {"int_tensor": INT32, "str_tensor": STRING, "bin_tensor": STRING}


class Taken(NamedTuple):
    """``inputs``: alias -> dtype; ``expected``: alias -> (dtype, shape, values)."""

    name: str
    inputs: dict[str, int]
    body: str | bytes
    expected: dict[str, tuple[int, list[int], list[Any]]]


TAKEN = [
    # json_tensor_test.cc
    Taken("SingleUnnamedTensor", {"default": INT32}, '{"instances": [[1,2],[3,4],[5,6]]}', THREE_BY_TWO),
    Taken(
        "MixedInputForFloatTensor",
        {"default": FLOAT},
        '{"instances": [1, 2.0, 3, 4, 5.003, 0.007, 0.0]}',
        {"default": (FLOAT, [7], [1, 2, 3, 4, 5.003, 0.007, 0])},
    ),
    Taken(
        "MixedInputForDoubleTensor",
        {"default": DOUBLE},
        '{"instances": [1.0, 2, 3, 4, 0.662, 0, 0.0]}',
        {"default": (DOUBLE, [7], [1, 2, 3, 4, 0.662, 0, 0])},
    ),
    Taken("TensorFromNonNullTerminatedBuffer", {"default": INT32}, '{"instances": [[1,2],[3,4],[5,6]]}X', THREE_BY_TWO),
    Taken(
        "SingleUnnamedTensorBase64Scalars",
        {"default": STRING},
        '{"instances": [ { "b64" : "aGVsbG8=" }, { "b64": "d29ybGQ=" } ]}',
        {"default": (STRING, [2], [b"hello", b"world"])},
    ),
    Taken(
        "SingleUnnamedTensorBase64Lists",
        {"default": STRING},
        '{"instances": [ [{ "b64" : "aGVsbG8=" }], [{ "b64": "d29ybGQ=" }] ]}',
        {"default": (STRING, [2, 1], [b"hello", b"world"])},
    ),
    Taken(
        "SingleNamedTensorBase64",
        {"default": STRING},
        '{"instances": [{"default": [ [{ "b64" : "aGVsbG8=" }], [{ "b64": "d29ybGQ=" }] ]}]}',
        {"default": (STRING, [1, 2, 1], [b"hello", b"world"])},
    ),
    Taken(
        "MultipleNamedTensor",
        NAMED_IN,
        """{"instances": [
            {"int_tensor": [[1,2],[3,4],[5,6]], "str_tensor": ["foo", "bar"],
             "float_tensor": [1.0, NaN], "dbl_tensor": [NaN]},
            {"int_tensor": [[7,8],[9,0],[1,2]], "str_tensor": ["baz", "bat"],
             "float_tensor": [2.0, Infinity], "dbl_tensor": [2.0]}]}""",
        {
            "int_tensor": (INT32, [2, 3, 2], [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]),
            "str_tensor": (STRING, [2, 2], [b"foo", b"bar", b"baz", b"bat"]),
            "float_tensor": (FLOAT, [2, 2], [1, NAN, 2, INF]),
            "dbl_tensor": (DOUBLE, [2, 1], [NAN, 2]),
        },
    ),
    Taken(
        "SingleUnnamedTensorColumnarFormat, named",
        {"int_tensor": INT32},
        '{"inputs": {"int_tensor": [[[1,2],[3,4],[5,6]]]}}',
        {"int_tensor": (INT32, [1, 3, 2], [1, 2, 3, 4, 5, 6])},
    ),
    Taken(
        "SingleUnnamedTensorColumnarFormat, not named",
        {"int_tensor": INT32},
        '{"inputs": [[[1,2],[3,4],[5,6]]]}',
        {"int_tensor": (INT32, [1, 3, 2], [1, 2, 3, 4, 5, 6])},
    ),
    Taken(
        "MultipleNamedTensorColumnarFormat",
        BIN,
        """{"inputs": {"int_tensor": [[[1,2],[3,4],[5,6]]], "str_tensor": ["foo", "bar"],
                       "bin_tensor": { "b64" : "aGVsbG8=" }}}""",
        {
            "int_tensor": (INT32, [1, 3, 2], [1, 2, 3, 4, 5, 6]),
            "str_tensor": (STRING, [2], [b"foo", b"bar"]),
            "bin_tensor": (STRING, [], [b"hello"]),
        },
    ),
    # What the same file has since the server takes numbers that lose precision.
    Taken("precision loss, float", {"x": FLOAT}, '{"instances": [16777217]}', {"x": (FLOAT, [1], [16777216.0])}),
    Taken(
        "precision loss, double",
        {"x": DOUBLE},
        '{"instances": [9007199254740993]}',
        {"x": (DOUBLE, [1], [9007199254740992.0])},
    ),
    Taken("over the largest float", {"x": FLOAT}, '{"instances": [1.7e308]}', {"x": (FLOAT, [1], [INF])}),
    Taken("under the lowest float", {"x": FLOAT}, '{"instances": [-1.7e308]}', {"x": (FLOAT, [1], [-INF])}),
    Taken("under the smallest float", {"x": FLOAT}, '{"instances": [1e-300]}', {"x": (FLOAT, [1], [0.0])}),
    Taken(
        "DeeplyNestedWellFormed",
        {"x": INT32},
        '{"ignored": ' + "[" * 500_000 + "]" * 500_000 + ', "instances": [1]}',
        {"x": (INT32, [1], [1])},
    ),
    # Keys
    Taken("unknown keys are ignored", {"x": INT32}, '{"a": {"b": [null]}, "inputs": 5}', {"x": (INT32, [], [5])}),
    Taken("the first of two keys counts", {"x": INT32}, '{"inputs": 5, "inputs": 6}', {"x": (INT32, [], [5])}),
    Taken("a key in escapes", {"x": INT32}, r'{"\u0069nputs": {"\u0078": 5}}', {"x": (INT32, [], [5])}),
    Taken("columns: further keys are ignored", {"x": INT32}, '{"inputs": {"y": "?", "x": 5}}', {"x": (INT32, [], [5])}),
    Taken("rows: a name ends at NUL", {"x": INT32}, r'{"instances": [{"x\u0000y": 5}]}', {"x": (INT32, [1], [5])}),
    Taken(
        "rows: an input that is there twice is added twice",
        {"x": INT32},
        '{"instances": [{"x": 1, "x": 2}, {"x": 3, "x": 4}]}',
        {"x": (INT32, [2], [1, 2, 3, 4])},
    ),
    Taken("an input named b64", {"b64": STRING}, '{"inputs": {"b64": "aGk="}}', {"b64": (STRING, [], [b"hi"])}),
    Taken(
        "an input named b64, a list", {"b64": STRING}, '{"inputs": {"b64": ["hi"]}}', {"b64": (STRING, [1], [b"hi"])}
    ),
    # Shapes
    Taken("a scalar column", {"x": FLOAT}, '{"inputs": 5}', {"x": (FLOAT, [], [5])}),
    Taken("scalar rows", {"x": FLOAT}, '{"instances": [5]}', {"x": (FLOAT, [1], [5])}),
    Taken("an empty list", {"x": FLOAT}, '{"inputs": []}', {"x": (FLOAT, [0], [])}),
    Taken("empty lists", {"x": FLOAT}, '{"inputs": [[], []]}', {"x": (FLOAT, [2, 0], [])}),
    Taken("empty rows", {"x": FLOAT}, '{"instances": [[], []]}', {"x": (FLOAT, [2, 0], [])}),
    # Numbers
    Taken("narrow integers go unchecked", {"x": UINT8}, '{"inputs": [300, -1]}', {"x": (UINT8, [2], [300, -1])}),
    Taken("int16", {"x": INT16}, '{"inputs": [70000]}', {"x": (INT16, [1], [70000])}),
    Taken("int8", {"x": INT8}, '{"inputs": [-2147483648]}', {"x": (INT8, [1], [-(1 << 31)])}),
    Taken(
        "int64",
        {"x": INT64},
        f'{{"inputs": [{-(1 << 63)}, {(1 << 63) - 1}]}}',
        {"x": (INT64, [2], [-(1 << 63), (1 << 63) - 1])},
    ),
    Taken("uint32", {"x": UINT32}, '{"inputs": [4294967295, -0]}', {"x": (UINT32, [2], [(1 << 32) - 1, 0])}),
    Taken("uint64", {"x": UINT64}, f'{{"inputs": {(1 << 64) - 1}}}', {"x": (UINT64, [], [(1 << 64) - 1])}),
    Taken(
        "an integer of 65 bits is a double", {"x": DOUBLE}, f'{{"inputs": {1 << 64}}}', {"x": (DOUBLE, [], [2.0**64])}
    ),
    Taken("bool", {"x": BOOL}, '{"inputs": [true, false]}', {"x": (BOOL, [2], [True, False])}),
    Taken(
        "not finite, in every spelling",
        {"x": FLOAT},
        '{"inputs": [NaN, -NaN, Inf, Infinity, -Inf, -Infinity]}',
        {"x": (FLOAT, [6], [NAN, NAN, INF, INF, -INF, -INF])},
    ),
    Taken(
        "exponents",
        {"x": DOUBLE},
        '{"inputs": [1e2, 1E-2, 1.5e+2, -0.0]}',
        {"x": (DOUBLE, [4], [100, 0.01, 150, -0.0])},
    ),
    # Text
    Taken(
        "escapes",
        {"x": STRING},
        r'{"inputs": ["\"\\\/\b\f\n\r\t", "\u00e9\ud83d\ude00", "a\u0000b"]}',
        {"x": (STRING, [3], [b'"\\/\b\f\n\r\t', "\u00e9\U0001f600".encode(), b"a\0b"])},
    ),
    Taken("not UTF-8", {"x": STRING}, b'{"inputs": "\xff\xfe"}', {"x": (STRING, [], [b"\xff\xfe"])}),
    Taken("a byte order mark", {"x": INT32}, b'\xef\xbb\xbf {"inputs": 5}', {"x": (INT32, [], [5])}),
    Taken("bytes behind the document", {"x": INT32}, '{"inputs": 5}{"inputs": [', {"x": (INT32, [], [5])}),
    Taken(
        "base64 without padding, with blanks, with dots",
        {"x": STRING},
        r'{"inputs": [{"b64": "aGk"}, {"b64": " a G\nk = "}, {"b64": "aA.."}, {"b64": ""}]}',
        {"x": (STRING, [4], [b"hi", b"hi", b"h", b""])},
    ),
    Taken(
        "text and base64 mix",
        {"x": STRING},
        '{"instances": ["a", {"b64": "Yg=="}]}',
        {"x": (STRING, [2], [b"a", b"b"])},
    ),
]


def converted(inputs: dict[str, int], body: str | bytes) -> Any:
    raw = body.encode() if isinstance(body, str) else body
    definition = SignatureDef({alias: TensorInfo(f"{alias}:0", dtype) for alias, dtype in inputs.items()}, {})
    defs = {"serving_default": definition, "predict_images": definition, "none": SignatureDef({}, {})}
    request = tf_protos.load("tensorflow_serving.apis.predict_pb2").PredictRequest
    return request.FromString(predict_request(raw, "m", defs))


FIELDS = {
    FLOAT: "float_val",
    DOUBLE: "double_val",
    STRING: "string_val",
    INT64: "int64_val",
    BOOL: "bool_val",
    UINT32: "uint32_val",
    UINT64: "uint64_val",
}


@pytest.mark.parametrize("case", TAKEN, ids=lambda case: case.name)
def test_what_the_server_takes(case: Taken) -> None:
    request = converted(case.inputs, case.body)
    assert request.model_spec.name == "m"
    assert set(request.inputs) == set(case.expected)
    for alias, (dtype, shape, values) in case.expected.items():
        tensor = request.inputs[alias]
        assert (tensor.dtype, [dim.size for dim in tensor.tensor_shape.dim]) == (dtype, shape)
        assert tensor.HasField("tensor_shape")
        assert not tensor.tensor_content
        found = list(getattr(tensor, FIELDS.get(dtype, "int_val")))
        relative = 1e-6 if dtype == FLOAT else 0
        assert found == (values if dtype == STRING else pytest.approx(values, rel=relative, nan_ok=True))


def test_the_signature_name_is_handed_on() -> None:
    # SingleUnnamedTensorWithSignature of json_tensor_test.cc.
    request = converted({"default": INT32}, '{"signature_name": "predict_images", "instances": [[1,2]]}')
    assert request.model_spec.signature_name == "predict_images"
    assert [dim.size for dim in request.inputs["default"].tensor_shape.dim] == [1, 2]
    assert converted({"x": INT32}, '{"signature_name": "", "inputs": 1}').model_spec.signature_name == ""


class Refused(NamedTuple):
    name: str
    inputs: dict[str, int]
    body: str | bytes
    phrase: str


REFUSED = [
    # json_tensor_test.cc: SingleUnnamedTensorErrors, MultipleNamedTensorErrors, DeeplyNestedMalformed.
    Refused("empty", {"x": INT32}, "", "JSON Parse error: The document is empty"),
    Refused(
        "signature_name",
        {"x": INT32},
        '{"signature_name": 5, "instances": [[1,2],[3,4],[5,6,7]]}',
        "'signature_name' key must be a string value",
    ),
    Refused("both keys", {"x": INT32}, '{"instances": [[1,2]], "inputs": [[1,2]]}', "Not formatted correctly"),
    Refused(
        "another size", {"x": INT32}, '{"instances": [[1,2],[3,4],[5,6,7]]}', "Expecting tensor size: 2 but got: 3"
    ),
    Refused(
        "another shape", {"x": INT32}, '{"instances": [[1,2],[3,4],[[5,6]]]}', "Expecting shape [2] but got: [1,2]"
    ),
    Refused("scalar and list", {"x": INT32}, '{"instances": [1, [1]]}', "Expecting shape [] but got: [1]"),
    Refused(
        "another type", {"x": INT32}, '{"instances": [[1,2],["a", "b"]]}', "Type: String is not of expected type: int32"
    ),
    Refused(
        "named, another shape",
        TWO,
        '{"instances": [{"int_tensor": [[1,2],[3,4],[5,6]], "str_tensor": ["foo", "bar"]},'
        ' {"int_tensor": [[[7,8],[9,0],[1,2]]], "str_tensor": ["baz", "bat"]}]}',
        "Expecting shape",
    ),
    Refused(
        "named, another size",
        TWO,
        '{"instances": [{"int_tensor": [[1,2],[3,4],[5,6],[7,8]], "str_tensor": ["foo", "bar"]},'
        ' {"int_tensor": [[7,8],[9,0],[1,2]], "str_tensor": ["baz", "bat"]}]}',
        "Expecting tensor size",
    ),
    Refused(
        "a list among objects",
        TWO,
        '{"instances": [{"int_tensor": [[1,2]], "str_tensor": ["foo", "bar"]}, [1, 20, 30]]}',
        "Expecting object but got list at item 1 of input list",
    ),
    Refused(
        "an object among lists",
        {"str_tensor": STRING},
        '{"instances": [["baz", "bar"], {"str_tensor": ["baz", "bat"]}]}',
        "Expecting value/list but got object at item 1 of input list",
    ),
    Refused("DeeplyNestedMalformed", {"x": INT32}, '{"signature_name": ' + "[" * 500_000, "JSON Parse error"),
    # The document
    Refused("blanks only", {"x": INT32}, " \n", "The document is empty"),
    Refused("a list", {"x": INT32}, "[1]", "Is not object"),
    Refused("a number", {"x": INT32}, "5", "Is not object"),
    Refused("no keys", {"x": INT32}, "{}", "Missing 'inputs' or 'instances' key"),
    Refused("no colon", {"x": INT32}, '{"inputs" 5}', "Missing a colon after a name of object member."),
    Refused("no comma in an object", {"x": INT32}, '{"inputs": 5 "a"}', "Missing a comma or } after an object member."),
    Refused("no comma in a list", {"x": INT32}, '{"inputs": [5 6]}', "Missing a comma or ] after an array element."),
    Refused("a leading zero", {"x": INT32}, '{"inputs": [01]}', "Missing a comma or ] after an array element."),
    Refused("a trailing comma", {"x": INT32}, '{"inputs": 5,}', "Missing a name for object member."),
    Refused("a trailing comma in a list", {"x": INT32}, '{"inputs": [5,]}', "Invalid value."),
    Refused("no quote", {"x": STRING}, '{"inputs": "a}', "Missing a closing quotation mark in string."),
    Refused("a line break in a string", {"x": STRING}, '{"inputs": "a\n"}', "in string."),
    Refused("an unknown escape", {"x": STRING}, r'{"inputs": "\x"}', "Invalid escape character in string."),
    Refused("a short escape", {"x": STRING}, r'{"inputs": "\u12"}', "Incorrect hex digit after"),
    Refused(
        "half a surrogate pair", {"x": STRING}, r'{"inputs": "\ud83d"}', "The surrogate pair in string is invalid."
    ),
    Refused("a wrong surrogate pair", {"x": STRING}, r'{"inputs": "\ud83d\u0041"}', "surrogate pair"),
    Refused("a low surrogate", {"x": STRING}, r'{"inputs": "\ude00"}', "surrogate pair"),
    Refused("no fraction", {"x": FLOAT}, '{"inputs": 1.}', "Miss fraction part in number."),
    Refused("no exponent", {"x": FLOAT}, '{"inputs": 1e}', "Miss exponent in number."),
    Refused("no exponent behind a fraction", {"x": FLOAT}, '{"inputs": 1.5e+}', "Miss exponent in number."),
    Refused("beyond a double", {"x": FLOAT}, '{"inputs": 1e400}', "Number too big to be stored in double."),
    Refused("zero times too much", {"x": FLOAT}, '{"inputs": 0e309}', "Number too big to be stored in double."),
    Refused("zeros times too much", {"x": FLOAT}, '{"inputs": -0.0E+0400}', "Number too big to be stored in double."),
    Refused("nan in small letters", {"x": FLOAT}, '{"inputs": nan}', "Invalid value."),
    Refused("a plus sign", {"x": FLOAT}, '{"inputs": +1}', "Invalid value."),
    Refused("NUL", {"x": FLOAT}, b'{"inputs": \0}', "Invalid value."),
    # Signatures
    Refused(
        "unknown signature",
        {"x": INT32},
        '{"signature_name": "nope", "instances": [1]}',
        'Serving signature name: "nope" not found in signature def',
    ),
    Refused("before what else is wrong", {"x": INT32}, '{"signature_name": "nope"}', "Serving signature name"),
    Refused(
        "a signature without inputs",
        {"x": INT32},
        '{"signature_name": "none", "instances": [1]}',
        "Failed to get input map for signature: none",
    ),
    # Rows
    Refused("instances are an object", {"x": INT32}, '{"instances": {"x": 1}}', "'instances' to be an list/array"),
    Refused("no instances", {"x": INT32}, '{"instances": []}', "No values in 'instances' array"),
    Refused("a plain list for two inputs", TWO, '{"instances": [1]}', "instances is a plain list, but expecting"),
    Refused(
        "an input is missing", TWO, '{"instances": [{"int_tensor": 1}]}', "keys must be equal to: int_tensor,str_tensor"
    ),
    Refused("an input too many", {"x": INT32}, '{"instances": [{"x": 1, "y": 1}]}', "does not have named input: y"),
    Refused("an empty object", {"x": INT32}, '{"instances": [{}]}', "keys must be equal to: x"),
    Refused("rows: no JSON form", {"x": HALF}, '{"instances": [1]}', "Error: UNIMPLEMENTED: Conversion of JSON Value"),
    # Columns
    Refused("a plain value for two inputs", TWO, '{"inputs": [1]}', "inputs is a plain value/list, but expecting"),
    Refused("a column is missing", TWO, '{"inputs": {"int_tensor": 1}}', "Missing named input: str_tensor"),
    Refused("an empty name is no name", {"x": INT32}, '{"inputs": {"": 1}}', "Missing named input: x"),
    Refused("columns: a name with NUL", {"x": INT32}, r'{"inputs": {"x\u0000": 1}}', "Missing named input: x"),
    # Shapes
    Refused("ragged", {"x": INT32}, '{"inputs": [[1], [2, 3]]}', "Encountered list at unexpected size: 2 at level: 1"),
    Refused(
        "too deep", {"x": INT32}, '{"inputs": [[1], [[2]]]}', "Encountered list at unexpected level: 2 expected < 2"
    ),
    Refused("not deep enough", {"x": INT32}, '{"inputs": [[1], 2]}', "found at incorrect level: 2"),
    # Types
    Refused("1.0 for an integer", {"x": INT32}, '{"inputs": 1.0}', "Type: Number is not of expected type: int32"),
    Refused("2^31 for int32", {"x": INT32}, '{"inputs": 2147483648}', "expected type: int32"),
    Refused("2^31 for uint8", {"x": UINT8}, '{"inputs": 2147483648}', "expected type: uint8"),
    Refused("-1 for uint32", {"x": UINT32}, '{"inputs": -1}', "expected type: uint32"),
    Refused("2^32 for uint32", {"x": UINT32}, '{"inputs": 4294967296}', "expected type: uint32"),
    Refused("2^63 for int64", {"x": INT64}, f'{{"inputs": {1 << 63}}}', "expected type: int64"),
    Refused("2^64 for uint64", {"x": UINT64}, f'{{"inputs": {1 << 64}}}', "expected type: uint64"),
    Refused("1 for a bool", {"x": BOOL}, '{"inputs": 1}', "Type: Number is not of expected type: bool"),
    Refused("true for a number", {"x": INT32}, '{"inputs": true}', "Type: True is not of expected type: int32"),
    Refused("false for a float", {"x": FLOAT}, '{"inputs": false}', "Type: False is not of expected type: float"),
    Refused("null", {"x": FLOAT}, '{"inputs": null}', "Type: Null is not of expected type: float"),
    Refused("text for a number", {"x": FLOAT}, '{"inputs": "1"}', "Type: String is not of expected type: float"),
    Refused("a number for text", {"x": STRING}, '{"inputs": 1}', "Type: Number is not of expected type: string"),
    Refused("base64 for a number", {"x": INT32}, '{"inputs": {"b64": "aGk="}}', "Type: Object is not of expected type"),
    Refused(
        "an object for text",
        {"x": STRING},
        '{"instances": [["a"], [{"c": "d"}]]}',
        "not formatted correctly for base64",
    ),
    Refused(
        "b64 twice", {"x": STRING}, '{"inputs": [{"b64": "aGk=", "b64": "aGk="}]}', "not formatted correctly for base64"
    ),
    *(
        Refused(f"base64 {text!r}", {"x": STRING}, f'{{"inputs": {{"b64": "{text}"}}}}', "Unable to base64 decode")
        for text in ("a", "aGk==", "aG=k", "a-_k", "====", "=")
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_what_the_server_refuses(case: Refused) -> None:
    with pytest.raises(ConversionError) as caught:
        converted(case.inputs, case.body)
    assert case.phrase in str(caught.value)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16, UINT16, COMPLEX64, 11, 99])
def test_types_without_a_json_form(dtype: int) -> None:
    with pytest.raises(ConversionError, match=r"Conversion of JSON Value: \.\.\. to type: ") as caught:
        converted({"x": dtype}, '{"inputs": [1]}')
    assert caught.value.code == "UNIMPLEMENTED"
    # Without a value there is nothing to convert.
    assert converted({"x": dtype}, '{"inputs": []}').inputs["x"].dtype == dtype


def test_values_are_not_in_errors() -> None:
    for body in ('{"inputs": "secret"}', '{"instances": ["secret"]}', '{"secret": ["secret"]}', '["secret"]'):
        with pytest.raises(ConversionError) as caught:
            converted({"x": INT32}, body)
        assert "secret" not in str(caught.value)
