"""Real clients through the sidecar, and what they sent read back from what was exported."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from capture.commands.export import export
from capture.export.tfrecord import read_records
from capture.schema import messages
from replay import tf_protos
from replay.client import EasSender
from tests.demo.traffic import EXPLAIN_INPUTS, RANK_INPUTS
from tests.e2e.conftest import MODEL, SERVICE, Front, eas_client, eas_parse, front, tf_client
from tests.support.net_sidecar import Sidecar
from tests.support.tf_host import HostProcess

pytestmark = pytest.mark.server

#: Values of one item_ids input: over 10 MB as int64 (gRPC) and as varints (EAS).
LARGE_ITEMS = 1_320_000


def call(
    outputs: list[str],
    seed: int,
    *,
    signature: str = "",
    inputs: list[str] = RANK_INPUTS,
    items: int = 5,
    batch: int = 2,
) -> dict[str, Any]:
    return {"signature": signature, "inputs": inputs, "outputs": outputs, "batch": batch, "items": items, "seed": seed}


PLAN = [
    call([], 1),
    call(["score"], 2),
    call(["score"], 3, batch=7),
    call(["score", "top_ids"], 4),
    call(["top_ids", "score"], 5, inputs=RANK_INPUTS[::-1]),
    call(["attribution"], 6, signature="explain", inputs=EXPLAIN_INPUTS),
]
LARGE = call(["embedding"], 7, items=LARGE_ITEMS, batch=1)
#: The wire signatures of PLAN and LARGE, as users read them.
LINES = {
    "(category, dense, item_ids, user_id) -> (*)",
    "(category, dense, item_ids, user_id) -> (score)",
    "(category, dense, item_ids, user_id) -> (score, top_ids)",
    "(category, dense, user_id) -> (attribution)",
    "(category, dense, item_ids, user_id) -> (embedding)",
}


@dataclass
class Captured:
    front: Front
    grpc_sent: list[bytes]
    eas_sent: list[bytes]
    answers: list[dict[str, Any]]


@pytest.fixture(scope="module")
def captured(ranking_host: HostProcess, tmp_path_factory: pytest.TempPathFactory) -> Captured:
    """PLAN over both protocols, on a kept connection with a large request and again on a connection for each call."""
    place = front(ranking_host, tmp_path_factory.mktemp("captured"))
    with place.sidecar:
        kept = [*PLAN, LARGE]
        answers = [
            json.loads(tf_client(place.grpc, kept)),
            json.loads(tf_client(place.grpc, PLAN, "--reconnect")),
            json.loads(eas_client(place.eas, kept, "--token", "a-secret-token")),
            json.loads(eas_client(place.eas, PLAN, "--reconnect")),
        ]
        place.wait_observed(sum(answer["sent"] for answer in answers))
    grpc_sent = [bytes.fromhex(line) for line in tf_client(place.grpc, kept, "--dump").split()]
    eas_sent = [bytes.fromhex(line) for line in eas_client(place.eas, kept, "--dump").split()]
    return Captured(place, grpc_sent, eas_sent, answers)


def test_every_call_is_answered(captured: Captured) -> None:
    for answer in captured.answers:
        assert answer["errors"] == []
        assert answer["ok"] == answer["sent"]


def test_every_call_is_counted_and_nothing_is_lost(captured: Captured) -> None:
    store = captured.front.store()
    counters = store.counters()
    sent = sum(answer["sent"] for answer in captured.answers)
    assert counters["requests_observed"] == counters["requests_proven"] == sent
    assert {name: value for name, value in counters.items() if value and ("lost" in name or "missed" in name)} == {}
    assert sum(row.hits for row in store.signatures()) == sent
    store.close()


def test_signatures_are_those_that_were_sent(captured: Captured) -> None:
    store = captured.front.store()
    for model in (MODEL, SERVICE):
        rows = store.signatures(model)
        assert {str(row.signature).split(" ", 2)[2] for row in rows} == LINES
        expected_version = "1" if model == MODEL else "unknown"
        assert {row.key.owner.version for row in rows} == {expected_version}
    store.close()


def test_samples_and_held_out_requests_are_bytes_that_a_client_sent(captured: Captured) -> None:
    store = captured.front.store()
    eas_sent = set(captured.eas_sent)
    for row in store.signatures(SERVICE):
        sample = store.sample(row.key)
        assert sample is not None
        assert sample.body in eas_sent
    held_out = list(store.held_out())
    assert held_out
    for key, held in held_out:
        sent = eas_sent if key.owner.family == "eas" else {_canonical(body) for body in captured.grpc_sent}
        assert (held.sample.body if key.owner.family == "eas" else _canonical(held.sample.body)) in sent
    store.close()


def _canonical(body: bytes) -> bytes:
    """gRPC requests are compared as messages: the order of a map's entries differs between two processes."""
    request = tf_protos.load("tensorflow_serving.apis.predict_pb2").PredictRequest.FromString(body)
    return bytes(request.SerializeToString(deterministic=True))


def test_credentials_are_nowhere_in_the_store(captured: Captured) -> None:
    for path in captured.front.path.parent.glob("warmtap.sqlite*"):
        content = path.read_bytes()
        assert b"a-secret-token" not in content
        assert b"Authorization" not in content
        assert b"EAS " not in content
        assert path.stat().st_mode & 0o777 == 0o600


def test_tfrecord_holds_the_tensors_that_the_client_sent(captured: Captured, ranking: Path, tmp_path: Path) -> None:
    out = tmp_path / "warmup"
    export("tfrecord", MODEL, out, store=str(captured.front.path), saved_model=ranking)
    log = tf_protos.load("tensorflow_serving.apis.prediction_log_pb2").PredictionLog
    sent = {_canonical(body) for body in captured.grpc_sent}
    records = [log.FromString(record).predict_log.request for record in read_records(out.read_bytes())]
    assert len(records) == len(LINES)
    for request in records:
        assert not request.model_spec.HasField("version")
        assert bytes(request.SerializeToString(deterministic=True)) in sent


def test_eas_bin_is_what_the_sdk_sent(captured: Captured, ranking: Path, tmp_path: Path) -> None:
    out = tmp_path / "eas"
    export("eas-bin", SERVICE, out, store=str(captured.front.path), saved_model=ranking)
    files = sorted(out.glob("*.bin"))
    assert len(files) == len(LINES)
    bodies = [path.read_bytes() for path in files]
    assert set(bodies) <= set(captured.eas_sent)
    # The SDK's own message takes every one of them and gives the same bytes back.
    assert eas_parse(bodies) == bodies
    assert max(map(len, bodies)) > 10_000_000


def test_large_requests_are_stored_whole(captured: Captured) -> None:
    store = captured.front.store()
    for model in (MODEL, SERVICE):
        (row,) = (row for row in store.signatures(model) if row.signature.outputs == ("embedding",))
        sample = store.sample(row.key)
        assert sample is not None
        assert len(sample.body) > 10_000_000
    store.close()


def test_a_request_over_the_limit_is_counted_and_not_kept_short(edge_host: HostProcess, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"listeners:\n  - {{listen: '127.0.0.1:0', upstream: '{edge_host.eas}'}}\n"
        f"capture:\n  store: {tmp_path}/warmtap.sqlite\n  limits: {{request_bytes: 1000}}\n"
    )
    request = messages.EasPredictRequest()
    request.inputs["x"].dtype = 1
    request.inputs["x"].array_shape.dim.extend([1000, 3])
    request.inputs["x"].float_val.extend([1.0] * 3000)
    with Sidecar("--config", str(config), cwd=tmp_path) as sidecar:
        (port,) = sidecar.ready()
        with EasSender(f"127.0.0.1:{port}", SERVICE, 60) as sender:
            assert sender.send(request.SerializeToString()).error == ""
        place = Front(sidecar, "", "", tmp_path / "warmtap.sqlite")
        place.wait_observed(1)
    store = place.store()
    assert store.counters()["requests_oversized"] == 1
    assert store.signatures() == []
    assert store.refusals() == [("eas", SERVICE, "oversized", "body over the limit", 1)]
    store.close()
