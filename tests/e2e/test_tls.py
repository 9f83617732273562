"""TLS on both sides of the relay, with real clients: grpcio, http.client, and one sidecar in front of another."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from capture.store.base import open_store
from tests.demo.traffic import RANK_INPUTS
from tests.e2e.conftest import MODEL, tf_client
from tests.e2e.test_worker_faults import JsChannel
from tests.support.certificates import Authority
from tests.support.net_http import echo_server
from tests.support.net_sidecar import Sidecar
from tests.support.net_tls import client_context
from tests.support.tf_host import HostProcess
from tests.support.tf_requests import predict_request, ranking_inputs
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server


def call(outputs: list[str], seed: int) -> dict[str, Any]:
    return {"signature": "", "inputs": RANK_INPUTS, "outputs": outputs, "batch": 2, "items": 3, "seed": seed}


@contextlib.contextmanager
def sidecar(directory: Path, name: str, upstream: str, **listener: Any) -> Iterator[tuple[Sidecar, int, Path]]:
    """One that runs, its port and its settings file; the store is ``<name>.sqlite``."""
    path = directory / f"{name}.yaml"
    settings = {
        "listeners": [{"listen": "127.0.0.1:0", "upstream": upstream, **listener}],
        "capture": {"store": str(directory / f"{name}.sqlite"), "shed_lag": 0},
        "relay": {"drain_delay": 0, "tls_handshake_timeout": 3},
        "admin": {"listen": ""},
    }
    path.write_bytes(msgspec.yaml.encode(settings))
    with Sidecar("--config", str(path), cwd=directory) as running:
        (port,) = running.ready()
        yield running, port, path


def test_grpc_through_two_sidecars_is_read_by_both(tmp_path: Path, ranking_host: HostProcess) -> None:
    """grpcio and grpc-js insist on h2 by ALPN, at both hops; each sidecar sees the plaintext of what it relays."""
    authority = Authority(tmp_path)
    near, far = ({"certificate": one.certificate, "key": one.key} for one in map(authority.issue, ("near", "far")))
    plan = [call([], 1), call(["score"], 2), call(["top_ids"], 3)]
    with (
        sidecar(tmp_path, "far", ranking_host.grpc, tls=far) as (last, far_port, _),
        sidecar(tmp_path, "near", f"localhost:{far_port}", tls=near, upstream_tls={"ca": authority.ca}) as (
            first,
            port,
            _,
        ),
    ):
        counters = [one.counters() for one in (first, last)]
        for options in ((), ("--reconnect",)):
            done = json.loads(tf_client(f"localhost:{port}", plan, "--tls", authority.ca, *options))
            assert done == {"sent": 3, "ok": 3, "errors": []}
        # Another stack: Node's TLS, and header blocks of its own kind.
        with JsChannel(f"localhost:{port}", authority.ca) as channel:
            for output in ("score", "top_ids", "score"):
                call_of_js = predict_request(ranking_inputs(), outputs=[output])
                assert channel.send(call_of_js.SerializeToString()) == 0
        for one in counters:
            until(lambda one=one: one.snapshot()["requests_proven"] == 9)  # type: ignore[misc]
            assert one.snapshot()["flows_closed_tls_failed"] == 0
    for name in ("near", "far"):
        with contextlib.closing(open_store(str(tmp_path / f"{name}.sqlite"))) as store:
            assert sorted((str(row.signature), row.proven) for row in store.signatures(MODEL)) == [
                (f"Predict ranking/serving_default (category, dense, item_ids, user_id) -> ({outputs})", proven)
                for outputs, proven in (("*", 2), ("score", 4), ("top_ids", 3))
            ]


def test_a_plaintext_grpc_client_of_a_model_server_that_speaks_tls(tmp_path: Path, ranking_host: HostProcess) -> None:
    authority = Authority(tmp_path)
    own = authority.issue("far")
    with (
        sidecar(tmp_path, "far", ranking_host.grpc, tls={"certificate": own.certificate, "key": own.key}) as (_, to, _),
        sidecar(tmp_path, "near", f"127.0.0.1:{to}", upstream_tls={"ca": authority.ca, "alpn": ["h2"]}) as (
            first,
            port,
            _,
        ),
    ):
        done = json.loads(tf_client(f"127.0.0.1:{port}", [call([], 1)]))
        assert done == {"sent": 1, "ok": 1, "errors": []}
        counters = first.counters()
        until(lambda: counters.snapshot()["requests_proven"] == 1)


def test_certificates_are_renewed_under_a_connection_that_stays(tmp_path: Path) -> None:
    """SIGHUP; a key that does not fit leaves the old pair in use, and is told."""
    authority = Authority(tmp_path)
    own = authority.issue("relay")
    context = client_context(authority.ca)

    def serial(port: int) -> str:
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as sock,
        ):
            found = sock.getpeercert()
            assert found is not None
            return str(found["serialNumber"])

    def ask(connection: http.client.HTTPSConnection) -> None:
        connection.request("POST", "/", b"body")
        assert connection.getresponse().read() == hashlib.sha256(b"body").hexdigest().encode()

    tls = {"certificate": own.certificate, "key": own.key}
    with echo_server() as upstream, sidecar(tmp_path, "s", upstream, tls=tls) as (running, port, _):
        kept = http.client.HTTPSConnection("localhost", port, timeout=PATIENCE, context=context)
        ask(kept)
        before = serial(port)
        stranger = authority.issue("stranger")
        os.replace(stranger.key, own.key)
        running.process.send_signal(signal.SIGHUP)
        line = running.wait_for(r'"settings not reloaded" error="([^"]*)"')[1]
        assert line == f"listeners[0].tls: {own.key}: is not the key of the certificate in {own.certificate}"
        assert serial(port) == before
        os.replace(stranger.certificate, own.certificate)
        running.process.send_signal(signal.SIGHUP)
        running.wait_for('msg="settings reloaded"')
        until(lambda: serial(port) != before)
        ask(kept)
        kept.close()


def test_a_handshake_that_does_not_end_is_reset_and_told(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.issue("relay")
    tls = {"certificate": own.certificate, "key": own.key}
    with echo_server() as upstream, sidecar(tmp_path, "s", upstream, tls=tls) as (running, port, _):
        counters = running.counters()
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock, pytest.raises(ConnectionResetError):
            sock.recv(1)
        until(lambda: counters.snapshot()["flows_closed_tls_timeout"] == 1)
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE) as raw,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")
        until(lambda: counters.snapshot()["flows_closed_tls_failed"] == 1)
