"""Requests brought to other batch sizes: what the batch is, what is refused and why, and bytes that no SDK writes. That
TensorFlow reads the values as meant: tests/replay/test_batch_sizes.py."""

from __future__ import annotations

import pytest

from capture.dialects.tfserving_calls import READERS
from capture.errors import UserError
from capture.export import batch as module
from capture.export.batch import Unexpandable, batch_of, batch_sizes, expanded
from capture.schema import messages
from capture.schema.wire import length_delimited
from capture.signature import SignatureDef, TensorInfo
from tests.support.calls import CLASSIFY, REGRESS, multi_inference, of_examples, predict

FLOAT, STRING = 1, 7


def defs(**inputs: tuple[int, ...] | None) -> dict[str, SignatureDef]:
    infos = {alias: TensorInfo(f"{alias}:0", FLOAT, shape) for alias, shape in inputs.items()}
    return {"serving_default": SignatureDef(infos, {"y": TensorInfo("y:0")})}


def tensors(body: bytes, method: str = "Predict") -> dict[str, tuple[int, ...] | None]:
    return {one.name: one.shape for one in READERS[method](body).tensors}


def bring(body: bytes, model: dict[str, SignatureDef], size: int, method: str = "Predict") -> bytes:
    return expanded(body, READERS[method](body).signature, model, size)


def contents(body: bytes, alias: str = "x") -> bytes:
    """The tensor_content of an input."""
    tensor = messages.PredictRequest.FromString(body).inputs[alias].SerializeToString()
    return b"".join(tensor[f.value : f.end] for f in module.fields(tensor) if f.number == 4)


def test_rows_are_repeated_in_turn() -> None:
    body = predict({"x": (FLOAT, (2, 1))}, fill=b"aaaabbbb")
    assert batch_of(body, READERS["Predict"](body).signature, defs(x=(-1, 1))) == 2
    three = bring(body, defs(x=(-1, 1)), 3)
    assert (tensors(three), contents(three)) == ({"x": (3, 1)}, b"aaaabbbbaaaa")
    one = bring(body, defs(x=(-1, 1)), 1)
    assert (tensors(one), contents(one)) == ({"x": (1, 1)}, b"aaaa")


def test_a_request_of_that_size_is_the_same_bytes() -> None:
    body = predict({"x": (FLOAT, (2,))}, fill=b"aaaabbbb")
    assert bring(body, defs(x=(-1,)), 2) is body


def test_inputs_without_a_batch_stay_as_they_are() -> None:
    body = predict({"x": (FLOAT, (2,)), "keep_rate": (FLOAT, ()), "fixed": (FLOAT, (2,))}, fill=b"aaaabbbb")
    done = bring(body, defs(x=(-1,), keep_rate=(), fixed=(2,)), 8)
    assert tensors(done) == {"x": (8,), "keep_rate": (), "fixed": (2,)}
    assert contents(done, "fixed") == b"aaaabbbb"


def test_what_says_nothing_of_rows_is_kept() -> None:
    """Unknown fields, of the request and of a tensor; the names of dimensions."""
    shape = messages.TensorShape()
    shape.dim.add(size=1, name="rows")
    tensor = (
        b"\x08\x01" + length_delimited(2, shape.SerializeToString()) + b"\x98\x06\x07" + length_delimited(4, b"abcd")
    )
    entry = length_delimited(1, b"x") + length_delimited(2, tensor)
    body = length_delimited(1, length_delimited(1, b"m")) + b"\xa0\x06\x01" + length_delimited(2, entry)
    done = bring(body, defs(x=(-1,)), 2)
    for kept in (b"\x98\x06\x07", b"\xa0\x06\x01", b"rows"):
        assert kept in done
    assert contents(done) == b"abcdabcd"


def float_tensor(rows: int, values: bytes) -> bytes:
    """A PredictRequest with x of ``rows`` floats and this float_val on the wire."""
    tensor = b"\x08\x01" + length_delimited(2, length_delimited(2, bytes([8, rows]))) + values
    entry = length_delimited(1, b"x") + length_delimited(2, tensor)
    return bytes(length_delimited(2, entry))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (b"", b""),
        (length_delimited(5, b"aaaa"), b"aaaa"),
        (length_delimited(5, b"aaaabbbb"), b"aaaabbbbbbbbaaaabbbb"),
        (b"\x2daaaa\x2dbbbb", b"aaaabbbbbbbbaaaabbbb"),
        (b"\x2daaaa" + length_delimited(5, b"bbbbccccdddd"), b"aaaabbbbccccaaaabbbb"),
    ],
    ids=["none is zeros", "one is for all", "the last repeats", "not packed", "both, and more than there is room for"],
)
def test_typed_values(values: bytes, expected: bytes) -> None:
    done = bring(float_tensor(3, values), defs(x=(-1,)), 5)
    tensor = messages.PredictRequest.FromString(done).inputs["x"].SerializeToString()
    assert b"".join(tensor[f.value : f.end] for f in module.fields(tensor) if f.number == 5) == expected


@pytest.mark.parametrize(
    ("inputs", "model", "reason"),
    [
        ({"x": (2,), "y": (3,)}, {"x": (-1,), "y": (-1,)}, r"its inputs disagree on the batch \(x 2, y 3\)"),
        ({"x": (2,)}, {"x": (2,)}, "it has no batch"),
        ({"x": ()}, {"x": ()}, "it has no batch"),
        ({"x": (2,)}, {"x": None}, "input x has no rank in the model"),
        ({"x": ()}, {"x": (-1,)}, "input x has no dimension in the request"),
        ({"x": (2,)}, {"x": (-1, 2)}, "input x has rank 1 in the request, 2 in the model"),
        ({"x": (2,), "y": (2, 1)}, {"x": (-1,), "y": (-1,)}, "input y has rank 2 in the request, 1 in the model"),
        ({"x": (0,)}, {"x": (-1,)}, "it has 0 rows"),
        ({"z": (2,)}, {"x": (-1,)}, "the model has no input z"),
        ({"x": (3,)}, {"x": (-1,)}, "input x: 8 bytes of content are no 3 rows"),
    ],
)
def test_what_has_no_one_batch_is_refused_by_name(
    inputs: dict[str, tuple[int, ...]], model: dict[str, tuple[int, ...] | None], reason: str
) -> None:
    body = predict({name: (FLOAT, shape) for name, shape in inputs.items()}, fill=b"aaaabbbb")
    with pytest.raises(Unexpandable, match=reason):
        bring(body, defs(**model), 8)


def test_an_input_that_is_there_twice_is_refused() -> None:
    body = predict({"x": (FLOAT, (2,))}, fill=b"aaaabbbb")
    with pytest.raises(Unexpandable, match="input x is in it twice"):
        bring(body + float_tensor(2, b""), defs(x=(-1,)), 8)


def test_what_would_be_too_large_is_refused_unmade() -> None:
    body = predict({"x": (FLOAT, (1, 1 << 20))}, fill=b"\0" * (4 << 20))
    with pytest.raises(Unexpandable, match="would take more than 256 MiB"):
        bring(body, defs(x=(-1, 1 << 20)), 65)


def test_a_few_values_for_very_many_elements_are_refused_unmade() -> None:
    shape = length_delimited(2, b"\x08\x02") + length_delimited(2, b"\x08" + b"\x80\x80\x80\x80\x01")
    tensor = b"\x08\x01" + length_delimited(2, shape) + length_delimited(5, b"aaaabbbb")
    body = length_delimited(2, length_delimited(1, b"x") + length_delimited(2, tensor))
    with pytest.raises(Unexpandable, match=r"^input x: \d+ elements are too many"):
        bring(body, defs(x=(-1, -1)), 3)


ROWS = ((("age", 1.0),), (("age", 2.0),))


@pytest.mark.parametrize("context", [None, (("job", b"nurse"),)], ids=["plain", "context"])
def test_examples_are_repeated(context: tuple[tuple[str, bytes], ...] | None) -> None:
    body = of_examples(ROWS, context=context)
    model = {"serving_default": SignatureDef({"inputs": TensorInfo("in:0", STRING, (-1,))}, {})}
    done = messages.ExamplesRequest.FromString(bring(body, model, 3, "Classify"))
    before = messages.ExamplesRequest.FromString(body)
    kind = "example_list" if context is None else "example_list_with_context"
    rows = getattr(before.input, kind).examples
    assert list(getattr(done.input, kind).examples) == [rows[0], rows[1], rows[0]]
    if context is not None:
        assert done.input.example_list_with_context.context == before.input.example_list_with_context.context
    assert done.model_spec == before.model_spec


def test_examples_in_pieces() -> None:
    """A list of the other kind that was there before does not count, and two parts are one list."""
    body = of_examples((ROWS[0],), context=(("job", b"x"),)) + of_examples((ROWS[0],)) + of_examples((ROWS[1],))
    model = {"serving_default": SignatureDef({"inputs": TensorInfo("in:0", STRING, (-1,))}, {})}
    done = bring(body, model, 4, "Regress")
    assert tensors(done, "Regress") == {"inputs": (4,)}
    ages = [
        one.features.feature["age"].float_list.value[0]
        for one in messages.ExamplesRequest.FromString(done).input.example_list.examples
    ]
    assert ages == [1.0, 2.0, 1.0, 2.0]


def test_every_task_of_multi_inference_has_the_batch() -> None:
    body = multi_inference((CLASSIFY, "a"), (REGRESS, "b"), examples=ROWS)
    open_, fixed = (SignatureDef({"inputs": TensorInfo("in:0", STRING, shape)}, {}) for shape in ((-1,), (2,)))
    assert tensors(bring(body, {"a": open_, "b": open_}, 5, "MultiInference"), "MultiInference") == {"inputs": (5,)}
    with pytest.raises(Unexpandable, match="has no batch"):
        bring(body, {"a": open_, "b": fixed}, 5, "MultiInference")


def test_sizes() -> None:
    assert batch_sizes("32, 1,8,1") == (1, 8, 32)
    for text in ("0", "1,,2", "-1", "a", "", "1048577", "9" * 5000, "²"):
        with pytest.raises(UserError, match="not a list of batch sizes"):
            batch_sizes(text)
    with pytest.raises(UserError, match="65 sizes; at most 64"):
        batch_sizes(",".join(map(str, range(1, 66))))
