"""Every method of TF Serving's gRPC, from real stubs through the sidecar to the model host; then exported, and proved
on real TensorFlow."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from capture.commands.export import export
from capture.export.read import read_any
from capture.export.tfrecord import read_records
from replay import tf_protos
from replay.inference import request_class
from tests.e2e.conftest import Front, front
from tests.support.processes import capture
from tests.support.tf_host import HostProcess
from tests.support.tf_models import private_copy
from tests.support.tf_requests import (
    census_input,
    examples_request,
    predict_request,
    serialized_examples,
    session_request,
    tasks_request,
    write_warmup,
)

pytestmark = pytest.mark.server

#: What production sends, by its line; each several times with other values, so that held-out requests are not records.
LINES = {
    "Classify census/classify (inputs) -> (*)",
    "Classify census/serving_default (inputs) -> (*)",
    "Regress census/regress (inputs) -> (*)",
    "MultiInference census (inputs) -> (classify:classify, regress:regress)",
    "Predict census/classify (inputs) -> (classes, scores)",
    "Predict census/scores (inputs) -> (*)",
}
ROUNDS = 3


def calls(seed: int) -> list[tuple[str, Any]]:
    """(method, request), one for each line."""
    given = census_input(20 + seed % 3, age=20.0 + seed)
    context = census_input(20, context=True, age=20.0 + seed)
    inputs = {"inputs": serialized_examples(given)}
    return [
        ("Classify", examples_request("Classify", "classify", given, version=1)),
        ("Classify", examples_request("Classify", "", context)),
        ("Regress", examples_request("Regress", "regress", context if seed % 2 else given)),
        ("MultiInference", tasks_request([("regress", "regress"), ("classify", "classify")], given)),
        ("Predict", predict_request(inputs, model="census", signature="classify", outputs=["scores", "classes"])),
        ("Predict", predict_request(inputs, model="census", signature="scores")),
    ]


COMPRESSIONS = (grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate)
#: What no file can hold, what the server refuses, and what is no call: (service, method, body), and how it is told.
ODD: list[tuple[str, str, bytes]] = [
    ("PredictionService", "Classify", b"\xff\xff"),
    ("PredictionService", "Regress", examples_request("Regress", "regress", census_input(0)).SerializeToString()),
    ("PredictionService", "Classify", examples_request("Classify", "nope", census_input()).SerializeToString()),
    ("PredictionService", "MultiInference",
     tasks_request([("predict", "regress")], census_input()).SerializeToString()),
    ("PredictionService", "PredictStreamed", b""),
    ("SessionService", "SessionRun",
     session_request({"regress_inputs:0": serialized_examples(census_input())}, ["x:0"]).SerializeToString()),
]  # fmt: skip
REFUSED = {
    ("refused", "", "not a ClassificationRequest"),
    ("refused", "", "no examples"),
    ("refused", "", "a task that is neither classify nor regress"),
    ("refused", "census", "unknown signature"),
    ("refused", "census", "method not served"),
    ("no call", "", "gRPC /tensorflow.serving.PredictionService/PredictStreamed"),
    ("no call", "", "gRPC /tensorflow.serving.PredictionService/GetModelMetadata"),
    ("no call", "", "gRPC /tensorflow.serving.ModelService/GetModelStatus"),
}


@dataclass
class Captured:
    front: Front
    sent: set[tuple[str, bytes]]


@pytest.fixture(scope="module")
def captured(census: Path, tmp_path_factory: pytest.TempPathFactory) -> Captured:
    """All calls, plain and compressed both ways, with grpcio; and then the odd ones."""
    sent: set[tuple[str, bytes]] = set()
    with HostProcess(census, eas=False) as host:
        place = front(_with_eas(host), tmp_path_factory.mktemp("methods"), sheds=False)
        with place.sidecar:
            number = 0
            for compression in COMPRESSIONS:
                with grpc.insecure_channel(place.grpc, compression=compression) as channel:
                    stub = tf_protos.load("tensorflow_serving.apis.prediction_service_pb2_grpc").PredictionServiceStub(
                        channel
                    )
                    for seed in range(ROUNDS):
                        for method, request in calls(seed):
                            getattr(stub, method)(request, timeout=60)
                            sent.add((method, request.SerializeToString(deterministic=True)))
                            number += 1
            number += _send_odd(place.grpc)
            place.wait_observed(number - 3)
    return Captured(place, sent)


def _with_eas(host: HostProcess) -> HostProcess:
    """The sidecar has a listener for EAS as well, which nobody calls here."""
    host.eas = host.grpc
    return host


def _send_odd(target: str) -> int:
    with grpc.insecure_channel(target) as channel:
        for service, method, body in ODD:
            call = channel.unary_unary(f"/tensorflow.serving.{service}/{method}")
            with pytest.raises(grpc.RpcError):
                call(body, timeout=60)
        metadata = tf_protos.load("tensorflow_serving.apis.get_model_metadata_pb2").GetModelMetadataRequest(
            metadata_field=["signature_def"]
        )
        metadata.model_spec.name = "census"
        stub = tf_protos.load("tensorflow_serving.apis.prediction_service_pb2_grpc").PredictionServiceStub(channel)
        assert stub.GetModelMetadata(metadata, timeout=60).model_spec.version.value == 1
        status = tf_protos.load("tensorflow_serving.apis.get_model_status_pb2").GetModelStatusRequest()
        status.model_spec.name = "census"
        models = tf_protos.load("tensorflow_serving.apis.model_service_pb2_grpc").ModelServiceStub(channel)
        models.GetModelStatus(status, timeout=60)
    return len(ODD) + 2


def test_each_signature_is_captured_with_the_version_that_answered(captured: Captured) -> None:
    store = captured.front.store()
    rows = {str(row.signature): row for row in store.signatures("census")}
    store.close()
    assert set(rows) == LINES
    assert {row.key.owner.version for row in rows.values()} == {"1"}
    assert {(row.proven, row.unproven) for row in rows.values()} == {(ROUNDS * len(COMPRESSIONS), 0)}
    assert "inputs:string[20]" in rows["Classify census/serving_default (inputs) -> (*)"].shapes


def test_what_is_stored_is_what_was_sent_unpacked(captured: Captured) -> None:
    store = captured.front.store()
    bodies = [sample for row in store.signatures("census") if (sample := store.sample(row.key)) is not None]
    held = [item.sample for _, item in store.held_out("census")]
    store.close()
    assert len(bodies) == len(LINES)
    # Compressed ones are kept both ways, of every method.
    packed = {
        (one.path.rpartition("/")[2], one.headers["grpc-encoding"])
        for one in held
        if one.wire_body is not None and len(one.wire_body) < len(one.body)
    }
    assert packed == {
        (method, encoding)
        for method in ("Classify", "Regress", "MultiInference", "Predict")
        for encoding in ("gzip", "deflate")
    }
    for one in (*bodies, *held):
        method = one.path.rpartition("/")[2]
        # The order of a map's entries is each serializer's own.
        request = request_class(method).FromString(one.body)
        assert (method, request.SerializeToString(deterministic=True)) in captured.sent


def test_what_is_no_call_or_was_refused_is_told(captured: Captured) -> None:
    done = capture("ls", "--refused", "--json", "--store", str(captured.front.path))
    told = json.loads(done.stdout)
    found = {(one["outcome"], one["model"], one["reason"]) for one in told["refusals"]}
    found |= {("no call", "", one["what"]) for one in told["ignored"]}
    assert found == REFUSED
    assert {one["count"] for one in told["refusals"]} == {1}


def test_the_export_warms_everything_up(captured: Captured, census: Path, tmp_path: Path) -> None:
    """Fitted to the model, Predict and Classify of one executor are one record; a fresh server builds only at start."""
    out = tmp_path / "warmup"
    export("tfrecord", "census", out, store=str(captured.front.path), saved_model=census)
    log = tf_protos.load("tensorflow_serving.apis.prediction_log_pb2").PredictionLog
    kinds = [log.FromString(record).WhichOneof("log_type") for record in read_records(out.read_bytes())]
    # Five executors for six signatures.
    assert len(kinds) == len(LINES) - 1
    assert {"classify_log", "regress_log", "multi_inference_log", "predict_log"} == set(kinds)
    contents = read_any(str(out))
    assert not [remark for remark in contents.all_remarks() if remark.severity == "error"]
    assert {str(entry.signature) for entry in contents.entries} < LINES
    done = capture("verify", "--saved-model", str(census), "--warmup", str(out), "--traffic", str(captured.front.path),
                   "--json")  # fmt: skip
    found = json.loads(done.stdout)
    assert done.returncode == 0, found["reasons"]
    assert (found["verdict"], found["level"], found["warm"]["graph_builds"]) == ("proved", "executor", 0)
    assert found["executor_keys"] == found["cold"]["graph_builds"] == len(kinds)
    version_dir = private_copy(census, tmp_path)
    write_warmup(version_dir, out.read_bytes())
    with HostProcess(version_dir, eas=False) as host, grpc.insecure_channel(host.grpc) as channel:
        assert host.builds == len(kinds)
        stub = tf_protos.load("tensorflow_serving.apis.prediction_service_pb2_grpc").PredictionServiceStub(channel)
        for method, request in calls(7):
            getattr(stub, method)(request, timeout=60)
        assert host.new_builds() == 0


def test_unfitted_every_signature_is_a_record_and_inspect_reads_them(captured: Captured, tmp_path: Path) -> None:
    out = tmp_path / "warmup"
    export("tfrecord", "census", out, store=str(captured.front.path))
    done = capture("inspect", str(out), "--json")
    assert done.returncode == 0, done.stderr
    assert {line for line in LINES if line in done.stdout} == LINES
    assert capture("diff", str(out), str(captured.front.path)).returncode == 0


def test_refresh_writes_records_of_every_method(captured: Captured, census: Path, tmp_path: Path) -> None:
    version_dir = private_copy(census, tmp_path, version=2)
    done = capture("refresh", "--saved-model-base", str(version_dir.parent), "--store", str(captured.front.path))
    assert done.returncode == 0, done.stderr
    assert "version 2: 5 records, each run on it with TensorFlow" in done.stdout
    with HostProcess(version_dir, eas=False) as host:
        assert host.builds == 5
