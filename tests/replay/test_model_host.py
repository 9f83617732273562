"""The model host over gRPC, asked with the real tensorflow-serving-api stubs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from replay import model_host, tf_protos
from tests.support.processes import NotReady, run_tensorflow
from tests.support.tf_host import HostProcess
from tests.support.tf_requests import DT_FLOAT, DT_INT64, predict_request, ranking_inputs, tensor

pytestmark = pytest.mark.server

INVALID, NOT_FOUND, PRECONDITION = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
)


@dataclass
class Client:
    """Stubs of one host."""

    host: HostProcess
    prediction: Any
    model: Any

    def predict(self, request: Any) -> Any:
        return self.prediction.Predict(request, timeout=60)


def connect(host: HostProcess) -> tuple[grpc.Channel, Client]:
    channel = grpc.insecure_channel(host.grpc)
    prediction = tf_protos.load("tensorflow_serving.apis.prediction_service_pb2_grpc")
    model = tf_protos.load("tensorflow_serving.apis.model_service_pb2_grpc")
    return channel, Client(host, prediction.PredictionServiceStub(channel), model.ModelServiceStub(channel))


@pytest.fixture(scope="module")
def client(ranking: Path) -> Iterator[Client]:
    with HostProcess(ranking) as host:
        channel, connected = connect(host)
        with channel:
            yield connected


@pytest.fixture(scope="module")
def edge_client(edge: Path) -> Iterator[Client]:
    with HostProcess(edge) as host:
        channel, connected = connect(host)
        with channel:
            yield connected


def refused(client: Client, request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        client.predict(request)
    return caught.value.code(), caught.value.details()


def metadata_request(**fields: Any) -> Any:
    return tf_protos.load("tensorflow_serving.apis.get_model_metadata_pb2").GetModelMetadataRequest(**fields)


def status_request(name: str, version: int | None = None) -> Any:
    request = tf_protos.load("tensorflow_serving.apis.get_model_status_pb2").GetModelStatusRequest()
    request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    return request


def edge_x(**more: Any) -> dict[str, Any]:
    return {"x": tensor(DT_FLOAT, [1, 3], [1.0, 2.0, 3.0]), **more}


def test_predict_answers_as_tensorflow_does(client: Client, ranking: Path, tmp_path: Path) -> None:
    """The oracle is TensorFlow's own loader and signature function, in a process of its own."""
    request = predict_request(ranking_inputs())
    (tmp_path / "request").write_bytes(request.SerializeToString())
    program = """
import json, sys
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2
request = predict_pb2.PredictRequest.FromString(open(sys.argv[2], "rb").read())
function = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
inputs = {alias: tf.constant(tf.make_ndarray(proto)) for alias, proto in request.inputs.items()}
outputs = {alias: value.numpy() for alias, value in function(**inputs).items()}
print(json.dumps({a: v.decode() if isinstance(v, bytes) else v.tolist() for a, v in outputs.items()}))
"""
    expected = run_tensorflow(program, str(ranking), str(tmp_path / "request"))
    response = client.predict(request)
    assert set(response.outputs) == set(expected)
    for alias in ("score", "probabilities", "embedding"):
        flat = [value for row in expected[alias] for value in (row if isinstance(row, list) else [row])]
        assert list(response.outputs[alias].float_val) == pytest.approx(flat, rel=1e-4, abs=1e-5)
    assert list(response.outputs["top_ids"].int64_val) == [n for row in expected["top_ids"] for n in row]
    assert list(response.outputs["model_version_id"].string_val) == [expected["model_version_id"].encode()]
    assert [dim.size for dim in response.outputs["probabilities"].tensor_shape.dim] == [2, 5]


def test_the_response_names_model_version_and_signature(client: Client) -> None:
    spec = client.predict(predict_request(ranking_inputs(), outputs=["score"])).model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("ranking", 1, "serving_default")


def test_output_filter_decides_what_comes_back(client: Client) -> None:
    response = client.predict(predict_request(ranking_inputs(), outputs=["top_ids", "score"]))
    assert set(response.outputs) == {"top_ids", "score"}
    inputs = ranking_inputs()
    del inputs["item_ids"]
    response = client.predict(predict_request(inputs, signature="explain"))
    assert set(response.outputs) == {"attribution", "score", "model_version_id"}


def test_the_version_may_be_named(client: Client) -> None:
    assert client.predict(predict_request(ranking_inputs(), version=1)).model_spec.version.value == 1


def test_no_model_spec(client: Client) -> None:
    request = predict_request(ranking_inputs())
    request.ClearField("model_spec")
    assert refused(client, request) == (INVALID, "Missing ModelSpec")


def test_no_model_name(client: Client) -> None:
    assert refused(client, predict_request(ranking_inputs(), model="", version=1)) == (
        INVALID,
        "ModelSpec has no name specified.",
    )


def test_unknown_model(client: Client) -> None:
    assert refused(client, predict_request({}, model="other")) == (
        NOT_FOUND,
        "Servable not found for request: Latest(other)",
    )


def test_unknown_version(client: Client) -> None:
    assert refused(client, predict_request({}, version=9)) == (
        NOT_FOUND,
        "Servable not found for request: Specific(ranking, 9)",
    )


def test_unknown_label(client: Client) -> None:
    request = predict_request({})
    request.model_spec.version_label = "stable"
    assert refused(client, request) == (INVALID, "Unrecognized servable version label: stable")


def test_unknown_signature(client: Client) -> None:
    assert refused(client, predict_request({}, signature="nope")) == (
        PRECONDITION,
        'Serving signature key "nope" not found.',
    )


def test_too_few_inputs(client: Client) -> None:
    inputs = ranking_inputs()
    del inputs["dense"]
    assert refused(client, predict_request(inputs)) == (
        INVALID,
        "input size does not match signature: 3!=4 len({category,item_ids,user_id}) != "
        "len({category,dense,item_ids,user_id}). Sent extra: {}. Missing but required: {dense}.",
    )


def test_too_many_inputs(client: Client) -> None:
    code, message = refused(client, predict_request(ranking_inputs() | {"more": ranking_inputs()["dense"]}))
    assert code == INVALID
    assert "5!=4" in message
    assert "Sent extra: {more}. Missing but required: {}." in message


def test_a_wrong_alias(client: Client) -> None:
    inputs = ranking_inputs()
    inputs["dance"] = inputs.pop("dense")
    code, message = refused(client, predict_request(inputs))
    assert code == INVALID
    assert message.startswith("Signature input alias: dense(feed name: serving_default_dense:0) not found in request")


def test_an_unknown_output(client: Client) -> None:
    assert refused(client, predict_request(ranking_inputs(), outputs=["score", "nope"])) == (
        INVALID,
        "output tensor alias not found in signature: nope Outputs expected to be in the set "
        "{embedding,model_version_id,probabilities,score,top_ids}.",
    )


def test_an_output_named_twice(client: Client) -> None:
    assert refused(client, predict_request(ranking_inputs(), outputs=["score", "score"])) == (
        INVALID,
        "duplicate output tensor alias: score",
    )


def test_a_tensor_that_does_not_parse_is_named_by_alias(client: Client) -> None:
    inputs = ranking_inputs()
    inputs["dense"].ClearField("float_val")
    inputs["dense"].tensor_content = b"123"
    assert refused(client, predict_request(inputs)) == (INVALID, "tensor parsing error: dense")


def test_a_wrong_dtype_fails_in_the_session(client: Client) -> None:
    inputs = ranking_inputs() | {"dense": tensor(DT_INT64, [1], [1])}
    code, message = refused(client, predict_request(inputs))
    assert code == INVALID
    assert "to be float but int64 is provided" in message


def test_defaults_are_filled_in(edge_client: Client) -> None:
    response = edge_client.predict(predict_request(edge_x(), model="edge", signature="with_default"))
    assert list(response.outputs["scaled"].float_val) == [2.0, 4.0, 6.0]
    scale = tensor(DT_FLOAT, [], [10.0])
    response = edge_client.predict(predict_request(edge_x(scale=scale), model="edge", signature="with_default"))
    assert list(response.outputs["scaled"].float_val) == [10.0, 20.0, 30.0]


def test_with_defaults_a_missing_and_an_unknown_input(edge_client: Client) -> None:
    scale = tensor(DT_FLOAT, [], [10.0])
    code, message = refused(edge_client, predict_request({"scale": scale}, model="edge", signature="with_default"))
    assert (code, message) == (
        INVALID,
        "Signature input alias: x(feed name: x:0) not found in request and no default value provided. Inputs expected "
        "to be in the request {scale}, or default input alias set: scale",
    )
    code, message = refused(edge_client, predict_request(edge_x(y=scale), model="edge", signature="with_default"))
    assert (code, message) == (
        INVALID,
        "Inputs contains invalid name. Used request inputs: x, request input: x,y",
    )


def test_the_method_name_is_not_checked(edge_client: Client) -> None:
    example = tf_protos.load("tensorflow.core.example.example_pb2").Example()
    example.features.feature["x"].float_list.value.append(0.25)
    inputs = {"inputs": tensor(7, [1], [example.SerializeToString()])}
    response = edge_client.predict(predict_request(inputs, model="edge", signature="classify"))
    assert list(response.outputs["scores"].float_val) == [0.25, 0.75]


def test_an_error_of_the_model_keeps_its_code(edge_client: Client) -> None:
    request = predict_request({"x": tensor(DT_FLOAT, [1, 3], [-1.0] * 3)}, model="edge", signature="checked")
    code, message = refused(edge_client, request)
    assert code == INVALID
    assert "x must not be negative" in message


def test_metadata_is_the_models_own(client: Client) -> None:
    request = metadata_request(metadata_field=["signature_def"])
    request.model_spec.name = "ranking"
    response = client.prediction.GetModelMetadata(request, timeout=60)
    assert (response.model_spec.name, response.model_spec.version.value) == ("ranking", 1)
    signatures = tf_protos.load("tensorflow_serving.apis.get_model_metadata_pb2").SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    default = signatures.signature_def["serving_default"]
    assert default.inputs["dense"].name == "serving_default_dense:0"
    assert [dim.size for dim in default.inputs["dense"].tensor_shape.dim] == [-1, 16]
    assert {"serving_default", "explain"} <= set(signatures.signature_def)


def test_metadata_without_a_field(client: Client) -> None:
    request = metadata_request()
    request.model_spec.name = "ranking"
    with pytest.raises(grpc.RpcError) as caught:
        client.prediction.GetModelMetadata(request, timeout=60)
    assert caught.value.code() == INVALID
    assert caught.value.details() == "GetModelMetadataRequest must specify at least one metadata_field"


def test_status(client: Client) -> None:
    for request in (status_request("ranking"), status_request("ranking", 1)):
        response = client.model.GetModelStatus(request, timeout=60)
        (version,) = response.model_version_status
        assert (version.version, version.state, version.status.error_code) == (1, version.AVAILABLE, 0)


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("ranking", 7, "Could not find version 7 of model ranking"),
        ("other", None, "Could not find any versions of model other"),
    ],
)
def test_status_of_what_is_not_there(client: Client, name: str, version: int | None, message: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.model.GetModelStatus(status_request(name, version), timeout=60)
    assert (caught.value.code(), caught.value.details()) == (NOT_FOUND, message)


def test_ten_megabytes_pass(client: Client) -> None:
    inputs = ranking_inputs(batch=10, items=310_000)
    request = predict_request(inputs, outputs=["top_ids"])
    assert request.ByteSize() > 10_000_000
    assert len(client.predict(request).outputs["top_ids"].int64_val) == 30


def test_builds_are_charged_to_the_request_that_caused_them(ranking: Path) -> None:
    with HostProcess(ranking) as host:
        channel, client = connect(host)
        with channel:
            for outputs in (["score"], ["score"], ["embedding"], ["nope"], []):
                try:
                    client.predict(predict_request(ranking_inputs(), outputs=outputs))
                except grpc.RpcError:
                    assert outputs == ["nope"]
            statistics = host.statistics()
            assert [request["builds_delta"] for request in statistics["requests"]] == [1, 0, 1, 0, 1]
            assert [request["code"] for request in statistics["requests"]] == [0, 0, 0, 3, 0]
            assert {request["protocol"] for request in statistics["requests"]} == {"grpc"}
            assert statistics["builds"] - statistics["builds_at_ready"] == 3
            metrics = dict(line.split() for line in host.get("/monitoring/prometheus/metrics").splitlines()[1::2])
            # The counter as the server exports it is the process's: the load's own builds are in it.
            assert int(metrics[":tensorflow:core:graph_build_calls{}"]) >= 3
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(client.predict, [predict_request(ranking_inputs(), outputs=["score"])] * 20))
            assert host.new_builds() == 3
        assert host.stop() == 0
        assert host.error == ""


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    with pytest.raises(NotReady) as caught:
        HostProcess(tmp_path / "1")
    assert caught.value.status == 1
    assert caught.value.error == f"capture: error: {tmp_path}/1: no saved_model.pb in it, so it is no SavedModel\n"


def test_a_port_that_is_taken(client: Client, edge: Path) -> None:
    with pytest.raises(NotReady) as caught:
        HostProcess(edge, f"--grpc-listen={client.host.grpc}")
    assert caught.value.status == 1
    assert caught.value.error.startswith("capture: error: cannot listen: ")


@pytest.mark.parametrize("option", ["--grpc-listen", "--eas-listen", "--stats-listen"])
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:99999", "port 99999 is not between 0 and 65535"),
        ("127.0.0.1:65536", "port 65536 is not between 0 and 65535"),
        ("127.0.0.1:" + "9" * 5000, f"port {'9' * 5000} is not between 0 and 65535"),
        ("127.0.0.1:-1", "no address; write host:port, for example 127.0.0.1:8500"),
        ("127.0.0.1:²", "no address; write host:port, for example 127.0.0.1:8500"),
        ("127.0.0.1", "no address; write host:port, for example 127.0.0.1:8500"),
        (":8500", "no address; write host:port, for example 127.0.0.1:8500"),
        ("::1:8500", "no address; write host:port, for example 127.0.0.1:8500"),
        ("http://127.0.0.1:8500", "no address; write host:port, for example 127.0.0.1:8500"),
    ],
)
def test_an_address_that_is_none(option: str, address: str, message: str, tmp_path: Path) -> None:
    addresses = {"--grpc-listen": "127.0.0.1:0", "--eas-listen": "127.0.0.1:0", option: address}
    options = model_host.HostOptions(
        tmp_path,
        "m",
        1,
        grpc_listen=addresses["--grpc-listen"],
        eas_listen=addresses["--eas-listen"],
        eas_service="s",
        stats_listen=addresses.get("--stats-listen", ""),
    )
    with pytest.raises(model_host.HostError) as caught:
        model_host.run(options)
    assert str(caught.value) == f"{option} {address}: {message}"
