"""What must never be in a store, and who may never read one: with the real sidecar, servers and clients."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from replay.client import EasSender
from tests.e2e.conftest import SERVICE
from tests.e2e.test_worker_faults import eas_body, grpc_body
from tests.support.net_sidecar import Sidecar
from tests.support.processes import capture
from tests.support.tf_host import HostProcess
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server

PREDICT = "/tensorflow.serving.PredictionService/Predict"
TOKEN = "eas-" + secrets.token_hex(12)


@pytest.fixture(scope="module")
def guarded(edge: Path) -> Iterator[HostProcess]:
    """The corner-case model, whose EAS service asks for a token."""
    with HostProcess(edge, f"--eas-token={TOKEN}") as host:
        yield host


def sdk_authorization(body: bytes, path: str, date: str) -> str:
    """The EAS SDKs' signature of a request."""
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
    signed = f"POST\n{digest}\napplication/octet-stream\n{date}\n{path}"
    return "EAS " + base64.b64encode(hmac.new(TOKEN.encode(), signed.encode(), hashlib.sha1).digest()).decode()


class Secrets:
    """Credentials made for one test: each a string of its own, so that a find names what leaked."""

    def __init__(self) -> None:
        self.all: dict[str, bytes] = {}

    def new(self, what: str) -> str:
        value = f"{what.replace(' ', '-')}-{secrets.token_hex(12)}"
        self.all[what] = value.encode()
        return value

    def found(self, data: bytes) -> list[str]:
        """Which of them, as they are or in one of the forms that they are sent in, lie in ``data``."""
        return [
            what
            for what, value in self.all.items()
            for form in (value, base64.b64encode(value).rstrip(b"="), value.hex().encode())
            if form in data
        ]


def test_the_search_finds_each_form() -> None:
    known = Secrets()
    value = known.new("one").encode()
    for form in (value, base64.b64encode(value), value.hex().encode()):
        assert known.found(b"before" + form + b"after") == ["one"]
    assert known.found(value[:-1]) == []


def send_eas(port: int, known: Secrets) -> int:
    """Requests with credentials wherever HTTP can carry them; how many."""
    body, date = eas_body(["sum"]), "Tue, 01 Sep 2026 00:00:00 GMT"
    usual = f"/api/predict/{SERVICE}"
    known.all["eas token"] = TOKEN.encode()
    password = known.new("password")
    known.all["basic"] = base64.b64encode(f"user:{password}".encode())
    query = f"{usual}?token={known.new('query')}&access_key={known.new('second query')}"
    userinfo = f"http://{known.new('user')}:{password}@localhost:1"
    signature = sdk_authorization(body, query, date)
    known.all["sdk signature"] = signature.removeprefix("EAS ").encode()
    common = {
        "Content-Type": "application/octet-stream",
        "Cookie": f"session={known.new('cookie')}",
        "X-Api-Key": known.new("api key"),
        "X-Auth-Token": known.new("unknown header"),
        "Proxy-Authorization": "Basic " + known.all["basic"].decode(),
        "Referer": f"https://console/?token={known.new('referer')}",
        "Date": date,
    }
    sent = 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    for target, authorization, status in (
        (query, TOKEN, 200),
        (query, signature, 200),
        (query, TOKEN, 200),
        (userinfo + query, TOKEN, 200),
        (f"{usual}?token={known.new('refused query')}", known.new("wrong token"), 401),
        (f"/elsewhere?token={known.new('other path query')}", TOKEN, 404),
        (f"{userinfo}/elsewhere?{known.new('bare query')}", TOKEN, 404),
    ):
        connection.request("POST", target, body, {**common, "Authorization": authorization})
        response = connection.getresponse()
        response.read()
        assert response.status == status, target
        sent += 1
    connection.request("POST", query, b"not a request", {**common, "Authorization": TOKEN})
    response = connection.getresponse()
    response.read()
    assert response.status == 400
    connection.close()
    return sent + 1


def send_grpc(port: int, known: Secrets) -> int:
    """Calls with credentials in their metadata, text and binary; how many."""
    metadata = (
        ("authorization", f"Bearer {known.new('bearer')}"),
        ("cookie", known.new("grpc cookie")),
        ("x-api-key", known.new("grpc api key")),
        ("x-token-bin", known.new("binary metadata").encode()),
        ("grpc-tags-bin", known.new("tags").encode()),
    )
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        predict = channel.unary_unary(PREDICT, request_serializer=bytes, response_deserializer=bytes)
        for outputs in (["sum"], ["sum"], ["double"]):
            predict(grpc_body(outputs), timeout=PATIENCE, metadata=metadata)
        for path, body in ((PREDICT, grpc_body(["sum"], signature="none")), ("/other.Service/Get", b"")):
            method = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
            with pytest.raises(grpc.RpcError):
                method(body, timeout=PATIENCE, metadata=metadata)
    return 5


def test_no_credential_reaches_store_log_or_export(guarded: HostProcess, tmp_path: Path) -> None:
    known = Secrets()
    listeners = [{"listen": "127.0.0.1:0", "upstream": one} for one in (guarded.grpc, guarded.eas)]
    # JSON is YAML. With the log that says the most.
    (tmp_path / "s.yaml").write_text(
        json.dumps({"listeners": listeners, "log_level": "debug", "admin": {"listen": ""}})
    )
    store = tmp_path / "warmtap.sqlite"
    with Sidecar("--config", "s.yaml", cwd=tmp_path) as sidecar:
        grpc_port, eas_port = sidecar.ready()
        counters = sidecar.counters()
        sent = send_grpc(grpc_port, known) + send_eas(eas_port, known)
        until(lambda: counters.total()["requests_observed"] >= sent, "all requests read")
        until(lambda: capture("ls", "--store", str(store)).stdout.count("w1-") == 3, "three signatures in the store")
        told = [
            capture("ls", "--store", str(store), "--json").stdout,
            capture("ls", "--store", str(store), "--refused").stdout,
        ]
        digests = [row["signature"] for row in json.loads(told[0])["signatures"]]
        told += [capture("show", digest, "--store", str(store)).stdout for digest in digests]
        # The write-ahead log is there while the sidecar runs.
        beside = {path.name: path.read_bytes() for path in tmp_path.glob("warmtap.sqlite*")}
    assert set(beside) >= {"warmtap.sqlite", "warmtap.sqlite-wal"}
    for form, model, out in EXPORTS:
        done = capture(
            "export", "--store", str(store), "--format", form, "--model", model, "--out", str(tmp_path / out)
        )
        assert done.returncode == 0, done.stderr
        told += [done.stdout, done.stderr]
    files = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {Path(name).name for name in files} >= {"f.manifest.json", "manifest.json", "warmtap.sqlite"}
    told += sidecar.lines
    # Something was captured at all: calls, held-out requests, the header that is on the list, refusals.
    assert b"application/octet-stream" in files[str(store)] + beside["warmtap.sqlite-wal"]
    assert any("401" in text or "not authenticated" in text for text in told)
    leaks = {name: known.found(data) for name, data in {**files, **beside}.items()}
    assert {name: found for name, found in leaks.items() if found} == {}
    assert known.found("\n".join(told).encode()) == []
    assert len(known.all) >= 18


#: Format, model, place.
EXPORTS = [("tfrecord", "edge", "f"), ("eas-bin", SERVICE, "d")]


def test_exports_and_their_directory_are_private(edge_host: HostProcess, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Sidecar("--listen", "127.0.0.1:0", "--upstream", edge_host.eas, cwd=tmp_path) as sidecar:
            (port,) = sidecar.ready()
            with EasSender(f"127.0.0.1:{port}", SERVICE, PATIENCE) as sender:
                assert sender.send(eas_body(["sum"])).error == ""
            until(lambda: "w1-" in capture("ls", "--store", str(tmp_path / "warmtap.sqlite")).stdout, "a signature")
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        done = capture(
            "export", "--store", str(tmp_path / "warmtap.sqlite"), "--format", "eas-bin", "--model", SERVICE,
            "--out", str(tmp_path / "d"),
        )  # fmt: skip
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    assert modes == {f"warmtap.sqlite{end}": 0o600 for end in ("", "-wal", "-shm")}
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "d").iterdir()} == {0o600}


def test_a_store_that_others_may_read_costs_the_capture_and_no_request(edge_host: HostProcess, tmp_path: Path) -> None:
    options = ["--listen", "127.0.0.1:0", "--upstream", edge_host.eas, "--store", "s"]
    with Sidecar(*options, cwd=tmp_path) as sidecar:
        sidecar.ready()
        sidecar.wait_for("msg=reading")
    (tmp_path / "s").chmod(0o644)
    with Sidecar(*options, cwd=tmp_path) as sidecar:
        (port,) = sidecar.ready()
        sidecar.wait_for("store unusable")
        line = next(one for one in sidecar.lines if "store unusable" in one)
        assert "s: others may read it (mode 0644); chmod 600 " in line
        with EasSender(f"127.0.0.1:{port}", SERVICE, PATIENCE) as sender:
            assert [sender.send(eas_body(["sum"])).error for _ in range(3)] == ["", "", ""]
        sidecar.wait_for("capture is not running: see the worker's lines above")
        # And it begins by itself once the store is private.
        (tmp_path / "s").chmod(0o600)
        sidecar.wait_for("msg=reading")
    (tmp_path / "s").chmod(0o640)
    with Sidecar(*options, "--allow-shared-store", cwd=tmp_path) as sidecar:
        sidecar.ready()
        sidecar.wait_for("msg=reading")
    assert not any("store unusable" in one for one in sidecar.lines)
