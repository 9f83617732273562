"""Scrubbed requests: the wire signature stays, values go, and what cannot be scrubbed says so. TensorFlow's and EAS's
own messages read them as meant: tests/replay/test_scrub.py."""

from __future__ import annotations

import struct

import pytest

from capture.dialects.base import Route
from capture.dialects.table import BY_NAME
from capture.export import scrub_values
from capture.export.scrub import scrub, scrubbed_sample
from capture.export.scrub_rules import RuleError, read_rules, vocabulary_files
from capture.export.scrub_values import Unscrubbable
from capture.schema import messages
from capture.schema.wire import fields, length_delimited
from capture.store.base import ModelVersion, RecordKey, Sample
from tests.support.calls import CLASSIFY, REGRESS, eas, multi_inference, of_examples, predict

FLOAT, INT32, STRING, INT64 = 1, 3, 7, 9
SECRET = b"secret-4711"


def route(dialect: str, method: str, path: str = "") -> Route:
    return Route(BY_NAME[dialect], method, "m", path)


PREDICT = route("tfserving-grpc", "Predict")


def scrubbed(body: bytes, *rules: str, where: Route = PREDICT, files: dict[str, str] | None = None) -> bytes:
    return scrub(where, body, read_rules(rules, files or {}), "m")


def with_tensor(dtype: int, dims: tuple[int, ...], values: bytes, alias: bytes = b"x") -> bytes:
    """A PredictRequest with one input of these values on the wire, a named dimension and unknown fields."""
    shape = messages.TensorShape()
    for size in dims:
        shape.dim.add(size=size, name="secret-4711")
    tensor = bytes([8, dtype]) + length_delimited(2, shape.SerializeToString()) + values + length_delimited(99, SECRET)
    entry = length_delimited(1, alias) + length_delimited(2, tensor)
    spec = length_delimited(1, b"m") + length_delimited(50, SECRET)
    return length_delimited(1, spec) + length_delimited(2, entry) + length_delimited(6, SECRET)


def values_of(body: bytes, number: int) -> list[bytes]:
    """Payloads of a field of the only input."""
    tensor = next(iter(messages.PredictRequest.FromString(body).inputs.values())).SerializeToString()
    return [tensor[part.value : part.end] for part in fields(tensor) if part.number == number]


def strings(*values: bytes) -> bytes:
    return b"".join(length_delimited(8, value) for value in values)


@pytest.mark.parametrize(
    ("dtype", "dims", "given", "field", "left"),
    [
        (FLOAT, (2,), length_delimited(4, struct.pack("<2f", 1.5, 2.5)), 4, [bytes(8)]),
        (FLOAT, (2,), length_delimited(5, struct.pack("<2f", 1.5, 2.5)), 5, [bytes(8)]),
        (FLOAT, (2,), b"\x2d" + struct.pack("<f", 1.5) + length_delimited(5, bytes(4)), 5, [bytes(8)]),
        (FLOAT, (2,), b"", 5, []),
        (2, (1,), length_delimited(6, struct.pack("<d", 1.5)), 6, [bytes(8)]),
        (INT64, (3,), length_delimited(10, b"\xff\xff\x01\x02\x80\x01"), 10, [bytes(3)]),
        (INT32, (1,), b"\x38\x7b", 7, [b"\0"]),
        (10, (2,), length_delimited(11, b"\1\1"), 11, [b"\0\0"]),
        (8, (1,), length_delimited(9, struct.pack("<2f", 1.5, 2.5)), 9, [bytes(8)]),
        (19, (2,), length_delimited(13, b"\x80\x78\x01"), 13, [b"\0\0"]),
        (14, (2,), length_delimited(4, b"\x80\x3f\x80\x3f"), 4, [bytes(4)]),
        # One value for all elements stays one value.
        (FLOAT, (1000,), length_delimited(5, struct.pack("<f", 1.5)), 5, [bytes(4)]),
    ],
    ids=[
        "content",
        "packed",
        "mixed",
        "none",
        "double",
        "varints",
        "int",
        "bool",
        "complex",
        "half",
        "bfloat16",
        "one",
    ],
)
def test_numbers_become_zero_and_stay_as_many(
    dtype: int, dims: tuple[int, ...], given: bytes, field: int, left: list[bytes]
) -> None:
    done = scrubbed(with_tensor(dtype, dims, given))
    assert values_of(done, field) == left
    assert SECRET not in done


def test_values_of_another_dtype_and_unknown_fields_are_left_out() -> None:
    done = scrubbed(with_tensor(FLOAT, (1,), length_delimited(5, bytes(4)) + strings(SECRET)))
    assert SECRET not in done
    assert PREDICT.dialect.read(PREDICT, done).signature.model == "m"


def test_content_wins_over_values() -> None:
    given = length_delimited(5, struct.pack("<f", 1.5)) + length_delimited(4, struct.pack("<f", 2.5))
    done = scrubbed(with_tensor(FLOAT, (1,), given))
    assert (values_of(done, 4), values_of(done, 5)) == ([bytes(4)], [])


def test_of_an_input_sent_twice_the_first_is_gone() -> None:
    body = with_tensor(STRING, (1,), strings(SECRET)) + with_tensor(STRING, (1,), strings(b"later"))
    done = scrubbed(body, "m:x=constant:c")
    assert SECRET not in done
    assert b"later" not in done


def test_constants_are_of_the_dtype() -> None:
    float_content = with_tensor(FLOAT, (2,), length_delimited(4, bytes(8)))
    assert values_of(scrubbed(float_content, "m:x=constant:1.5"), 4) == [struct.pack("<2f", 1.5, 1.5)]
    negative = with_tensor(INT64, (1,), length_delimited(10, b"\1"))
    assert values_of(scrubbed(negative, "*:x=constant:-1"), 10) == [b"\xff" * 9 + b"\1"]
    half = with_tensor(19, (1,), length_delimited(13, b"\1"))
    assert values_of(scrubbed(half, "m:x=constant:1"), 13) == [b"\x80\x78"]
    for wrong in ("x", "1.5", "4294967296"):
        with pytest.raises(Unscrubbable, match=r"^input x: a value of its rule is no number of its dtype \(3\)$"):
            scrubbed(with_tensor(INT32, (1,), b"\x38\x01"), f"m:x=constant:{wrong}")


def test_strings_need_a_rule_and_the_error_names_it() -> None:
    body = with_tensor(STRING, (2,), strings(SECRET, b"b"))
    with pytest.raises(Unscrubbable, match=r"^input x: holds strings, which has no rule; say 'm:x=constant:VALUE'"):
        scrubbed(body)
    with pytest.raises(Unscrubbable, match="has no zero"):
        scrubbed(body, "m:x=zero")
    with pytest.raises(Unscrubbable, match=r"no tf\.Examples"):
        scrubbed(body, "m:x=example")
    assert values_of(scrubbed(body, "m:x=constant:c"), 8) == [b"c", b"c"]
    assert values_of(scrubbed(body, "m:*=constant:c"), 8) == [b"c", b"c"]
    assert values_of(scrubbed(body, "*:*=constant:c", "m:x=constant:d"), 8) == [b"d", b"d"]
    assert values_of(scrubbed(body, "m:x=keep"), 8) == [SECRET, b"b"]
    assert b"\x9a\x06" not in scrubbed(body, "m:x=keep"), "an unknown field is kept with the values"


def test_a_vocabulary_is_dealt_in_turn_whatever_the_values_were() -> None:
    rule, files = "m:x=vocabulary:f", {"f": "a\nb\n"}
    body = with_tensor(STRING, (3,), strings(b"x", b"x", b"x"))
    other = with_tensor(STRING, (3,), strings(SECRET, b"y", b"z"))
    assert values_of(scrubbed(body, rule, files=files), 8) == [b"a", b"b", b"a"]
    assert scrubbed(body, rule, files=files) == scrubbed(other, rule, files=files)


def test_strings_in_tensor_content() -> None:
    content = length_delimited(4, b"\x0b\x01" + SECRET + b"b")
    body = with_tensor(STRING, (2,), content)
    assert values_of(scrubbed(body, "m:x=constant:c"), 8) == [b"c", b"c"]
    with pytest.raises(Unscrubbable, match=r"string content and shape disagree|does not end"):
        scrubbed(with_tensor(STRING, (3,), content), "m:x=constant:c")


def test_no_strings_need_no_rule() -> None:
    assert values_of(scrubbed(with_tensor(STRING, (0,), b"")), 8) == []


def test_too_long_a_constant_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_values, "MAX_SCRUBBED_BYTES", 10)
    with pytest.raises(Unscrubbable, match="give shorter values"):
        scrubbed(with_tensor(STRING, (3,), strings(b"", b"", b"")), "m:x=constant:abcdef")


# --- tf.Examples ------------------------------------------------------------------------------------------------------


def example(**features: list[bytes] | list[float] | list[int]) -> bytes:
    made = messages.Example()
    for name, values in features.items():
        feature = made.features.feature[name]
        lists = {bytes: feature.bytes_list, float: feature.float_list, int: feature.int64_list}
        lists[type(values[0])].value.extend(values)
    return bytes(made.SerializeToString(deterministic=True))


EXAMPLE = example(age=[30.5, 31.5], city=[SECRET, b"Rome"], ids=[47, 11, -3])
NEUTRAL = example(age=[0.0, 0.0], city=[b"0", b"0"], ids=[0, 0, 0])


def read(serialized: bytes) -> bytes:
    return bytes(messages.Example.FromString(serialized).SerializeToString(deterministic=True))


def test_strings_that_are_examples_are_made_anew() -> None:
    done = values_of(scrubbed(with_tensor(STRING, (2,), strings(EXAMPLE, EXAMPLE))), 8)
    assert [read(one) for one in done] == [NEUTRAL, NEUTRAL]


@pytest.mark.parametrize(
    "other",
    [b"", b"\n\0", SECRET, EXAMPLE + length_delimited(9, b"x"), EXAMPLE[:-1], length_delimited(1, b"\n\2\n\0")],
    ids=["empty", "no-feature", "text", "more", "cut", "no-value"],
)
def test_what_is_not_plainly_an_example_needs_a_rule(other: bytes) -> None:
    with pytest.raises(Unscrubbable, match="has no rule"):
        scrubbed(with_tensor(STRING, (2,), strings(EXAMPLE, other)))
    assert values_of(scrubbed(with_tensor(STRING, (2,), strings(EXAMPLE, other)), "m:*=constant:c"), 8) == [b"c", b"c"]


def test_features_have_rules_of_their_own() -> None:
    body = with_tensor(STRING, (1,), strings(EXAMPLE))
    rules = ("m:x/city=vocabulary:f", "m:x/age=constant:2", "m:x/ids=keep")
    (done,) = values_of(scrubbed(body, *rules, files={"f": "Oslo\nBern"}), 8)
    assert read(done) == example(age=[2.0, 2.0], city=[b"Oslo", b"Bern"], ids=[47, 11, -3])
    (done,) = values_of(scrubbed(body, "m:x/*=constant:any"), 8)
    assert read(done) == example(age=[0.0, 0.0], city=[b"any", b"any"], ids=[0, 0, 0])
    with pytest.raises(Unscrubbable, match="input x: feature city holds strings, which have no zero"):
        scrubbed(body, "m:x/city=zero")


@pytest.mark.parametrize("context", [None, (("city", SECRET),)], ids=["list", "with-context"])
@pytest.mark.parametrize("method", ["Classify", "Regress", "MultiInference"])
def test_the_examples_of_classify_and_its_kin(method: str, context: tuple[tuple[str, bytes]] | None) -> None:
    rows = [[("age", 30.5), ("city", SECRET)], [("n", 4711)]]
    if method == "MultiInference":
        body = multi_inference((CLASSIFY, "c"), (REGRESS, "r"), examples=rows, context=context)
    else:
        body = of_examples(rows, context=context)
    where = route("tfserving-grpc", method)
    body += length_delimited(70, SECRET)
    done = scrubbed(body, where=where)
    assert SECRET not in done
    kept = scrubbed(body, "m:inputs=keep", where=where)
    assert kept.count(SECRET) == body.count(SECRET) - 1
    made = messages.ExamplesRequest.FromString(done) if method != "MultiInference" else (
        messages.MultiInferenceRequest.FromString(done)
    )  # fmt: skip
    listed = made.input.example_list if context is None else made.input.example_list_with_context
    assert [set(one.features.feature) for one in listed.examples] == [{"age", "city"}, {"n"}]
    assert listed.examples[1].features.feature["n"].int64_list.value == [0]
    if context is not None:
        assert listed.context.features.feature["city"].bytes_list.value == [b"0"]
    with pytest.raises(Unscrubbable, match="its rule is example or keep, that of a feature m:inputs/FEATURE"):
        scrubbed(body, "m:inputs=constant:1", where=where)


# --- other kinds ------------------------------------------------------------------------------------------------------


def test_session_run() -> None:
    request = messages.SessionRunRequest(fetch=["y:0"])
    request.model_spec.name = "m"
    feed = request.feed.add(name="x:0")
    feed.tensor.MergeFromString(b"\x08\x07" + strings(SECRET))
    where = route("tfserving-grpc", "SessionRun")
    with pytest.raises(Unscrubbable, match="input x:0: holds strings"):
        scrubbed(request.SerializeToString(), where=where)
    done = scrubbed(request.SerializeToString(), "m:x:0=constant:c", where=where)
    assert SECRET not in done
    assert messages.SessionRunRequest.FromString(done).fetch == ["y:0"]


def test_eas_tensorflow() -> None:
    body = messages.EasPredictRequest(signature_name="s", output_filter=["y"])
    floats, words = body.inputs["f"], body.inputs["w"]
    floats.dtype, words.dtype = FLOAT, STRING
    floats.array_shape.dim.extend([1, 2])
    floats.float_val.extend([1.5, 2.5])
    words.array_shape.dim.append(1)
    words.string_val.append(SECRET)
    where = route("eas-tensorflow", "predict")
    done = messages.EasPredictRequest.FromString(
        scrubbed(body.SerializeToString() + length_delimited(9, SECRET), "m:w=constant:c", where=where)
    )
    body.inputs["f"].float_val[:] = [0.0, 0.0]
    body.inputs["w"].string_val[:] = [b"c"]
    assert done == body


def test_eas_pytorch() -> None:
    body = messages.TorchPredictRequest(output_filter=[0, 2], debug_level=1)
    for array, values in ((body.inputs.add(), [1.5]), (body.map_inputs["named"], [2.5, 3.5])):
        array.dtype = FLOAT
        array.array_shape.dim.append(len(values))
        array.float_val.extend(values)
    where = route("eas-pytorch", "predict")
    done = messages.TorchPredictRequest.FromString(scrubbed(body.SerializeToString(), "m:[0]=constant:7", where=where))
    body.inputs[0].float_val[:] = [7.0]
    body.map_inputs["named"].float_val[:] = [0.0, 0.0]
    assert done == body


def test_eas_onnx() -> None:
    body = messages.OnnxDataProto()
    body.tensors.add(name="x", dims=[2], data_type=1, raw_data=struct.pack("<2f", 1.5, 2.5))
    body.tensors.add(name="n", dims=[1], data_type=7, raw_data=struct.pack("<q", 4711))
    where = route("eas-onnx", "predict")
    done = messages.OnnxDataProto.FromString(scrubbed(body.SerializeToString(), "m:n=constant:-2", where=where))
    assert [one.raw_data for one in done.tensors] == [bytes(8), struct.pack("<q", -2)]


def test_other_kinds_are_refused_by_name() -> None:
    with pytest.raises(Unscrubbable, match="requests of eas-easyrec predict cannot be scrubbed"):
        scrubbed(b"", where=route("eas-easyrec", "predict"))


def test_a_sample_loses_its_compressed_form_and_a_free_path() -> None:
    key = RecordKey(ModelVersion("eas", "m", "1"), "d")
    sample = Sample(eas(), b"packed", {}, "/user/secret-4711", "", "proven", 1.0)
    done = scrubbed_sample(key, "predict", sample, read_rules((), {}))
    assert (done.wire_body, done.path) == (None, "")
    usual = scrubbed_sample(
        key, "predict", Sample(eas(), None, {}, "/api/predict/m", "", "proven", 1.0), read_rules((), {})
    )
    assert usual.path == "/api/predict/m"


def test_scrubbing_twice_changes_nothing() -> None:
    body = with_tensor(STRING, (2,), strings(EXAMPLE, EXAMPLE))
    done = scrubbed(body)
    assert scrubbed(done) == done
    plain = scrubbed(predict({"x": (FLOAT, (2,))}, fill=b"abcdefgh"))
    assert scrubbed(plain) == plain


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("user_id=zero", "no rule; write MODEL:INPUT=RULE"),
        ("m:user_id", "no rule; write"),
        ("m:=zero", "no rule; write"),
        ("m:x=blank", "no rule 'blank'; one of: zero, constant:VALUE, keep, vocabulary:FILE, example"),
        ("m:x=constant", "no rule 'constant'"),
        ("m:x=zero:1", "no rule 'zero:1'"),
        ("m:x=vocabulary:", "names no file"),
        ("m:x=vocabulary:f", "f is empty"),
    ],
)
def test_a_rule_that_is_none_says_what_one_looks_like(rule: str, why: str) -> None:
    with pytest.raises(RuleError, match="^" + rule) as error:
        read_rules([rule], {"f": ""})
    assert why in str(error.value)


def test_rules_are_said_once_and_tell_whether_they_applied() -> None:
    with pytest.raises(RuleError, match="m:x has a rule already"):
        read_rules(["m:x=zero", "m:x=keep"], {})
    rules = read_rules(["m:x:0=constant:a=b:c", "n:y=zero"], {})
    assert rules.find("m", "x:0") is not None
    assert rules.by_name["m", "x:0"].values == ("a=b:c",)
    assert rules.unused() == ["n:y"]
    assert vocabulary_files(["m:x=vocabulary:a:b", "m:y=zero"]) == ["a:b"]


def test_a_rest_body_is_scrubbed_as_the_grpc_request_that_is_made_of_it() -> None:
    key = RecordKey(ModelVersion("tfserving", "m", "1"), "d")
    json = Sample(b'{"instances": [1.5]}', None, {}, "/v1/models/m:predict", "", "proven", 1.0)
    with pytest.raises(Unscrubbable, match="it can be scrubbed in a tfrecord"):
        scrubbed_sample(key, "REST Predict row", json, read_rules((), {}))
    made = Sample(predict({"x": (FLOAT, (1,))}, fill=b"abcd"), None, {}, json.path, "", "proven", 1.0)
    done = scrubbed_sample(key, "Predict", made, read_rules((), {}))
    assert b"abcd" not in done.body
