"""The target of REST bodies: what warmtap reads of one, against what the server makes of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from capture.config import ListenerConfig
from capture.convert.rest import grpc_request
from capture.convert.values import ConversionError
from capture.dialects.base import Route, Unreadable
from capture.dialects.table import BY_NAME
from capture.dialects.tfserving_calls import READERS
from capture.levels import CLASS_HEX, parse_level
from capture.signature import REST_METHODS, Call, Misfit, SignatureDef, TensorInfo, executor_key

_DEFS: Final = (
    {"serving_default": SignatureDef({"x": TensorInfo("x:0", 1)}, {"y": TensorInfo("y:0", 1)})},
    {
        name: SignatureDef(
            {
                "x": TensorInfo("x:0", 1),
                "n": TensorInfo("n:0", 9),
                "s": TensorInfo("s:0", 7),
                "b": TensorInfo("b:0", 10),
            },
            {"y": TensorInfo("y:0", 1)},
        )
        for name in ("serving_default", "s")
    },
    {
        "serving_default": SignatureDef(
            {"inputs": TensorInfo("e:0", 7)}, {"outputs": TensorInfo("v:0", 1), "scores": TensorInfo("v:0", 1)}
        )
    },
)
_JSON: Final = (
    b'{"instances": [1.5, 2.5]}',
    b'{"signature_name": "s", "instances": [{"x": [1], "n": 2, "s": {"b64": "YQ=="}, "b": true}]}',
    b'{"inputs": {"x": [[1e3, NaN], [-Infinity, 4]], "n": [-1], "s": ["\\u00e9\\ud83d\\ude00"], "b": [false]}} more',
    b'{"inputs": 5, "ignored": {"a": [[]]}}',
    b'{"examples": [{"age": 1, "job": ["a", {"b64": "Yg"}]}, {"f": [1.5, Inf]}], "context": {"c": true}}',
)
_LEVEL: Final = parse_level("shapes+values(x, n, s, b)")
_VERBS: Final = ("predict", "classify", "regress")


def rest(data: bytes) -> None:
    """A JSON body: whatever the server would make a request of is read as a call, and both have one executor."""
    if not data:
        return
    defs, verb, body = _DEFS[data[0] % 3], _VERBS[data[0] // 3 % 3], data[1:]
    dialect, listener = BY_NAME["tfserving-rest"], ListenerConfig("rest")
    route = dialect.route(b"POST", f"/v1/models/m:{verb}", listener)
    assert isinstance(route, Route)
    call: Call | None
    try:
        call = dialect.read(route, body)
    except Unreadable as refusal:
        call, reason = None, str(refusal)
    if call is None:
        assert 0 < len(reason) < 100, "a reason that is none, or not short"
    else:
        assert str(call.signature).isprintable(), "a signature that is not one line of text"
        assert len(_LEVEL.suffix(call, body)) == 1 + CLASS_HEX, "no class"
    for method in REST_METHODS if call is None else (call.signature.method,):
        if method.startswith(route.method):
            _converted(method, body, defs, call)


def _converted(method: str, body: bytes, defs: dict[str, SignatureDef], call: Call | None) -> None:
    try:
        request = grpc_request(method, body, "m", defs)
    except ConversionError:
        return
    assert call is not None, "the server reads what the dialect does not"
    same = READERS[REST_METHODS[method]](request)
    assert same.signature.signature_name == call.signature.signature_name, "another signature"
    with contextlib.suppress(Misfit):
        expected = executor_key(same.signature, defs)
        assert executor_key(call.signature, defs) == expected, "another executor than over gRPC"


def rest_seeds() -> Iterator[bytes]:
    """Every text for every method and model."""
    for number in range(len(_DEFS) * len(_VERBS)):
        for text in _JSON:
            yield bytes([number]) + text
