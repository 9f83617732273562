"""``capture replay --gate``: not ready until warm, and again after a restart. Real TensorFlow behind ``capture host``,
and servers that stand for what a real one does only when something is wrong."""

from __future__ import annotations

import json
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from capture.export.tfrecord import frame, prediction_log
from tests.replay.test_host_eas import edge_request
from tests.replay.test_host_eas import post as post_eas
from tests.replay.test_replay import bins
from tests.support.net_http import echo_server
from tests.support.processes import Process
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
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


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


@pytest.mark.parametrize(("on_failure", "status", "ended"), [("ready", 200, 0), ("fail", 503, 1)])
def test_a_server_that_never_comes(on_failure: str, status: int, ended: int, source: str, port: int) -> None:
    gate = GateProcess(
        source, f"http://127.0.0.1:{port}/s", "--timeout", "0.3", "--gate-on-failure", on_failure
    )  # fmt: skip
    gate.wait_for(f"msg={'ready' if status == 200 else 'failed'}")
    prefix = "ready" if status == 200 else "not ready"
    assert gate.get() == (status, f"{prefix}: the server was not there within 0.3 s\n")
    # It comes late, and is warmed all the same.
    with echo_server(port=port):
        until(lambda: gate.get() == (200, "ready: 2 records, 4 requests sent\n"), "warm")
        assert gate.report()["sent"] == 4
    gate.wait_for("msg=waiting")
    gate.wait_for(f"msg={'ready' if status == 200 else 'failed'}", 3 if status == 200 else 2)
    assert gate.stop() == ended
