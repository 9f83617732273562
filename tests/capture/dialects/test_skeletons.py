"""A request that is recognised by its skeleton means what parsing it would have said."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable

import pytest

from capture.dialects.base import Route, Unreadable
from capture.dialects.eas_tensorflow import EasTensorFlow
from capture.dialects.skeletons import MAX_FIELDS, MEMO_BYTES, Skeletons, tensor_contents
from capture.dialects.tfserving_calls import read_predict
from capture.schema import messages
from capture.schema.wire import length_delimited
from capture.signature import Call
from tests.support import calls

EAS = EasTensorFlow()
ROUTE = Route(EAS, "predict", "rank", "/api/predict/rank")
#: By server: what of a tensor is opaque, and how a request is parsed.
KINDS: dict[str, tuple[Callable[[int], bool], Callable[[bytes], Call]]] = {
    "tfserving": (lambda number: number > 2, read_predict),
    "eas": (frozenset((3, 4, 6)).__contains__, lambda body: EAS._read(ROUTE, body)),
}


class Counting:
    """Skeletons, and how many requests were parsed."""

    def __init__(self, kind: str) -> None:
        opaque, self.parse = KINDS[kind]
        self.skeletons = Skeletons(tensor_contents(opaque))
        self.parsed = 0

    def _parse(self, body: bytes) -> Call:
        self.parsed += 1
        return self.parse(body)

    def read(self, body: bytes, place: tuple[str, ...] = ()) -> Call:
        return self.skeletons.read(place, body, self._parse)


def text(values: list[bytes]) -> bytes:
    """An EAS request with a tensor of strings."""
    request = messages.EasPredictRequest()
    array = request.inputs["text"]
    array.dtype = 7
    array.array_shape.dim.append(len(values))
    array.string_val.extend(values)
    return bytes(request.SerializeToString())


#: Requests with other values each time, by a random number generator.
BODIES: dict[str, tuple[str, Callable[[random.Random], bytes]]] = {
    "one tensor": ("tfserving", lambda draw: calls.predict({"x": (1, (1, 25))}, fill=draw.randbytes(100))),
    "several, and a filter": (
        "tfserving",
        lambda draw: calls.predict(
            {"a": (1, (25,)), "b": (7, ()), "c": (9, (5, 5))}, outputs=["y", "z"], version=3, fill=draw.randbytes(100)
        ),
    ),
    "eas floats": ("eas", lambda draw: calls.eas({"x": [draw.random() for _ in range(40)], "y": [draw.random()] * 60})),
    "eas strings": ("eas", lambda draw: text([draw.randbytes(50), draw.randbytes(30)])),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_third_request_of_a_shape_is_not_parsed(name: str) -> None:
    kind, make = BODIES[name]
    draw, counting = random.Random(1), Counting(kind)
    for number in range(20):
        body = make(draw)
        assert counting.read(body) == counting.parse(body)
        assert counting.parsed == min(number + 1, 2)


@pytest.mark.parametrize("name", BODIES)
def test_whatever_byte_changes_it_means_what_parsing_says(name: str) -> None:
    kind, make = BODIES[name]
    draw, counting = random.Random(2), Counting(kind)
    for _ in range(3):
        counting.read(make(draw))
    sample = make(draw)
    recognised = 0
    for at in range(len(sample)):
        for value in (0, 1, sample[at] ^ 0x80, draw.randrange(256)):
            body = sample[:at] + bytes((value,)) + sample[at + 1 :]
            before = counting.parsed
            try:
                expected = counting.parse(body)
            except Unreadable as error:
                with pytest.raises(Unreadable, match=str(error).replace("(", r"\(").replace(")", r"\)")):
                    counting.read(body)
            else:
                assert counting.read(body) == expected
            recognised += counting.parsed == before
    assert recognised > len(sample)


def test_signatures_of_one_length_are_told_apart() -> None:
    counting = Counting("tfserving")
    bodies = [
        calls.predict({name: (1, (1, 25))}, model=model, outputs=[output], fill=bytes(100))
        for name in ("a", "b")
        for model in ("m", "n")
        for output in ("y", "z")
    ]
    # The same bytes and lengths, arranged otherwise.
    bodies.append(calls.predict({"ab": (1, (1, 25))}, model="m", outputs=["y"], fill=bytes(99)))
    assert {len(body) for body in bodies} == {len(bodies[0])}
    for _ in range(3):
        assert [counting.read(body) for body in bodies] == [counting.parse(body) for body in bodies]
    parsed = counting.parsed
    assert [counting.read(body) for body in bodies] == [counting.parse(body) for body in bodies]
    assert counting.parsed == parsed


def test_the_place_is_part_of_it() -> None:
    skeletons = Skeletons(tensor_contents(lambda number: number > 2))
    body = calls.predict(fill=bytes(100))
    read = {model: lambda body, model=model: read_predict(calls.predict(model=model)) for model in ("m", "n")}
    for _ in range(3):
        assert [skeletons.read((model,), body, read[model]).signature.model for model in read] == ["m", "n"]


def test_integers_of_eas_are_parsed_each_time_since_their_bytes_say_how_many_they_are() -> None:
    counting = Counting("eas")
    for values in ([1] * 100, [2] * 100):
        request = messages.EasPredictRequest()
        array = request.inputs["x"]
        array.dtype = 9
        array.array_shape.dim.append(100)
        array.int64_val.extend(values)
        for _ in range(3):
            counting.read(bytes(request.SerializeToString()))
    assert counting.parsed == 6


def test_a_request_of_many_fields_is_not_looked_through_and_memory_is_bounded() -> None:
    counting = Counting("tfserving")
    crowd = calls.predict(fill=bytes(100)) + length_delimited(3, b"y") * MAX_FIELDS
    for _ in range(4):
        counting.read(crowd)
    assert counting.parsed == 4
    most = 0
    for size in range(400, 1000):
        for _ in range(2):
            counting.read(calls.predict({"x" * 200: (1, (size,))}, fill=bytes(size)))
        most = max(most, counting.skeletons.held_bytes)
    assert MEMO_BYTES // 8 < most <= MEMO_BYTES


def test_skeletons_of_many_pieces_take_what_is_counted_for_them() -> None:
    skeletons, spec = Skeletons(tensor_contents(lambda number: number > 2)), length_delimited(1, b"m")
    tracemalloc.start()
    most = 0
    for place in range(160):
        tensor = length_delimited(4, bytes(16)) * 900
        inputs = length_delimited(2, length_delimited(1, b"x") + length_delimited(2, tensor))
        for _ in range(2):
            skeletons.read((str(place),), length_delimited(1, spec) + inputs, read_predict)
        most = max(most, tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert most <= 1.25 * MEMO_BYTES


def test_names_of_any_length_take_what_is_counted_for_them() -> None:
    skeletons, body = Skeletons(tensor_contents(lambda number: number > 2)), calls.predict(fill=bytes(100))
    tracemalloc.start()
    for number in range(200):
        skeletons.read((str(number) + "\U0001f600" * 60_000, "predict"), body, read_predict)
    assert tracemalloc.get_traced_memory()[0] < MEMO_BYTES
    tracemalloc.stop()
