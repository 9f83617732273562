"""What each kind of EAS service takes, and what is the identity of a request to it."""

from __future__ import annotations

from typing import Any

import pytest

from capture.config import ListenerConfig
from capture.dialects.base import Outcome, Response, Route, Unreadable
from capture.dialects.eas_string import MAX_KEYS
from capture.dialects.table import EAS, route
from capture.schema import messages
from capture.schema.wire import FieldProbe
from capture.signature import Call
from tests.support.calls import eas, predict
from tests.support.eas_bodies import BODIES, easyrec, fill_array, onnx, torch

BRACES = b'{"a":' * 200_000


def read(name: str, body: bytes) -> Call:
    return EAS[name].read(Route(EAS[name], "predict", "rank", "/"), body)


def torchrec(**fields: Any) -> bytes:
    return easyrec({}, message=messages.TorchRecRequest, **fields)


# --- which dialect ---


@pytest.mark.parametrize("name", EAS)
def test_a_listener_names_the_dialect_and_may_name_the_service(name: str) -> None:
    for path, service, model in (
        ("/api/predict/rank", "", "rank"),
        ("/api/predict/rank/v1", "", "rank"),
        ("/", "mine", "mine"),
        ("/any/path", "mine", "mine"),
    ):
        found = route(b"POST", path, False, ListenerConfig("http", dialect=name, service=service))
        assert isinstance(found, Route)
        assert (found.dialect.name, found.model) == (name, model)


def test_a_listener_of_several_services_maps_them_to_their_dialects() -> None:
    services = {"torch": "eas-pytorch", "text": "eas-string"}
    for dialect, other in (("auto", "eas-tensorflow"), ("eas-onnx", "eas-onnx")):
        listener = ListenerConfig("http", dialect=dialect, services=services)
        for service, expected in ({"rank": other} | services).items():
            found = route(b"POST", f"/api/predict/{service}", False, listener)
            assert isinstance(found, Route)
            assert (found.dialect.name, found.model) == (expected, service)
    named = route(b"POST", "/", False, ListenerConfig("http", service="torch", services=services))
    assert isinstance(named, Route)
    assert named.dialect.name == "eas-pytorch"


def test_nothing_on_the_wire_chooses_between_look_alikes() -> None:
    for body_of in BODIES:
        found = route(b"POST", f"/api/predict/{body_of}", False, ListenerConfig("http"))
        assert isinstance(found, Route)
        assert found.dialect.name == "eas-tensorflow"


# --- identity ---


@pytest.mark.parametrize(
    ("name", "body", "line", "shapes"),
    [
        ("eas-pytorch", torch(2), "predict rank/inputs ([0], [1]) -> (*)", "[0]:float[2] [1]:float[2]"),
        ("eas-pytorch", torch(1, outputs=(1, 0)), "predict rank/inputs ([0]) -> (0, 1)", "[0]:float[2]"),
        ("eas-pytorch", torch(0, ["b", "a"]), "predict rank/map_inputs (a, b) -> (*)", "a:float[2] b:float[2]"),
        ("eas-pytorch", torch(1, ["a"]), "predict rank/inputs+map_inputs ([0], a) -> (*)", "[0]:float[2] a:float[2]"),
        (
            "eas-pytorch",
            torch(1, debug_level=3),
            "predict rank/inputs debug_level=3 ([0]) -> (*)",
            "[0]:float[2]",
        ),
        (
            "eas-onnx",
            onnx({"b": (7, [1, 2], bytes(16)), "a": (10, [], bytes(2)), "c": (2, [0], b"")}),
            "predict rank/DataProto (a, b, c) -> (*)",
            "a:half[] b:int64[1,2] c:uint8[0]",
        ),
        (
            "eas-easyrec",
            easyrec({"age": 7, "city": "x", "score": 0.5}, {"price": [1.0, 2.0], "none": []}, faiss_neigh_num=9),
            "predict rank/debug_level=0 (context_features/price, faiss_neigh_num, item_ids, user_features/age,"
            " user_features/city, user_features/score) -> (*)",
            "context_features/price:float[2] faiss_neigh_num:int32[] item_ids:string[2] user_features/age:int32[]"
            " user_features/city:string[] user_features/score:float[]",
        ),
        (
            "eas-easyrec",
            easyrec({}, debug_level=1),
            "predict rank/debug_level=1 (item_ids) -> (*)",
            "item_ids:string[2]",
        ),
        (
            "eas-torchrec",
            torchrec(meta_data={"trace": "1"}, item_features={"title": {"features": [{"string_feature": "t"}]}}),
            "predict rank/debug_level=0 (item_features/title, item_ids, meta_data/trace) -> (*)",
            "item_features/title:string[1] item_ids:string[2] meta_data/trace:string[]",
        ),
        (
            "eas-torchrec",
            torchrec(
                items=(),
                user_features={
                    "list": {"double_list": {"features": [1, 2, 3]}},
                    "lists": {"int_lists": {"lists": [{"features": [1]}, {}]}},
                    "map": {"string_long_map": {"map_field": {"a": 1}}},
                    "nothing": {},
                },
            ),
            "predict rank/debug_level=0 (user_features/list, user_features/lists, user_features/map,"
            " user_features/nothing) -> (*)",
            "user_features/list:double[3] user_features/lists:int32[2] user_features/map:int64[1]"
            " user_features/nothing:dtype0[]",
        ),
        ("eas-string", b' \n{"b": 1, "a": {"c": 2}, "b": 3}', "predict rank/json (a, b) -> (*)", ""),
        ("eas-string", b"{}", "predict rank/json () -> (*)", ""),
        ("eas-string", b"[1, 2]", "predict rank/text, up to 1 KiB () -> (*)", ""),
        ("eas-string", b"1,2," * 300, "predict rank/text, up to 32 KiB () -> (*)", ""),
        ("eas-string", "é".encode() * (1 << 20), "predict rank/text, over 1 MiB () -> (*)", ""),
        ("eas-string", b"\xff\xd8 a picture", "predict rank/bytes, up to 1 KiB () -> (*)", ""),
        ("eas-string", b'{"a": 1', "predict rank/text, up to 1 KiB () -> (*)", ""),
        (
            "eas-string",
            b"{%s}" % b",".join(b'"%d":1' % number for number in range(MAX_KEYS + 1)),
            "predict rank/text, up to 1 KiB () -> (*)",
            "",
        ),
        # Neither nesting nor the number of keys costs more than a look.
        ("eas-string", BRACES, "predict rank/text, up to 1 MiB () -> (*)", ""),
        ("eas-string", b"{%s" % (b'"a":1,' * 100_001), "predict rank/text, up to 1 MiB () -> (*)", ""),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else f"{len(value)} bytes",
)
def test_the_signature(name: str, body: bytes, line: str, shapes: str) -> None:
    call = read(name, body)
    assert str(call.signature) == line
    assert call.shapes == shapes
    assert call.signature.family == name


def test_each_kind_is_a_family_of_its_own() -> None:
    digests = {read(name, body).signature.digest for name, body in BODIES.items()}
    assert len(digests) == len({dialect.family for dialect in EAS.values()}) == len(EAS)


def test_a_name_that_looks_like_a_position_is_another_signature() -> None:
    assert read("eas-pytorch", torch(1)).signature != read("eas-pytorch", torch(0, ["[0]"])).signature


# --- what only looks like a request ---


def torch_array(**fields: Any) -> bytes:
    request = messages.TorchPredictRequest()
    fill_array(request.inputs.add())
    for field, value in fields.items():
        if field == "dtype":
            request.inputs[0].dtype = value
        else:
            getattr(request.inputs[0], field).extend(value)
    return bytes(request.SerializeToString())


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        *[
            (name, b"", reason)
            for name, reason in zip(
                EAS,
                ("no inputs", "no inputs", "no inputs", *["no features and no items"] * 2, "empty body"),
                strict=True,
            )
        ],
        ("eas-string", b" \n", "empty body"),
        ("eas-pytorch", b"\xff\xff", "not an EAS PyTorch PredictRequest"),
        ("eas-onnx", b"\xff\xff", "not an EAS ONNX DataProto"),
        ("eas-easyrec", b"\xff\xff", "not an EAS EasyRec PBRequest"),
        ("eas-torchrec", b"\xff\xff", "not an EAS TorchEasyRec PBRequest"),
        ("eas-pytorch", torch(0, outputs=(1,)), "no inputs"),
        ("eas-pytorch", torch_array(float_val=[3.0]), "values and shape disagree"),
        ("eas-pytorch", torch_array(int_val=[3]), "not an EAS PyTorch PredictRequest (values of another dtype)"),
        # TorchRequest.add_feed(1, ...) without an input 0 leaves an empty one there.
        ("eas-pytorch", torch_array(dtype=0), "not an EAS PyTorch PredictRequest (dtype)"),
        ("eas-onnx", onnx({"x": (0, [1], b"")}), "not an EAS ONNX DataProto (data_type)"),
        ("eas-onnx", onnx({"x": (1, [3], bytes(8))}), "values and shape disagree"),
        ("eas-onnx", onnx({"x": (1, [-1, -2], bytes(8))}), "values and shape disagree"),
        ("eas-onnx", onnx({"x": (1, [1] * 255, bytes(4))}), "too many dimensions"),
        ("eas-easyrec", easyrec({}, items=(), debug_level=2), "no features and no items"),
        # One kind of service is sent what belongs to another.
        ("eas-onnx", torch(1), "not an EAS ONNX DataProto (data_type)"),
        ("eas-onnx", eas(signature="s"), "not an EAS ONNX DataProto"),
        ("eas-pytorch", eas({"x": [1.0]}, signature="s"), "not an EAS PyTorch PredictRequest"),
        ("eas-pytorch", predict(), "not an EAS PyTorch PredictRequest (dtype)"),
        ("eas-tensorflow", torch(1), "not an EAS TensorFlow PredictRequest"),
        ("eas-tensorflow", easyrec(), "not an EAS TensorFlow PredictRequest"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_what_only_looks_like_a_request(name: str, body: bytes, reason: str) -> None:
    with pytest.raises(Unreadable) as caught:
        read(name, body)
    assert str(caught.value) == reason


# --- success ---


def answered(body: bytes, name: str = "eas-easyrec", status: int = 200) -> tuple[Outcome, str]:
    """What is made of an answer that comes a byte at a time."""
    dialect = EAS[name]
    probe = dialect.response_probe(Route(dialect, "predict", "rank", "/"))
    response = Response(status=status, complete=True)
    if probe is not None:
        for byte in body:
            probe.feed(bytes([byte]))
        response.probe, response.probed = probe.value, probe.whole
    judged = dialect.judge(Route(dialect, "predict", "rank", "/"), response)
    return judged.outcome, judged.reason


def rec_response(**fields: Any) -> bytes:
    answer = messages.EasyRecResponse(item_ids=["i1"], outputs=["probs"], **fields)
    answer.results["i1"].scores.append(0.5)
    return bytes(answer.SerializeToString())


UNREAD = (Outcome.UNPROVEN, "no PBResponse that can be read")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (rec_response(), (Outcome.PROVEN, "")),
        # Written out, as no proto3 library does.
        (rec_response() + b"\x30\x00", (Outcome.PROVEN, "")),
        (rec_response() + b"\x30\x80\x00", (Outcome.PROVEN, "")),
        (rec_response(status_code=1), (Outcome.UNPROVEN, "EasyRec status_code INPUT_EMPTY")),
        (rec_response(status_code=2, error_msg="no"), (Outcome.UNPROVEN, "EasyRec status_code EXCEPTION")),
        (rec_response(status_code=77), (Outcome.UNPROVEN, "EasyRec status_code unknown")),
        (rec_response(status_code=-1), (Outcome.UNPROVEN, "EasyRec status_code unknown")),
        # The last one counts.
        (b"\x30\x02" + rec_response(status_code=0) + b"\x30\x00", (Outcome.PROVEN, "")),
        (b"\x30\x00" + rec_response(status_code=2), (Outcome.UNPROVEN, "EasyRec status_code EXCEPTION")),
        (b"", UNREAD),
        (rec_response()[:-1], UNREAD),
        (b"<html>ok</html>", UNREAD),
        # A length where the status belongs, a number where a map does.
        (rec_response() + b"\x32\x00", UNREAD),
        (b"\x08\x01" + rec_response(), UNREAD),
    ],
)
def test_easyrec_says_itself_whether_it_succeeded(body: bytes, expected: tuple[Outcome, str]) -> None:
    assert answered(body) == expected


def test_http_has_the_first_word() -> None:
    assert answered(rec_response(), status=500) == (Outcome.UNPROVEN, "HTTP 500")
    assert answered(rec_response(), status=401) == (Outcome.REFUSED, "not authenticated")


@pytest.mark.parametrize("name", [name for name in EAS if name != "eas-easyrec"])
def test_of_all_others_http_has_the_only_word(name: str) -> None:
    assert answered(b"anything", name) == (Outcome.PROVEN, "")


def test_a_probe_of_a_number_skips_fields_of_every_kind() -> None:
    probe = FieldProbe(6, wire_type=0)
    probe.feed(b"\x08\x07\x11" + bytes(8) + b"\x1a\x02\x30\x02\x25" + bytes(4) + b"\x30\xac\x02")
    assert (probe.value, probe.whole) == (b"\xac\x02", True)
