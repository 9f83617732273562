"""JSON answers. Cases named after tests of tensorflow/serving's util/json_tensor_test.cc have their tensors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from replay import rest_answer, tf_protos
from replay.predict import RequestError

FIELDS = {1: "float_val", 2: "double_val", 3: "int_val", 7: "string_val", 8: "scomplex_val", 9: "int64_val",
          10: "bool_val", 23: "uint64_val"}  # fmt: skip


def tensor(dtype: int, shape: list[int], values: list[Any]) -> Any:
    made = tf_protos.load("tensorflow.core.framework.tensor_pb2").TensorProto(dtype=dtype)
    for size in shape:
        made.tensor_shape.dim.add(size=size)
    getattr(made, FIELDS[dtype]).extend(values)
    return made


INTS = tensor(3, [2, 3, 2], [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2])
STRINGS = tensor(7, [2, 2], [b"foo", b"bar", b"baz", b"bat"])
BYTES = tensor(7, [2, 2], [b"hello", b"world", b"tf", b"serving"])
NESTED = [[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 0], [1, 2]]]
B64 = [[{"b64": "aGVsbG8="}, {"b64": "d29ybGQ="}], [{"b64": "dGY="}, {"b64": "c2VydmluZw=="}]]
FLOATS, DOUBLES = tensor(1, [2, 1], [1, 2]), tensor(2, [2], [8, 9])
NAMED = {
    "int_tensor": INTS, "str_tensor": STRINGS, "float_tensor": FLOATS, "double_scalar_tensor": DOUBLES,
    "str_tensor_bytes": BYTES,
}  # fmt: skip


@pytest.mark.parametrize(
    ("outputs", "rows", "columns"),
    [
        ({"int_tensor": INTS}, NESTED, NESTED),
        ({"int_tensor": tensor(3, [5], [1, 2, 3, 4, 5])}, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
        ({"str_tensor_bytes": BYTES}, B64, B64),
        (
            NAMED,
            [
                {"double_scalar_tensor": 8.0, "float_tensor": [1.0], "int_tensor": NESTED[0],
                 "str_tensor": ["foo", "bar"], "str_tensor_bytes": B64[0]},
                {"double_scalar_tensor": 9.0, "float_tensor": [2.0], "int_tensor": NESTED[1],
                 "str_tensor": ["baz", "bat"], "str_tensor_bytes": B64[1]},
            ],
            {"double_scalar_tensor": [8.0, 9.0], "float_tensor": [[1.0], [2.0]], "int_tensor": NESTED,
             "str_tensor": [["foo", "bar"], ["baz", "bat"]], "str_tensor_bytes": B64},
        ),
        ({"x": tensor(3, [0, 2], [])}, [], []),
        ({"x": tensor(7, [0, 1, 2], []), "y": tensor(1, [0, 3, 4], [])}, [], {"x": [], "y": []}),
        ({"x": tensor(10, [2], [True, False])}, [True, False], [True, False]),
        ({"x": tensor(23, [1], [(1 << 64) - 1])}, [(1 << 64) - 1], [(1 << 64) - 1]),
    ],
    ids=["FromJsonSingleTensor", "FromJsonSingleScalarTensor", "FromJsonSingleBytesTensor",
         "FromJsonMultipleNamedTensors", "FromJsonSingleZeroBatchTensor", "FromJsonMultipleZeroBatchTensors",
         "bool", "uint64"],
)  # fmt: skip
def test_tensors(outputs: dict[str, Any], rows: Any, columns: Any) -> None:
    assert json.loads(rest_answer.predictions(outputs, row=True)) == {"predictions": rows}
    assert json.loads(rest_answer.predictions(outputs, row=False)) == {"outputs": columns}


def test_numbers_are_written_as_the_server_writes_them() -> None:
    # FromJsonSingleFloatTensorSixDigitPrecision, FromJsonSingleFloatTensorNonFinite, and more digits where they count.
    values = [9000000, 999999, 0.5, 0.0003, 0.00003, 555557.5, float("nan"), float("inf"), -float("inf"), 0.1, 1 / 3]
    text = rest_answer.predictions({"x": tensor(1, [11], values)}, row=True).decode()
    assert text.partition(": ")[2] == (
        "[9e+06, 999999.0, 0.5, 0.0003, 3e-05, 555557.5, NaN, Infinity, -Infinity, 0.1, 0.333333343]\n}"
    )
    doubles = rest_answer.predictions({"x": tensor(2, [3], [1 / 3, 0.1, 3.0])}, row=True).decode()
    assert doubles.partition(": ")[2] == "[0.33333333333333331, 0.1, 3.0]\n}"


def test_text_passes_as_it_is() -> None:
    text = rest_answer.predictions({"x": tensor(7, [3], [b'"\\\n\x01', "\u00e9".encode(), b"\xff"])}, row=True)
    assert text == b'{\n    "predictions": ["\\"\\\\\\n\\u0001", "\xc3\xa9", "\xff"]\n}'


@pytest.mark.parametrize(
    ("outputs", "row", "phrase"),
    [
        ({}, True, "empty tensor map"),
        ({"x": tensor(8, [2], [1, 2, 3, 4])}, True, "tensor type: complex64"),
        ({"x": tensor(3, [], [1])}, True, "has no shape information"),
        ({"x": INTS, "y": tensor(7, [1, 3], [b"a", b"b", b"c"])}, True, "inconsistent batch size: 1 expecting: 2"),
        ({"x": tensor(3, [0, 2], []), "y": tensor(7, [1, 2], [b"a", b"b"])}, True, "inconsistent batch size"),
    ],
)
def test_outputs_without_a_json_form(outputs: dict[str, Any], row: bool, phrase: str) -> None:
    with pytest.raises(RequestError, match=phrase) as caught:
        rest_answer.predictions(outputs, row=row)
    assert caught.value.code == 3


def test_a_scalar_has_a_column_form() -> None:
    assert rest_answer.predictions({"x": tensor(3, [], [1])}, row=False) == b'{\n    "outputs": 1\n}'


def test_results_and_errors() -> None:
    result = tf_protos.load("tensorflow_serving.apis.classification_pb2").ClassificationResult()
    one = result.classifications.add()
    one.classes.add(label="car", score=0.2)
    one.classes.add(label="bike", score=0.7)
    assert json.loads(rest_answer.classifications(result)) == {"results": [[["car", 0.2], ["bike", 0.7]]]}
    regression = tf_protos.load("tensorflow_serving.apis.regression_pb2").RegressionResult()
    for value in (0.2, 0.9, 1.0, float("inf")):
        regression.regressions.add(value=value)
    assert b"[0.2, 0.9, 1.0, Infinity]" in rest_answer.regressions(regression)
    assert json.loads(rest_answer.error('Bad key: "key"')) == {"error": 'Bad key: "key"'}
