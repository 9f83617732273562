"""Levels: what they tell apart, how they are written, and what the worker keeps by them."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.admission import MAX_CLASSES
from capture.dialects.base import Route
from capture.dialects.table import BY_NAME
from capture.dialects.tfserving_calls import read_predict
from capture.levels import Levels, matches, parse_level, short, split
from capture.schema.wire import length_delimited
from capture.settings_errors import SettingsError
from capture.signature import Call, TensorSpec
from capture.store.base import MAX_SHAPES, ModelVersion, open_store
from proxy.settings import from_data
from tests.capture.test_admission import START
from tests.capture.test_pipeline import Rig
from tests.support.calls import eas, predict, predict_response
from tests.support.tap_frames import GrpcFlow

FLOAT, INT32, STRING = 1, 3, 7
WIRE = "w1-0123456789abcdef0123456789abcdef"


def suffix(level: str, body: bytes) -> str:
    return parse_level(level).suffix(read_predict(body), body)


def shaped(*shape: int, outputs: tuple[str, ...] = ()) -> bytes:
    return predict({"x": (FLOAT, shape)}, outputs=outputs, fill=b"abcd")


def with_k(proto: bytes, *, shape: bytes = b"", dtype: int = INT32) -> bytes:
    """A PredictRequest of x and k, the fields of k's values as given."""
    tensor = bytes([8, dtype]) + length_delimited(2, shape) + proto
    return predict({"x": (FLOAT, (2,))}) + length_delimited(2, length_delimited(1, b"k") + length_delimited(2, tensor))


def test_names_add_nothing() -> None:
    assert suffix("names", shaped(2)) == ""


def test_shapes_tell_rank_dimensions_and_dtype_apart() -> None:
    found = [suffix("shapes", shaped(*shape)) for shape in ((2, 3), (3, 3), (2, 4), (2,), ())]
    assert len(set(found)) == 5
    assert suffix("shapes", predict({"x": (INT32, (2, 3))})) not in found
    # Neither values nor outputs are part of it: the same class on every signature.
    assert suffix("shapes", predict({"x": (FLOAT, (2, 3))}, outputs=("y",), fill=b"wxyz")) == found[0]


def test_buckets_round_the_batch_up() -> None:
    level = "shapes(batch=1,8,32)"
    assert suffix(level, shaped(5, 3)) == suffix(level, shaped(8, 3)) == suffix("shapes", shaped(8, 3))
    assert suffix(level, shaped(9, 3)) == suffix(level, shaped(32, 3))
    assert suffix(level, shaped(33, 3)) == suffix("shapes", shaped(33, 3))
    assert suffix(level, shaped(5, 3)) != suffix(level, shaped(5, 8))
    assert suffix(level, shaped()) == suffix("shapes", shaped())


@pytest.mark.parametrize(
    "same",
    [b"\x38\x05", b"\x3a\x01\x05", length_delimited(4, struct.pack("<i", 5)), b"\x38\x05\x38\x07"],
    ids=["not packed", "packed", "content", "more than there is room for"],
)
def test_values_are_the_same_however_they_are_sent(same: bytes) -> None:
    assert suffix("values(k)", with_k(same)) == suffix("values(k)", with_k(b"\x3a\x01\x05"))


def test_values_tell_apart() -> None:
    negative = b"\x38" + b"\xff" * 9 + b"\x01"
    bodies = [
        with_k(b"\x38\x05"),
        with_k(b"\x38\x06"),
        with_k(negative),
        with_k(b""),
        with_k(b"\x38\x05", dtype=9),
        shaped(2),
        with_k(b"\x38\x05", shape=b"\x12\x03\x08\xc8\x01"),
    ]
    assert len({suffix("values(k)", body) for body in bodies}) == len(bodies)
    # None is zero, and -1 is what it is in 32 bits.
    assert suffix("values(k)", with_k(b"")) == suffix("values(k)", with_k(b"\x38\x00"))
    assert suffix("values(k)", with_k(negative)) == suffix("values(k)", with_k(length_delimited(4, b"\xff" * 4)))
    # Other inputs do not count, unless the level says so.
    other = with_k(b"\x38\x05").replace(b"\x08\x02", b"\x08\x03", 1)
    assert suffix("values(k)", other) == suffix("values(k)", bodies[0])
    assert suffix("shapes+values(k)", other) != suffix("shapes+values(k)", bodies[0])


def test_values_of_strings_and_short_vectors() -> None:
    def texts(*values: bytes) -> bytes:
        return with_k(b"".join(length_delimited(8, one) for one in values), shape=b"\x12\x02\x08\x02", dtype=STRING)

    assert suffix("values(k)", texts(b"a", b"b")) != suffix("values(k)", texts(b"ab", b""))
    assert suffix("values(k)", texts(b"a")) == suffix("values(k)", texts(b"a", b"a"))


def test_values_of_an_eas_request() -> None:
    dialect = BY_NAME["eas-tensorflow"]
    one, same, other = (eas({"x": [1.0], "k": [value]}) for value in (3.0, 3.0, 4.0))
    found = [
        parse_level("values(k)").suffix(dialect.read(Route(dialect, "predict", "m", ""), body), body)
        for body in (one, same, other)
    ]
    assert found[0] == found[1] != found[2]


def rest(body: str, level: str = "values(k)") -> str:
    dialect = BY_NAME["tfserving-rest"]
    raw = body.encode("utf-8", "surrogateescape")
    call = dialect.read(Route(dialect, "REST Predict", "m", "/v1/models/m:predict"), raw)
    return parse_level(level).suffix(call, raw)


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (
            '{"inputs": {"x": [1], "k": 3}}',
            '{"inputs": {"k": 3.0, "x": [9]}, "more": 1}',
            '{"inputs": {"x": [1], "k": 4}}',
        ),
        ('{"inputs": {"k": [1, 2]}}', '{"inputs": {"k": [1.0, 2e0]}}', '{"inputs": {"k": [12, 2]}}'),
        ('{"inputs": {"k": "a"}}', '{"inputs": {"k": {"b64": "YQ=="}}}', '{"inputs": {"k": "b"}}'),
        ('{"inputs": {"k": "a"}}', '{"inputs": {"k": "\\u0061"}}', '{"inputs": {"k": "61"}}'),
        ('{"inputs": {"k": true}}', '{"inputs": {"k" :true}}', '{"inputs": {"k": false}}'),
        ('{"inputs": {"k": NaN}}', '{"inputs": {"k": -NaN}}', '{"inputs": {"k": Inf}}'),
        (
            '{"instances": [{"k": 1}, {"k": 2}]}',
            '{"instances":[ {"k":1.0} ,{"k":2}]}',
            '{"instances": [{"k": 1}, {"k": 3}]}',
        ),
        (
            '{"instances": [{"k": 1, "x": 0}]}',
            '{"instances": [{"k": 1, "k": 1, "x": 0}]}',
            '{"instances": [{"k": 1}, {"k": 1}]}',
        ),
        # What cannot be told is one class: an instance without it, a tensor without a name, too much of it.
        (
            '{"instances": [{"k": 1}, {"x": 1}]}',
            '{"instances": [{"k": 2}, {"x": 3}]}',
            '{"instances": [{"k": 1}, {"k": 3}]}',
        ),
        ('{"inputs": [3]}', '{"inputs": [4]}', '{"inputs": {"k": [3]}}'),
        (
            f'{{"inputs": {{"k": {[1] * 65}}}}}',
            f'{{"inputs": {{"k": {[2] * 65}}}}}',
            f'{{"inputs": {{"k": {[1] * 64}}}}}',
        ),
        ('{"inputs": {"k": [[1], [1, 2]]}}', '{"inputs": {"k": [[1.0], [1, 2]]}}', '{"inputs": {"k": [[1], [2, 2]]}}'),
        (
            f'{{"inputs": {{"k": "{"a" * 70_000}"}}}}',
            f'{{"inputs": {{"k": "{"b" * 70_000}"}}}}',
            '{"inputs": {"k": "a"}}',
        ),
        (
            f'{{"inputs": {{"k": {"[" * 9}1{"]" * 9}}}}}',
            f'{{"inputs": {{"k": {"[" * 9}2{"]" * 9}}}}}',
            '{"inputs": {"k": 1}}',
        ),
        ('{"inputs": {"k": [1, nonsense]}}', '{"inputs": {"k": [2, nonsense]}}', '{"inputs": {"k": [1, 2]}}'),
    ],
)
def test_values_of_a_rest_request(one: str, same: str, other: str) -> None:
    found = [rest(body) for body in (one, same, other)]
    assert found[0] == found[1] != found[2]


@given(st.binary(max_size=40), st.sampled_from([b'{"inputs":{"k":%b}}', b'{"instances":[{"k":%b}]}', b"%b"]))
def test_any_json_has_some_class(value: bytes, form: bytes) -> None:
    call = read_predict(with_k(b""))
    call = Call(replace(call.signature, method="REST Predict column"), (TensorSpec("k", -1, ()),))
    assert len(parse_level("values(k)").suffix(call, form % value)) == 17


def test_a_rest_request_has_both_kinds_of_class() -> None:
    bodies = [f'{{"inputs": {{"x": {x}, "k": {k}}}}}' for x in ("[1]", "[1, 2]") for k in (3, 4)]
    assert len({rest(body, "shapes+values(k)") for body in bodies}) == 4


def test_without_the_body_values_are_not_known() -> None:
    assert parse_level("shapes+values(k)").suffix(read_predict(shaped(2)), None) == ""


@given(st.binary(max_size=60), st.sampled_from([1, 3, 7, 8, 10, 99]), st.integers(-3, 70))
def test_any_bytes_have_some_class(body: bytes, dtype: int, size: int) -> None:
    """A call that was read by one parser is looked at by another: whatever that finds, it says something."""
    call = read_predict(with_k(b"", dtype=dtype))
    call.tensors = (TensorSpec("k", dtype, (size,)),)
    inside = length_delimited(2, length_delimited(1, b"k") + length_delimited(2, body))
    for text in (body, inside):
        assert len(parse_level("values(k)").suffix(call, text)) == 17


@pytest.mark.parametrize(
    "text",
    ["", "shape", "shapes()", "shapes(batch=)", "shapes(batch=0)", "shapes(batch=1,a)", "shapes(rows=1)", "values",
     "values()", "values( , )", "shapes+shapes", "shapes+", "names+shapes", "values(a)+values(b)"],
)  # fmt: skip
def test_what_is_no_level_is_said_with_its_place(text: str) -> None:
    listeners = [{"listen": ":1", "upstream": ":2"}]
    with pytest.raises(SettingsError, match=r"^capture\.level: "):
        from_data({"listeners": listeners, "capture": {"level": text}})
    with pytest.raises(SettingsError, match=r"^capture\.levels\.rank: "):
        from_data({"listeners": listeners, "capture": {"levels": {"rank": text}}})


def test_a_level_is_written_in_any_order_with_blanks() -> None:
    assert parse_level(" values( b , a,b ) + shapes( batch = 32, 1,8 ) ") == parse_level(
        "shapes(batch=1,8,32)+values(b,a)"
    )


def test_digests() -> None:
    digest = f"{WIRE}.0123456789abcdef"
    assert split(digest) == (WIRE, "0123456789abcdef")
    assert split(WIRE) == (WIRE, "")
    assert (short(WIRE), short(digest)) == (WIRE[:15], f"{WIRE[:15]}.012345")
    for wanted in (digest, WIRE, short(digest), "w1-01", "0123", "w1-01.01"):
        assert matches(digest, wanted, "w1")
    for wanted in ("w1-02", "w1-01.1", "2"):
        assert not matches(digest, wanted, "w1")


# --- what the worker keeps ---


def feed(rig: Rig, *bodies: bytes) -> dict[str, int]:
    """Calls by the shapes of their sample."""
    flow = GrpcFlow()
    for body in bodies:
        flow.call(body, predict_response(7))
    batch = rig.feed(flow)
    return {batch.samples[key].shapes: delta.proven for key, delta in batch.seen.items()}


def test_each_shape_class_has_a_sample_of_its_own() -> None:
    bodies = [shaped(1), shaped(2), shaped(2), shaped(5), shaped(2), shaped(5)]
    assert feed(Rig(), *bodies) == {"x:float[2]": 6}
    rig = Rig(levels=Levels("shapes"))
    assert feed(rig, *bodies) == {"x:float[1]": 1, "x:float[2]": 3, "x:float[5]": 2}
    batch = rig.pipeline.batch
    wire = read_predict(bodies[0]).signature.digest
    assert {split(key.digest)[0] for key in batch.seen} == {wire}
    assert {delta.signature.digest for delta in batch.seen.values()} == {wire}
    # Held out for the proof, of each class that came twice.
    assert {held.sample.shapes for _, held in batch.held_out.values()} == {"x:float[2]", "x:float[5]"}
    assert feed(Rig(levels=Levels("shapes(batch=4,8)")), *bodies) == {"x:float[2]": 4, "x:float[5]": 2}


def test_a_model_has_its_own_level() -> None:
    rig = Rig(levels=Levels("shapes", {"m": "names"}))
    assert feed(rig, shaped(1), shaped(2)) == {"x:float[1]": 2}
    rig = Rig(levels=Levels("names", {"m": "shapes"}))
    assert feed(rig, shaped(1), shaped(2)) == {"x:float[1]": 1, "x:float[2]": 1}


def test_each_value_has_a_sample_of_its_own() -> None:
    rig, flow = Rig(levels=Levels("values(k)")), GrpcFlow()
    for value in (1, 2, 1):
        flow.call(with_k(bytes([0x38, value])), predict_response(7))
    assert sorted(delta.proven for delta in rig.feed(flow).seen.values()) == [1, 2]


def test_a_worker_that_starts_again_knows_the_classes(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    before = Rig(levels=Levels("shapes"))
    feed(before, *(shaped(rows) for rows in range(1, MAX_CLASSES + 1)))
    store.apply(before.pipeline.take())
    after = Rig(levels=Levels("shapes"))
    after.admission.load(store.signatures(), store.held_out_index())
    flow = GrpcFlow()
    for rows in (2, MAX_CLASSES + 1):
        flow.call(shaped(rows), predict_response(7))
    store.apply(after.feed(flow))
    found = {row.sample_shapes: (row.hits, bool(split(row.key.digest)[1])) for row in store.signatures("m")}
    store.close()
    assert len(found) == MAX_CLASSES + 1
    assert found["x:float[2]"] == (2, True)
    assert found[f"x:float[{MAX_CLASSES + 1}]"] == (1, False)


def test_classes_of_one_signature_are_bounded_and_the_rest_share_a_record() -> None:
    rig = Rig(levels=Levels("shapes"), signatures_per_version=1000, new_signatures_per_hour=1000)
    found = feed(rig, *(shaped(rows) for rows in range(1, MAX_CLASSES + 21)), shaped(3))
    assert len(found) == MAX_CLASSES + 1
    assert found[f"x:float[{MAX_CLASSES + 1}]"] == 20
    assert found["x:float[3]"] == 2
    wire = read_predict(shaped(1)).signature.digest
    shared = next(delta for key, delta in rig.pipeline.batch.seen.items() if key.digest == wire)
    assert sum(shared.shapes.values()) == 20
    assert len(shared.shapes) == MAX_SHAPES + 1
    # Another signature has classes of its own, and room comes back with time.
    assert feed(rig, shaped(1, outputs=("y",)))["x:float[1]"] == 1
    rig.admission.forget(START + 1)
    owner = ModelVersion("tfserving", "m", "7")
    assert rig.admission.identify(owner, wire, ".new").digest == f"{wire}.new"
