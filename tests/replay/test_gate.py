"""``capture replay --gate``: not ready until warm, and again after a restart. Real TensorFlow behind ``capture host``,
and servers that stand for what a real one does only when something is wrong."""

from __future__ import annotations

import gzip
import json
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from capture.export.tfrecord import frame, prediction_log
from capture.signature import wire_signature
from capture.store.base import Batch, Sample
from tests.replay.test_host_eas import edge_request
from tests.replay.test_host_eas import post as post_eas
from tests.replay.test_replay import bins
from tests.support.calls import predict
from tests.support.net_http import Echo, echo_server
from tests.support.ports import free_port
from tests.support.processes import Process, capture
from tests.support.stores import NOW, add, filled, key_of
from tests.support.tf_host import HostProcess
from tests.support.tf_requests import census_input, examples_request, tasks_request
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server

FILTERS = (("sum",), ("double",), ("sum", "double"))
TOKEN = "not-a-secret"


class GateProcess(Process):
    """A gate at any port."""

    def __init__(self, file: str, target: str, *arguments: str) -> None:
        super().__init__("capture", "replay", file, "--target", target, "--gate", "0", *arguments)
        self.url = self.wait_for("^listening (http://127.0.0.1:[0-9]+)/readyz$")[1]

    def get(self, path: str = "/readyz") -> tuple[int, str]:
        """(status, body)."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def report(self) -> dict[str, Any]:
        """``GET /report``."""
        found: dict[str, Any] = json.loads(self.get("/report")[1])
        return found


@pytest.fixture
def port() -> int:
    """One that nobody listens on."""
    return free_port()


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Two requests of text."""
    path = tmp_path / "requests.txt"
    path.write_bytes(b"a\nb\n")
    return str(path)


def test_every_signature_of_an_eas_service_is_built_before_it_is_ready(edge: Path, tmp_path: Path, port: int) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    file = bins(tmp_path / "bins", *(edge_request(1, 2, 3, outputs=one).SerializeToString() for one in FILTERS))
    auth = ("--auth", f"eas-hmac:@{token}")
    served = (f"--eas-listen=127.0.0.1:{port}", f"--eas-token={TOKEN}")
    with GateProcess(file, f"http://127.0.0.1:{port}", "--model", "rank", *auth) as gate:
        # The model takes seconds to load.
        assert gate.get() == (503, f"not ready: waiting for http://127.0.0.1:{port}\n")
        first = HostProcess(edge, *served, grpc=False)
        gate.wait_for("msg=ready")
        assert gate.get() == (200, "ready: 3 records, 6 requests sent\n")
        assert first.new_builds() == len(FILTERS)
        for outputs in FILTERS:
            body = edge_request(4, 5, 6, 7, 8, 9, outputs=outputs).SerializeToString()
            assert post_eas(first, body, Authorization=TOKEN)[0] == 200
        assert first.new_builds() == len(FILTERS)

        first.stop(signal.SIGKILL)
        gate.wait_for("msg=waiting")
        assert gate.get()[0] == 503
        # What is read anew for each start: here one signature more.
        more = edge_request(1, 2, 3, signature="checked").SerializeToString()
        Path(file, "003.bin").write_bytes(more)
        with HostProcess(edge, *served, grpc=False) as second:
            gate.wait_for("msg=ready", 2)
            assert gate.get() == (200, "ready: 4 records, 8 requests sent\n")
            assert second.new_builds() == len(FILTERS) + 1
            report = gate.report()
        assert report["starts"] == 2
        assert (report["sent"], report["failed"]) == (8, 0)
    assert TOKEN not in "\n".join(gate.lines) + json.dumps(report)


def test_tf_serving_methods_over_grpc_and_a_record_that_is_refused(census: Path, tmp_path: Path, port: int) -> None:
    path = tmp_path / "warmup"
    requests = (
        ("Classify", examples_request("Classify", "classify", census_input())),
        ("Regress", examples_request("Regress", "regress", census_input())),
        ("MultiInference", tasks_request([("classify", "classify"), ("regress", "regress")], census_input())),
        ("Regress", examples_request("Regress", "nope", census_input())),
    )
    path.write_bytes(b"".join(frame(prediction_log(one.SerializeToString(), method)) for method, one in requests))
    arguments = ("--count", "1", "--gate-on-failure")
    with (
        GateProcess(str(path), f"grpc://127.0.0.1:{port}", *arguments, "ready") as lenient,
        HostProcess(census, f"--grpc-listen=127.0.0.1:{port}", eas=False) as host,
    ):
        lenient.wait_for("msg=ready")
        assert lenient.get() == (200, "ready: 4 records, 4 requests sent; 1 records failed\n")
        assert host.new_builds() == 3
        told = lenient.wait_for('msg="record failed" (.*)')[1]
        assert 'record="record 4 at byte ' in told
        assert told.endswith('sent=1 failed=1 reason="INVALID_ARGUMENT: No signature was found with the name: nope"')
        strict = GateProcess(str(path), f"grpc://127.0.0.1:{port}", *arguments, "fail")
        strict.wait_for("msg=failed")
        assert strict.get() == (503, "not ready: 4 records, 4 requests sent; 1 records failed\n")
        assert strict.stop() == 1


def test_rest_calls_and_the_status_of_the_model(edge: Path, tmp_path: Path, port: int) -> None:
    batch = Batch("run")
    for form, body in (("row", b'{"instances": [[1, 2, 3]]}'), ("column", b'{"inputs": [[1, 2, 3]]}')):
        rest = wire_signature("tfserving", "edge", f"REST Predict {form}", "", [], [])
        add(batch, rest, body=body)
        # Captured of a version that is no more.
        path, headers = "/v1/models/edge/versions/7:predict", {"content-encoding": "gzip"}
        batch.samples[key_of(rest)] = Sample(body, gzip.compress(body), headers, path, "", "proven", NOW)
    filled(tmp_path / "store", batch).close()
    target = f"http://127.0.0.1:{port}"
    with (
        GateProcess(str(tmp_path / "store"), target, "--status", f"{target}/v1/models/edge") as gate,
        HostProcess(
            edge, "--model-name=edge", f"--rest-listen=127.0.0.1:{port}", grpc=False, rest=True, eas=False
        ) as host,
    ):
        gate.wait_for("msg=ready")
        assert gate.get() == (200, "ready: 2 records, 4 requests sent\n")
        assert host.new_builds() == 1


@pytest.mark.parametrize(("on_failure", "status", "ended"), [("ready", 200, 0), ("fail", 503, 1)])
def test_a_server_that_never_comes(on_failure: str, status: int, ended: int, source: str, port: int) -> None:
    gate = GateProcess(source, f"http://127.0.0.1:{port}/s", "--timeout", "1", "--gate-on-failure", on_failure)
    gate.wait_for(f"msg={'ready' if status == 200 else 'failed'}")
    prefix = "ready" if status == 200 else "not ready"
    assert gate.get() == (status, f"{prefix}: the server was not there within 1 s\n")
    # It comes late, and is warmed all the same.
    with echo_server(port=port):
        until(lambda: gate.get() == (200, "ready: 2 records, 4 requests sent\n"), "warm")
        assert gate.report()["sent"] == 4
    gate.wait_for("msg=waiting")
    gate.wait_for(f"msg={'ready' if status == 200 else 'failed'}", 3 if status == 200 else 2)
    assert gate.stop() == ended


class Loading(Echo):
    """A server behind a proxy that listens before it: its status, and 503 until it is up. What is idle is closed."""

    timeout = 0.3
    available, up, asked, refused, closed = False, False, 0, 0, 0

    def do_GET(self) -> None:
        Loading.asked += 1
        states = ["END", "AVAILABLE"] if self.available else ["LOADING"]
        self._answer(200, json.dumps({"model_version_status": [{"version": "1", "state": one} for one in states]}))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Loading.refused += not self.up
        self._answer(200 if self.up else 503, "upstream connect error")

    def finish(self) -> None:
        super().finish()
        Loading.closed += 1

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def test_a_server_that_listens_before_it_answers_and_closes_what_is_idle(source: str) -> None:
    with (
        echo_server(Loading) as address,
        GateProcess(source, f"http://{address}/s", "--status", f"http://{address}/v1/models/m") as gate,
    ):
        until(lambda: Loading.asked > 2, "its status is asked")
        assert gate.report()["state"] == "waiting"
        Loading.available = True
        # More than all records, twice each.
        until(lambda: Loading.refused > 4, "it is asked again")
        assert gate.get()[0] == 503
        Loading.up = True
        gate.wait_for("msg=ready")
        closed = Loading.closed
        until(lambda: Loading.closed > closed + 3, "the connection that is held ends")
        assert gate.get() == (200, "ready: 2 records, 4 requests sent\n")
        assert gate.report()["starts"] == 1


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_accepts_and_never_answers(scheme: str, source: str, tmp_path: Path) -> None:
    if scheme == "grpc":
        source = str(tmp_path / "warmup")
        Path(source).write_bytes(frame(prediction_log(predict())))
    # Connected by the backlog, and never read.
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        target = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}" + ("/s" if scheme == "http" else "")
        gate = GateProcess(source, target, "--timeout", "1", "--gate-on-failure", "fail")
        gate.wait_for("msg=failed")
        assert gate.get() == (503, "not ready: not warm within 1 s\n")
        assert gate.stop() == 1


def test_a_port_that_is_taken_is_one_line(source: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = capture("replay", source, "--target", "http://127.0.0.1:1/s", "--gate", str(port))
    assert done.returncode == 2
    assert done.stderr.startswith(f"capture: error: --gate: cannot listen on 127.0.0.1:{port}: ")
    assert done.stderr.count("\n") == 1


def test_a_store_without_a_record_is_no_reason_to_wait(tmp_path: Path, port: int) -> None:
    filled(tmp_path / "store", Batch("run")).close()
    with GateProcess(str(tmp_path / "store"), f"http://127.0.0.1:{port}") as gate, echo_server(port=port):
        gate.wait_for("msg=ready")
        assert gate.get() == (200, "ready: 0 records, 0 requests sent\n")
