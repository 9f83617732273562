"""The model host's EAS side: messages, URLs, authorization, dtypes, the one warm-up file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import http.client
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from capture.schema import messages
from tests.models.edge import TYPES
from tests.models.ranking import DENSE
from tests.support.processes import NotReady
from tests.support.tf_host import HostProcess
from tests.support.tf_requests import DT_FLOAT, DT_INT64, DT_STRING

pytestmark = pytest.mark.server

TOKEN = "not-a-secret"


def post(host: HostProcess, body: bytes, path: str = "/api/predict/rank", method: str = "POST", **headers: str) -> Any:
    """(status, body) of one request."""
    connection = http.client.HTTPConnection(host.eas, timeout=60)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def add(request: Any, alias: str, dtype: int, shape: list[int], field: str, values: list[Any]) -> None:
    array = request.inputs[alias]
    array.dtype = dtype
    array.array_shape.dim.extend(shape)
    getattr(array, field).extend(values)


def ranking_request(outputs: tuple[str, ...] = (), signature: str = "serving_default", batch: int = 2) -> Any:
    request = messages.EasPredictRequest(signature_name=signature, output_filter=outputs)
    add(request, "user_id", DT_STRING, [batch], "string_val", [b"user"] * batch)
    add(request, "category", DT_STRING, [batch], "string_val", [b"category-3"] * batch)
    add(request, "dense", DT_FLOAT, [batch, DENSE], "float_val", [0.5] * batch * DENSE)
    if signature != "explain":
        add(request, "item_ids", DT_INT64, [batch, 4], "int64_val", list(range(batch * 4)))
    return request


def edge_request(*values: float, signature: str = "", outputs: tuple[str, ...] = ()) -> Any:
    request = messages.EasPredictRequest(signature_name=signature, output_filter=outputs)
    add(request, "x", DT_FLOAT, [len(values) // 3, 3], "float_val", list(values))
    return request


@pytest.fixture(scope="module")
def host(edge: Path) -> Iterator[HostProcess]:
    with HostProcess(edge, "--eas-url=/my/url") as running:
        yield running


def test_outputs_come_back_as_arrays(host: HostProcess) -> None:
    status, body = post(host, edge_request(1, 2, 3, 4, 5, 6).SerializeToString())
    assert status == 200
    outputs = messages.EasPredictResponse.FromString(body).outputs
    assert set(outputs) == {"sum", "double"}
    assert (outputs["double"].dtype, list(outputs["double"].array_shape.dim)) == (DT_FLOAT, [2, 3])
    assert list(outputs["double"].float_val) == [2, 4, 6, 8, 10, 12]
    assert list(outputs["sum"].float_val) == [6, 15]


def test_a_filter_chooses_and_may_repeat(host: HostProcess) -> None:
    status, body = post(host, edge_request(1, 2, 3, outputs=("sum", "sum")).SerializeToString())
    assert status == 200
    outputs = messages.EasPredictResponse.FromString(body).outputs
    assert {alias: list(array.float_val) for alias, array in outputs.items()} == {"sum": [6]}


@pytest.mark.parametrize("path", ["/api/predict/rank", "/api/predict/rank/v1?debug=1", "/my/url"])
def test_where_the_service_answers(host: HostProcess, path: str) -> None:
    assert post(host, edge_request(1, 2, 3).SerializeToString(), path)[0] == 200


@pytest.mark.parametrize("path", ["/", "/api/predict/ranking", "/api/predict/", "/my/url/x"])
def test_where_it_does_not(host: HostProcess, path: str) -> None:
    assert post(host, edge_request(1, 2, 3).SerializeToString(), path)[0] == 404


def test_only_post(host: HostProcess) -> None:
    assert post(host, b"", method="GET")[0] == 405


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (edge_request(1, 2, 3, signature="nope"), "signature 'nope' not found"),
        (
            edge_request(1, 2, 3, outputs=("nope",)),
            "output 'nope' not found; signature 'serving_default' has double, sum",
        ),
        (edge_request(1, 2, 3, 4), "input 'x': 4 values in float_val, but shape [1, 3] needs 3"),
        (edge_request(-1, 2, 3, signature="checked"), "INVALID_ARGUMENT: assertion failed: [x must not be negative"),
        # As in the closest public processor, what is not sent is not fed: the session itself objects.
        (messages.EasPredictRequest(), "INVALID_ARGUMENT: You must feed a value for placeholder tensor 'x'"),
    ],
)
def test_a_bad_request_says_why(host: HostProcess, request_: Any, text: str) -> None:
    status, body = post(host, request_.SerializeToString())
    assert status == 400
    assert text in body.decode()


def test_a_body_that_is_no_request(host: HostProcess) -> None:
    assert post(host, b"\xff\xff") == (400, b"the body is no PredictRequest")


@pytest.mark.parametrize(
    ("coding", "pack", "status", "answer"),
    [
        ("gzip", gzip.compress, 200, b""),
        ("deflate", zlib.compress, 200, b""),
        ("gzip", bytes, 400, b"content-encoding gzip: broken data"),
        ("gzip", lambda body: gzip.compress(body)[:-9], 400, b"content-encoding gzip: cut short"),
        ("br", bytes, 400, b"content-encoding br"),
    ],
)
def test_a_content_encoding(
    host: HostProcess, coding: str, pack: Callable[[bytes], bytes], status: int, answer: bytes
) -> None:
    got, body = post(host, pack(edge_request(1, 2, 3).SerializeToString()), Content_Encoding=coding)
    assert got == status
    assert status == 200 or body == answer


def test_an_unknown_alias_and_a_bad_dtype(host: HostProcess) -> None:
    request = edge_request(1, 2, 3)
    add(request, "y", DT_FLOAT, [1], "float_val", [1])
    assert post(host, request.SerializeToString()) == (
        400,
        b"input 'y' not found; signature 'serving_default' has x",
    )
    request = edge_request(1, 2, 3)
    request.inputs["x"].dtype = 20
    assert post(host, request.SerializeToString()) == (400, b"input 'x': dtype 20 is not supported")


def test_every_dtype_there_and_back(host: HostProcess) -> None:
    numbers = {
        name: number for number, name in zip((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 17, 18, 19), TYPES, strict=True)
    }
    values: dict[str, tuple[str, list[Any]]] = {name: ("int_val", [1, 2]) for name in TYPES}
    values |= {name: ("float_val", [0.5, -2.0]) for name in ("float32", "bfloat16", "float16")}
    values |= {
        "float64": ("double_val", [0.1, math.inf]),
        "int8": ("int_val", [-128, 127]),
        "string": ("string_val", [b"a\0", b""]),
        "complex64": ("float_val", [1.0, 2.0, 3.0, 4.0]),
        "complex128": ("double_val", [1.0, 2.0, 3.0, 4.0]),
        "int64": ("int64_val", [-(2**62), 2**62]),
        "bool": ("bool_val", [True, False]),
    }
    request = messages.EasPredictRequest(signature_name="types")
    for name, (field, given) in values.items():
        add(request, name, numbers[name], [2], field, given)
    status, body = post(host, request.SerializeToString())
    assert status == 200, body
    outputs = messages.EasPredictResponse.FromString(body).outputs
    assert {name: list(getattr(outputs[name], field)) for name, (field, _) in values.items()} == {
        name: given for name, (_, given) in values.items()
    }
    assert {name: array.dtype for name, array in outputs.items()} == numbers


def test_a_token_is_demanded_raw_or_signed(edge: Path) -> None:
    body = edge_request(1, 2, 3).SerializeToString()
    with HostProcess(edge, f"--eas-token={TOKEN}") as host:
        assert post(host, body)[0] == 401
        assert post(host, body, Authorization="wrong")[0] == 401
        assert post(host, body, Authorization=TOKEN)[0] == 200
        headers = {"Content_Type": "application/octet-stream", "Date": "Sun, 22 Nov 2026 02:00:00 GMT"}
        path = "/api/predict/rank/?a=b"
        signed = "\n".join(["POST", hashlib.md5(body).hexdigest(), *headers.values(), path])
        mac = base64.b64encode(hmac.new(TOKEN.encode(), signed.encode(), hashlib.sha1).digest()).decode()
        assert post(host, body, path, Authorization=f"EAS {mac}", **headers)[0] == 200
        assert post(host, body + b"", "/api/predict/rank", Authorization=f"EAS {mac}", **headers)[0] == 401
        assert {request["code"] for request in host.statistics()["requests"]} == {200}


def test_one_warm_up_file_warms_one_signature(ranking: Path, tmp_path: Path) -> None:
    path = tmp_path / "warmup.bin"
    path.write_bytes(ranking_request(("score",)).SerializeToString())
    with HostProcess(ranking, f"--warm-up-data-path={path}") as host:
        assert host.builds == 1
        runs = [
            line for line in host.get("/monitoring/prometheus/metrics").splitlines() if "direct_session_runs{" in line
        ]
        assert int(runs[0].split()[1]) >= 5
        for outputs in (("score",), ("score", "embedding"), ("score",)):
            assert post(host, ranking_request(outputs, batch=5).SerializeToString())[0] == 200
        assert [request["builds_delta"] for request in host.statistics()["requests"]] == [0, 1, 0]
        assert {request["protocol"] for request in host.statistics()["requests"]} == {"eas"}


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("warmup.bin", ranking_request(("nope",)).SerializeToString(), "request 1 of 5 was answered with 400: output"),
        ("warmup.bin", b"\xff\xff", "request 1 of 5 was answered with 400: the body is no PredictRequest"),
        ("warmup.txt", b"hello\n", ".txt warm-up files are for string input"),
        ("warmup.bin", None, "No such file or directory"),
    ],
)
def test_a_warm_up_that_fails_ends_the_start(
    ranking: Path, tmp_path: Path, name: str, content: bytes | None, text: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NotReady) as caught:
        HostProcess(ranking, f"--warm-up-data-path={path}")
    assert caught.value.status == 1
    assert caught.value.error.startswith(f"capture: error: warm-up failed: {path}: ")
    assert text in caught.value.error
    assert caught.value.error.count("\n") == 1
