"""A model moves from version 1 to version 2 behind two sidecars that share one store: what production used of version 1
is warm when version 2 is served, as far as it fits."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
import yaml

from capture.export.manifest import MANIFEST_SUFFIX
from capture.export.tfrecord import WARMUP_PATH
from capture.store.base import StoreError, open_store
from replay import tf_protos
from tests.support.net_sidecar import Sidecar
from tests.support.processes import capture
from tests.support.tf_host import HostProcess
from tests.support.tf_models import private_copy, saved_model
from tests.support.tf_requests import DT_FLOAT, predict_request, tensor
from tests.support.valkey import Server
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server

MODEL = "rollout"
VALUES = itertools.count(1)
#: What clients of each sidecar ask for; () is everything.
FIRST, SECOND = [("sum",), ("old",), ()], [("sum", "double"), ("double",), ()]
FITS = [("sum",), ("double",), ("sum", "double"), ()]


class Poller:
    """Looks at a base path as TF Serving does: what it sees of a version in the moment that saved_model.pb is there."""

    def __init__(self, base: Path) -> None:
        #: Version -> whether it had its file.
        self.seen: dict[str, bool] = {}
        self._base = base
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def _poll(self) -> None:
        while not self._ended.is_set():
            for name in os.listdir(self._base):
                if name.isdigit() and name not in self.seen and (self._base / name / "saved_model.pb").exists():
                    self.seen[name] = (self._base / name / WARMUP_PATH).exists()

    def __enter__(self) -> Poller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


class Client:
    """A real stub on one channel."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target)
        self._stub = tf_protos.load("tensorflow_serving.apis.prediction_service_pb2_grpc").PredictionServiceStub(
            self._channel
        )

    def call(self, outputs: Sequence[str], **inputs: Any) -> Any:
        """One call with values that no other has."""
        given = {"x": tensor(DT_FLOAT, [1, 3], [float(next(VALUES))] * 3), **inputs}
        # A server that was replaced is connected to anew.
        return self._stub.Predict(
            predict_request(given, model=MODEL, outputs=outputs), timeout=PATIENCE, wait_for_ready=True
        )

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    with Server(tmp_path / "valkey") as server:
        yield server.url


def sidecar(upstream: str, store: str, directory: Path) -> Sidecar:
    directory.mkdir()
    settings = {
        "listeners": [{"listen": "127.0.0.1:0", "upstream": upstream}],
        "capture": {"store": store, "shed_lag": 0},
        "relay": {"drain_delay": 0},
        "admin": {"listen": ""},
    }
    (directory / "settings.yaml").write_bytes(msgspec.yaml.encode(settings))
    return Sidecar("--config", str(directory / "settings.yaml"), cwd=directory)


def stored(url: str) -> set[tuple[str, tuple[str, ...]]]:
    """(version, outputs) of every signature."""
    try:
        source = open_store(url)
    except StoreError:
        return set()  # no sidecar has written yet
    try:
        return {(row.key.owner.version, row.signature.outputs or ()) for row in source.signatures()}
    finally:
        source.close()


def test_version_2_becomes_visible_with_what_still_fits(model_cache: Path, store: str, tmp_path: Path) -> None:
    base, staging = tmp_path / MODEL, tmp_path / "staged"
    staging.mkdir()
    one = private_copy(saved_model(model_cache, MODEL, 1), tmp_path)
    settings = tmp_path / "refresh.yaml"
    model = {"model": MODEL, "base": str(base), "staging": str(staging), "in_place": True}
    settings.write_text(yaml.safe_dump({"store": store, "models": [model]}))
    two = base / "2"

    with ExitStack() as stack:
        with HostProcess(one, eas=False) as host:
            address = host.grpc
            sidecars = [stack.enter_context(sidecar(address, store, tmp_path / name)) for name in ("first", "second")]
            clients = [Client(f"127.0.0.1:{each.ready()[0]}") for each in sidecars]
            for client, asked in zip(clients, (FIRST, SECOND), strict=True):
                stack.callback(client.close)
                for outputs in asked * 3:
                    client.call(outputs)
            wanted = {("1", tuple(sorted(outputs))) for outputs in (*FIRST, *SECOND)}
            until(lambda: wanted <= stored(store), "all signatures in the store")
            poller = stack.enter_context(Poller(base))
            # The trainer's side: everything elsewhere, then one rename.
            shutil.copytree(saved_model(model_cache, MODEL, 2), tmp_path / "training")
            (tmp_path / "training").rename(staging / "2")
            done = capture("refresh", "--config", str(settings))
            assert done.returncode == 0, done.stderr + done.stdout
            assert f"{MODEL} version 2: promoted: 4 records, each run on it with TensorFlow" in done.stdout
            until(lambda: "2" in poller.seen, "a poller that looks")
        # Version 1 was served before there was any traffic; it gets its file for when it is loaded again.
        assert poller.seen == {"1": False, "2": True}
        described = json.loads((two / (WARMUP_PATH + MANIFEST_SUFFIX)).read_bytes())
        assert {record["from_version"] for record in described["records"]} == {"1"}
        assert [left["reason"] for left in described["left_out"]] == ["does not fit: no output old"]

        with HostProcess(two, f"--grpc-listen={address}", eas=False) as host:
            for client in clients:
                for outputs in FITS:
                    client.call(outputs)
                # What has a default may be sent, and is the same executor.
                client.call(("sum",), scale=tensor(DT_FLOAT, [], [3.0]))
                with pytest.raises(grpc.RpcError) as refused:
                    client.call(("old",))
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert host.new_builds() == 0
            verdict = verified(two, store)
            assert verdict["verdict"] == "proved", verdict
            assert "no output old" in json.dumps(verdict)
            # What only version 2 has comes with its traffic, and its file follows.
            clients[0].call(("new",))
            assert host.new_builds() == 1
            until(lambda: ("2", ("new",)) in stored(store), "version 2's own signature in the store")
    done = capture("refresh", "--config", str(settings))
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"{MODEL} version 2: 5 records, each run on it" in done.stdout
    assert (two / f"{WARMUP_PATH}.prev").exists()


def verified(version: Path, store: str) -> dict[str, Any]:
    """``capture verify``: its document."""
    done = capture("verify", "--saved-model", str(version), "--traffic", store, "--json")
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
