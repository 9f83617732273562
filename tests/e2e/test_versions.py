"""Which version served a call that does not say it, told by the status of the model server: real TensorFlow, real
clients, a real sidecar. Where one server loads and unloads versions its status is tests/support/version_server.py;
where a server is replaced by another it is the model host's own."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
import requests

from capture.metadata import read_metadata
from capture.store.base import UNKNOWN_VERSION, open_store
from replay import tf_protos
from tests.e2e.conftest import Front
from tests.support.net_sidecar import Sidecar
from tests.support.processes import capture
from tests.support.tf_host import HostProcess
from tests.support.tf_requests import census_input, predict_request, serialized_examples
from tests.support.version_server import Fault, VersionServer
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server

MODEL = "census"
BEFORE, DURING, AFTER, ALWAYS = ("scores",), ("classes",), ("classes", "scores"), ()


@pytest.fixture(scope="module")
def hosts(census: Path) -> Iterator[dict[str, str]]:
    """The same model as version 1 and version 2."""
    with (
        HostProcess(census, "--model-version=1", eas=False) as one,
        HostProcess(census, "--model-version=2", eas=False) as two,
    ):
        yield {"1": one.grpc, "2": two.grpc}


def sidecar(upstream: str, status: str, directory: Path) -> Front:
    path = directory / "warmtap.sqlite"
    settings = {
        "listeners": [{"listen": "127.0.0.1:0", "upstream": upstream, "status": status}],
        "capture": {"store": str(path), "shed_lag": 0, "status_interval": 0.1},
        "relay": {"drain_delay": 0},
        "admin": {"listen": ""},
    }
    (directory / "settings.yaml").write_bytes(msgspec.yaml.encode(settings))
    process = Sidecar("--config", str(directory / "settings.yaml"), cwd=directory)
    front = Front(process, f"127.0.0.1:{process.ready()[0]}", "", path)
    until(lambda: front.count("worker_ready"), "a worker that reads")
    return front


class Client:
    """A real stub on one channel. ``sent`` counts calls by the outputs that they asked for."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target)
        stubs = tf_protos.load("tensorflow_serving.apis.prediction_service_pb2_grpc")
        self._stub = stubs.PredictionServiceStub(self._channel)
        self.sent: Counter[tuple[str, ...]] = Counter()

    def call(self, outputs: tuple[str, ...], label: str = "") -> None:
        inputs = {"inputs": serialized_examples(census_input(2))}
        request = predict_request(inputs, model=MODEL, signature="classify", outputs=outputs)
        if label:
            request.model_spec.version_label = label
        answer = self._stub.Predict(request, timeout=PATIENCE)
        assert not answer.HasField("model_spec")
        assert len(answer.outputs) == (len(outputs) or 2)
        self.sent[outputs] += 1

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()


def stored(path: Path) -> dict[tuple[tuple[str, ...], str], int]:
    """Hits by outputs and version."""
    store = open_store(str(path))
    try:
        return {(row.signature.outputs or (), row.key.owner.version): row.hits for row in store.signatures()}
    finally:
        store.close()


def test_a_server_that_moves_to_another_version_under_traffic(hosts: dict[str, str], tmp_path: Path) -> None:
    with VersionServer(MODEL, hosts).run() as server:
        server.become("1", {"1": "AVAILABLE"})
        server.labels["canary"] = "2"
        front = sidecar(server.grpc, server.status, tmp_path)
        with front.sidecar, Client(front.grpc) as client, Client(front.grpc) as other:
            stop = threading.Event()

            def always() -> None:
                while not stop.wait(0.01):
                    other.call(ALWAYS)

            background = threading.Thread(target=always)
            background.start()
            try:
                send_until(client, BEFORE, lambda: (BEFORE, "1") in stored(front.path))
                server.become("1", {"1": "AVAILABLE", "2": "LOADING"})
                server.wait_told()
                for _ in range(5):
                    client.call(DURING)
                server.become("2", {"1": "AVAILABLE", "2": "AVAILABLE"})
                server.become("2", {"1": "UNLOADING", "2": "AVAILABLE"})
                server.wait_told()
                server.become("2", {"1": "END", "2": "AVAILABLE"})
                server.wait_told()
                send_until(client, AFTER, lambda: (AFTER, "2") in stored(front.path))
                until(lambda: front.count("metadata_stored") >= 2, "SignatureDefs of two versions")
            finally:
                stop.set()
                background.join()
            front.wait_observed(client.sent.total() + other.sent.total())
            attributed, unknown = front.count("versions_attributed"), front.count("versions_unknown")
        found = stored(front.path)
        sent = client.sent + other.sent
        assert {outputs: sum(hits for (of, _), hits in found.items() if of == outputs) for outputs in sent} == sent
        assert {version for outputs, version in found if outputs == BEFORE} <= {"1", UNKNOWN_VERSION}
        assert {version for outputs, version in found if outputs == DURING} == {UNKNOWN_VERSION}
        assert {version for outputs, version in found if outputs == AFTER} <= {"2", UNKNOWN_VERSION}
        for (outputs, version), hits in found.items():
            if version != UNKNOWN_VERSION:
                assert hits <= server.served[version, outputs]
        assert sum(hits for (_, version), hits in found.items() if version != UNKNOWN_VERSION) == attributed
        assert found[ALWAYS, "1"]
        assert found[ALWAYS, "2"]
        # What still waits when the sidecar ends is neither.
        assert 5 <= unknown <= sent.total() - attributed
        check_store(front.path, hosts)


def send_until(client: Client, outputs: tuple[str, ...], condition: Any) -> None:
    """Send calls for as long as it takes."""

    def once() -> Any:
        client.call(outputs)
        return condition()

    until(once, f"{outputs} attributed")


def check_store(path: Path, hosts: dict[str, str]) -> None:
    """The versions have SignatureDefs, and a sample of their own."""
    store = open_store(str(path))
    try:
        metadata = {one.owner.version: read_metadata(one.body).signatures for one in store.metadata(MODEL)}
        assert metadata.keys() == hosts.keys()
        assert metadata["1"].keys() == metadata["2"].keys() >= {"classify", "regress"}
        for row in store.signatures():
            if row.key.owner.version != UNKNOWN_VERSION:
                assert store.sample(row.key) is not None, row
    finally:
        store.close()


def test_rest_to_a_server_that_is_replaced_by_one_of_the_next_version(edge: Path, tmp_path: Path) -> None:
    first, second = "REST Predict row edge/serving_default () -> (*)", "REST Predict column edge/checked (x) -> (*)"
    host = HostProcess(edge, "--model-name=edge", "--model-version=1", rest=True, eas=False)
    rest = host.rest
    front = sidecar(rest, f"http://{rest}", tmp_path)

    def versions() -> dict[str, set[str]]:
        with closing(front.store()) as store:
            found: dict[str, set[str]] = {}
            for row in store.signatures():
                found.setdefault(str(row.signature), set()).add(row.key.owner.version)
            return found

    def post(body: Any, line: str, version: str) -> None:
        def once() -> bool:
            answer = requests.post(f"http://{front.grpc}/v1/models/edge:predict", json=body, timeout=PATIENCE)
            assert answer.status_code == 200, answer.text
            return version in versions().get(line, ())

        until(once, f"{line} attributed to {version}")

    with front.sidecar:
        with host:
            post({"instances": [[1.0, 2.0, 3.0]]}, first, "1")
        with HostProcess(edge, "--model-name=edge", "--model-version=2", f"--rest-listen={rest}", eas=False):
            post({"signature_name": "checked", "inputs": {"x": [[1.0, 2.0, 3.0]]}}, second, "2")
            until(lambda: front.count("metadata_stored") >= 2, "SignatureDefs of two versions")
    found = versions()
    assert found[first] <= {"1", UNKNOWN_VERSION}
    assert found[second] <= {"2", UNKNOWN_VERSION}
    check_commands(front.path, tmp_path / "warmup", edge)


def check_commands(store: Path, out: Path, edge: Path) -> None:
    """Without the model's files REST requests are written as the gRPC requests that the told SignatureDefs make of
    them: the same bytes as with the files."""
    common = ("--format=tfrecord", "--model=edge", f"--store={store}")
    done = capture("export", *common, f"--out={out}")
    assert done.returncode == 0, done.stderr
    with_files = out.with_name("with-files")
    assert capture("export", *common, f"--out={with_files}", f"--saved-model={edge}").returncode == 0
    assert out.read_bytes() == with_files.read_bytes()
    listed = capture("ls", f"--store={store}")
    assert "SignatureDefs told by the model server: edge/2, edge/1" in listed.stderr
    assert "\tedge/1\t" in listed.stdout
    shown = capture("show", listed.stdout.splitlines()[1].split()[0], f"--store={store}")
    assert " on version 2, as the model server told" in shown.stdout


def test_a_label_is_told_by_its_metadata(hosts: dict[str, str], tmp_path: Path) -> None:
    with VersionServer(MODEL, hosts).run() as server:
        server.become("2", {"1": "AVAILABLE", "2": "AVAILABLE"})
        server.labels["stable"] = "1"
        front = sidecar(server.grpc, server.status, tmp_path)
        with front.sidecar, Client(front.grpc) as client:

            def once() -> bool:
                client.call(BEFORE, "stable")
                client.call(AFTER)
                return {(BEFORE, "1"), (AFTER, "2")} <= stored(front.path).keys()

            until(once, "both attributed")
        assert {version for outputs, version in stored(front.path) if outputs == BEFORE} <= {"1", UNKNOWN_VERSION}
        assert {version for outputs, version in stored(front.path) if outputs == AFTER} <= {"2", UNKNOWN_VERSION}


def test_a_status_that_fails_in_any_way_costs_the_version_and_nothing_else(
    hosts: dict[str, str], tmp_path: Path
) -> None:
    faults: tuple[Fault, ...] = ("no such model", "garbage", "huge", "another version", "slow")
    with VersionServer(MODEL, hosts).run() as server:
        server.become("1", {"1": "UNKNOWN"})
        front = sidecar(server.grpc, server.status, tmp_path)
        with front.sidecar, Client(front.grpc) as client:
            for fault in faults:
                server.fault = fault
                server.become("1", {"1": "AVAILABLE" if fault == "another version" else "UNKNOWN"})
                before = front.count("status_failures")
                client.call(DURING)
                until(lambda before=before: front.count("status_failures") > before, fault)  # type: ignore[misc]
                client.call(DURING)
            front.wait_observed(client.sent.total())
        assert front.count("metadata_stored") == 0
        assert sum(stored(front.path).values()) == client.sent.total() == 2 * len(faults)
        assert "model versions not known" in front.sidecar.error


def test_without_a_server_at_the_address_nothing_is_different(hosts: dict[str, str], tmp_path: Path) -> None:
    with VersionServer(MODEL, hosts).run() as server:
        server.become("1", {"1": "AVAILABLE"})
        server.status = "http://127.0.0.1:9"
        front = sidecar(server.grpc, server.status, tmp_path)
        with front.sidecar, Client(front.grpc) as client:
            client.call(DURING)
            until(lambda: front.count("status_failures"), "a failed poll")
            client.call(DURING)
            front.wait_observed(2)
        assert stored(front.path) == {(DURING, UNKNOWN_VERSION): 2}
