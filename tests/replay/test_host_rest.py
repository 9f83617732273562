"""The model host's REST API: the server's URLs, statuses and words, on a real session."""

from __future__ import annotations

import gzip
import http.client
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capture.metadata import read_metadata
from capture.savedmodel import read_saved_model
from tests.models.edge import TYPES
from tests.support.tf_host import HostProcess
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.server


class Rest:
    """One connection to a host's REST API."""

    def __init__(self, address: str) -> None:
        self.connection = http.client.HTTPConnection(address, timeout=PATIENCE)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        self.connection.request(method, path, raw, headers)
        response = self.connection.getresponse()
        answer = response.read()
        return response.status, json.loads(answer) if answer else None

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        return self.ask("POST", f"/v1/models/{path}", body, **headers)


@pytest.fixture(scope="module")
def edge_rest(edge: Path) -> Iterator[Rest]:
    with HostProcess(edge, "--model-name=edge", grpc=False, rest=True, eas=False) as host:
        rest = Rest(host.rest)
        yield rest
        rest.connection.close()


@pytest.fixture(scope="module")
def census_rest(census: Path) -> Iterator[Rest]:
    with HostProcess(census, "--model-name=census", grpc=False, rest=True, eas=False) as host:
        rest = Rest(host.rest)
        yield rest
        rest.connection.close()


ROWS = [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("path", ["edge:predict", "edge/versions/1:predict", "%65dge/versions/01:predict?a=b"])
def test_predict(edge_rest: Rest, path: str) -> None:
    doubled = [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]]
    rows = [{"double": two, "sum": total} for two, total in zip(doubled, (6.0, 15.0), strict=True)]
    columns = {"double": doubled, "sum": [6.0, 15.0]}
    assert edge_rest.post(path, {"instances": ROWS}) == (200, {"predictions": rows})
    assert edge_rest.post(path, {"instances": [{"x": row} for row in ROWS]}) == (200, {"predictions": rows})
    assert edge_rest.post(path, {"inputs": {"x": ROWS}}) == (200, {"outputs": columns})
    assert edge_rest.post(path, {"inputs": ROWS}) == (200, {"outputs": columns})


def test_gzip(edge_rest: Rest) -> None:
    body = gzip.compress(json.dumps({"inputs": ROWS}).encode())
    assert edge_rest.post("edge:predict", body, **{"Content-Encoding": "gzip"})[0] == 200


@pytest.mark.parametrize(
    ("coding", "body", "status", "phrase"),
    [
        ("gzip", b'{"inputs": [[1, 2, 3]]}', 400, "The document is empty"),
        ("gzip", gzip.compress(b'{"inputs": [[1, 2, 3]]}', mtime=0)[:-9], 400, "The document is empty"),
        # Only gzip is looked for, and by case.
        ("deflate", zlib.compress(b'{"inputs": [[1, 2, 3]]}'), 400, "Invalid value."),
        ("deflate", b'{"inputs": [[1, 2, 3]]}', 200, "outputs"),
        ("GZIP", b'{"inputs": [[1, 2, 3]]}', 200, "outputs"),
    ],
)
def test_a_coding_that_the_server_does_not_undo(
    edge_rest: Rest, coding: str, body: bytes, status: int, phrase: str
) -> None:
    answered, answer = edge_rest.post("edge:predict", body, **{"Content-Encoding": coding})
    assert (answered, phrase in json.dumps(answer)) == (status, True)


@pytest.mark.parametrize(
    ("path", "body", "status", "phrase"),
    [
        ("edge:predict", b"", 400, "The document is empty"),
        ("edge:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        ("edge:predict", {"instances": ["a"]}, 400, "is not of expected type: float"),
        ("edge:predict", {"signature_name": "nope", "inputs": 1}, 400, 'Serving signature name: "nope" not found'),
        ("nope:predict", {"inputs": 1}, 404, "Servable not found for request: Latest(nope)"),
        ("nope:predict", b"{", 400, "JSON Parse error"),
        ("edge/versions/7:predict", {"inputs": 1}, 404, "Servable not found for request: Specific(edge, 7)"),
        ("edge/labels/stable:predict", {"inputs": 1}, 400, "Unrecognized servable version label: stable"),
        ("edge:PREDICT", {"inputs": 1}, 400, "Malformed request: POST /v1/models/edge:PREDICT"),
        ("edge", {"inputs": 1}, 400, "Malformed request: POST /v1/models/edge"),
        # Defaults do not help over REST.
        ("edge:predict", {"signature_name": "with_default", "inputs": {"x": ROWS}}, 400, "Missing named input: scale"),
        # It fails in the graph.
        ("edge:predict", {"signature_name": "checked", "inputs": [[-1, 1, 1]]}, 400, "x must not be negative"),
        ("edge:predict", {"signature_name": "types", "inputs": {}}, 400, "Missing named input"),
    ],
)
def test_errors(edge_rest: Rest, path: str, body: Any, status: int, phrase: str) -> None:
    found, answer = edge_rest.post(path, body)
    assert found == status
    assert phrase in answer["error"]


def test_a_type_without_a_json_form_is_not_implemented(edge_rest: Rest) -> None:
    body = {"signature_name": "types", "inputs": {alias: [1] for alias in TYPES} | {"string": ["a"], "bool": [True]}}
    status, answer = edge_rest.post("edge:predict", body)
    assert (status, answer["error"].partition(" type")[0]) == (501, "Conversion of JSON Value: ... to")


def test_classify_and_regress(census_rest: Rest) -> None:
    examples = [{"age": 30.0, "job": "nurse"}, {"age": [41.5]}]
    status, answer = census_rest.post("census:classify", {"signature_name": "classify", "examples": examples})
    assert status == 200
    assert [[label for label, _ in one] for one in answer["results"]] == [["low", "high"]] * 2
    assert [sum(score for _, score in one) for one in answer["results"]] == [pytest.approx(1, abs=1e-5)] * 2
    status, answer = census_rest.post(
        "census:regress", {"signature_name": "regress", "context": {"job": "clerk"}, "examples": [{"age": 30.0}]}
    )
    assert (status, len(answer["results"])) == (200, 1)
    assert census_rest.post("census:regress", {"signature_name": "classify", "examples": examples})[0] == 400
    assert census_rest.post("census:classify", {"examples": []})[0] == 400
    # An integer is no float to the graph.
    status, answer = census_rest.post("census:classify", {"signature_name": "classify", "examples": [{"age": 30}]})
    assert status == 400
    assert "age" in answer["error"]


def test_status_and_metadata(edge_rest: Rest, edge: Path) -> None:
    for path in ("edge", "edge/versions/1"):
        status, answer = edge_rest.ask("GET", f"/v1/models/{path}")
        (one,) = answer["model_version_status"]
        assert (status, one["version"], one["state"]) == (200, "1", "AVAILABLE")
        status, answer = edge_rest.ask("GET", f"/v1/models/{path}/metadata")
        found = read_metadata(json.dumps(answer).encode())
        assert (status, found.model, found.version) == (200, "edge", "1")
        assert found.signatures == read_saved_model(edge).signatures
    for path, code in (("nope", 404), ("edge/versions/2", 404), ("edge/labels/x", 400), ("nope/metadata", 404)):
        assert edge_rest.ask("GET", f"/v1/models/{path}")[0] == code
    assert edge_rest.ask("GET", "/v1/models")[0] == 400
    assert edge_rest.ask("GET", "/elsewhere")[0] == 404
