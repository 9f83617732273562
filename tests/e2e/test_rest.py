"""TF Serving's REST API from real clients through the sidecar to the model host, beside gRPC: captured, exported, and
proved on real TensorFlow. Clients: ovmsclient, requests, and a connection without any library's headers."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest
import requests
from ovmsclient import make_http_client

from capture.commands.export import export
from capture.export.read import read_any
from replay import tf_protos
from tests.e2e.conftest import Front
from tests.support.net_sidecar import Sidecar
from tests.support.processes import capture
from tests.support.tf_host import HostProcess
from tests.support.tf_models import private_copy
from tests.support.tf_requests import DT_FLOAT, examples_request, predict_request, tensor, write_warmup
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server

ROUNDS = 3
#: What is captured, with the versions that answered.
LINES = {
    ("REST Predict column edge/serving_default (x) -> (*)", "1"),
    ("REST Predict row edge/serving_default () -> (*)", "unknown"),
    ("REST Predict row edge/with_default (scale, x) -> (*)", "unknown"),
    ("Predict edge/serving_default (x) -> (*)", "1"),
    ("Predict edge/with_default (x) -> (*)", "1"),
    ("REST Classify edge/classify (inputs) -> (*)", "unknown"),
    ("REST Regress edge/regress (inputs) -> (*)", "1"),
    ("Regress edge/regress (inputs) -> (*)", "1"),
}


def settings(host: HostProcess, path: Path) -> dict[str, Any]:
    return {
        "listeners": [{"listen": "127.0.0.1:0", "upstream": one} for one in (host.rest, host.rest, host.grpc)],
        "capture": {"store": str(path), "shed_lag": 0},
        "relay": {"drain_delay": 0},
        "admin": {"listen": ""},
    }


@pytest.fixture(scope="module")
def captured(edge: Path, tmp_path_factory: pytest.TempPathFactory) -> Front:
    """Two REST listeners and one for gRPC in front of one model server share a store."""
    directory = tmp_path_factory.mktemp("rest")
    path = directory / "warmtap.sqlite"
    with HostProcess(edge, "--model-name=edge", rest=True, eas=False) as host:
        (directory / "settings.yaml").write_bytes(msgspec.yaml.encode(settings(host, path)))
        with Sidecar("--config", str(directory / "settings.yaml"), cwd=directory) as sidecar:
            first, second, third = (f"127.0.0.1:{port}" for port in sidecar.ready())
            place = Front(sidecar, third, "", path)
            number = sum(send(first, second, third, seed) for seed in range(ROUNDS)) + send_odd(second)
            place.wait_observed(number)
    return place


def send(first: str, second: str, target: str, seed: int, version: int = 1) -> int:
    """Each call once; their number."""
    x = np.array([[seed, 1.5, 2], [3, 4, 5]], np.float32)
    answer = make_http_client(first).predict({"x": x}, "edge", version)
    assert answer["double"].tolist() == (2 * x).tolist()
    with requests.Session() as session:
        base = f"http://{second}/v1/models/edge"

        def post(path: str, body: Any, **headers: str) -> Any:
            answered = session.post(base + path, json=body, headers=headers, timeout=PATIENCE)
            assert answered.status_code == 200, answered.text
            return answered.json()

        rows = [{"x": row, "scale": 2.0 + seed} for row in x.tolist()]
        assert len(post(":predict", {"instances": x.tolist()})["predictions"]) == 2
        # The row format adds a dimension to scale, which the graph takes with one row.
        post(":predict", {"signature_name": "with_default", "instances": rows[:1]})
        post(":classify", {"signature_name": "classify", "examples": [{"x": 1.5 + seed}, {"x": [2.5]}]})
        post(f"/versions/{version}:regress", {"signature_name": "regress", "examples": [{"x": 0.5 + seed}]})
    with grpc.insecure_channel(target) as channel:
        stub = tf_protos.load("tensorflow_serving.apis.prediction_service_pb2_grpc").PredictionServiceStub(channel)
        for signature in ("serving_default", "with_default"):
            inputs = {"x": tensor(DT_FLOAT, [2, 3], x.ravel().tolist())}
            stub.Predict(predict_request(inputs, model="edge", signature=signature), timeout=PATIENCE)
        given = tf_protos.load("tensorflow_serving.apis.input_pb2").Input()
        given.example_list.examples.add().features.feature["x"].float_list.value.append(1.5 + seed)
        stub.Regress(examples_request("Regress", "regress", given, model="edge"), timeout=PATIENCE)
    return 8


def send_odd(address: str) -> int:
    """What is refused and what is no call, without a library; their number."""
    client = make_http_client(address)
    assert client.get_model_status("edge", 1)[1]["state"] == "AVAILABLE"
    # It knows the answer of another server alone, and hands on what it does not know.
    assert client.get_model_metadata("edge", 1)["model_spec"]["version"] == "1"
    connection = http.client.HTTPConnection(address, timeout=PATIENCE)
    for path, body, status in (
        # As ovmsclient asks for a version that it was not given.
        ("/v1/models/edge/versions/0:predict", b'{"inputs": {"x": [[1, 2, 3]]}}', 404),
        ("/v1/models/edge:predict", b'{"instances": ["a"]}', 400),
        ("/v1/models/edge:predict", b"no JSON", 400),
        ("/v1/models/edge:PREDICT", b"{}", 400),
    ):
        connection.putrequest("POST", path, skip_accept_encoding=True)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    connection.close()
    return 6


def test_each_call_is_captured_with_its_version(captured: Front) -> None:
    store = captured.store()
    rows = store.signatures("edge")
    samples = [sample for row in rows if (sample := store.sample(row.key)) is not None]
    store.close()
    assert {(str(row.signature), row.key.owner.version) for row in rows} == LINES
    assert {(row.proven, row.unproven) for row in rows} == {(ROUNDS, 0)}
    assert all(json.loads(one.body) for one in samples if one.path.startswith("/v1/"))
    assert len(samples) == len(LINES)


def test_what_was_refused_or_is_no_call_is_told(captured: Front) -> None:
    told = json.loads(capture("ls", "--refused", "--json", "--store", str(captured.path)).stdout)
    assert {(one["outcome"], one["reason"]) for one in told["refusals"]} == {
        ("refused", "unknown model or version"),
        ("refused", "malformed body"),
        ("refused", "not a JSON object"),
    }
    assert {one["what"] for one in told["ignored"]} == {
        "REST GET model status",
        "REST GET model metadata",
        "REST POST, malformed URL",
    }


def test_the_export_warms_up_rest_and_grpc(captured: Front, edge: Path, tmp_path: Path) -> None:
    """One record for each executor, whoever called it; a fresh server builds nothing for either."""
    out, store = tmp_path / "warmup", str(captured.path)
    export("tfrecord", "edge", out, store=store, saved_model=edge)
    contents = read_any(str(out))
    assert not [remark for remark in contents.all_remarks() if remark.severity == "error"]
    assert len(contents.entries) == 4
    done = capture("verify", "--saved-model", str(edge), "--warmup", str(out), "--traffic", store, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0, found["reasons"]
    assert (found["verdict"], found["level"], found["warm"]["graph_builds"]) == ("proved", "executor", 0)
    assert found["executor_keys"] == found["cold"]["graph_builds"] == 4
    version_dir = private_copy(edge, tmp_path)
    write_warmup(version_dir, out.read_bytes())
    with HostProcess(version_dir, "--model-name=edge", rest=True, eas=False) as host:
        assert host.builds == 4
        send(host.rest, host.rest, host.grpc, 7)
        assert host.new_builds() == 0


def test_refresh_runs_and_writes_them(captured: Front, edge: Path, tmp_path: Path) -> None:
    version_dir = private_copy(edge, tmp_path, version=2)
    done = capture("refresh", "--saved-model-base", str(version_dir.parent), "--model", "edge",
                   "--batch-sizes", "1,4", "--store", str(captured.path))  # fmt: skip
    assert done.returncode == 0, done.stderr
    with HostProcess(version_dir, "--model-name=edge", rest=True, eas=False) as host:
        assert host.builds == 4
        send(host.rest, host.rest, host.grpc, 8, version=2)
        assert host.new_builds() == 0


def test_with_status_the_store_alone_makes_the_file(edge: Path, tmp_path: Path) -> None:
    """The server is asked for its version and its SignatureDefs: REST is exported without the model's files."""
    path = tmp_path / "warmtap.sqlite"
    with HostProcess(edge, "--model-name=edge", rest=True, eas=False) as host:
        told = settings(host, path)
        told["capture"]["status_interval"] = 0.2
        for listener in told["listeners"]:
            listener["status"] = f"http://{host.rest}"
        (tmp_path / "settings.yaml").write_bytes(msgspec.yaml.encode(told))
        with Sidecar("--config", str(tmp_path / "settings.yaml"), cwd=tmp_path) as sidecar:
            ports = [f"127.0.0.1:{port}" for port in sidecar.ready()]
            place = Front(sidecar, ports[2], "", path)
            url = f"http://{ports[0]}/v1/models/edge:predict"

            def told_and_attributed() -> bool:
                # The first calls come before the first look at the model: they stay unknown.
                requests.post(url, json={"instances": [[1, 2, 3]]}, timeout=PATIENCE).raise_for_status()
                return place.count("metadata_stored") > 0 and place.count("versions_attributed") > 0

            until(told_and_attributed, "a call with the version that the server told")
            send(ports[0], ports[1], ports[2], 3)
    out = tmp_path / "warmup"
    export("tfrecord", "edge", out, store=str(path))
    described = json.loads((tmp_path / "warmup.manifest.json").read_text())
    assert described["left_out"] == []
    assert {one["line"].partition(" edge/")[0] for one in described["records"]} == {
        line.partition(" edge/")[0] for line, _ in LINES
    }
    assert any(one["from_version"] == "1" for one in described["records"] if "REST Predict row" in one["line"])
    done = capture("verify", "--saved-model", str(edge), "--warmup", str(out), "--traffic", str(path), "--json")
    found = json.loads(done.stdout)
    assert found["warm"]["graph_builds"] == 0, found["reasons"]
    # All but the one that was called often have no further request to be judged by.
    assert found["executor_keys"] + found["judged_by_record_only"] == 4
