"""``capture replay``: what is sent, how often, with which credential, and what is said of it. Real servers: TensorFlow
behind ``capture host``, and HTTP servers that check signatures or refuse."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner, Result

from capture.__main__ import application
from capture.export.tfrecord import frame, prediction_log
from capture.schema.wire import length_delimited
from capture.signature import wire_signature
from capture.store.base import Batch, Sample
from tests.replay.test_host_eas import edge_request
from tests.support.calls import eas
from tests.support.eas_gateway import TOKEN, gateway
from tests.support.net_http import Echo, echo_server
from tests.support.processes import capture
from tests.support.stores import NOW, add, filled, key_of, signature
from tests.support.tf_host import HostProcess
from tests.support.tf_requests import census_input, examples_request, tasks_request

pytestmark = pytest.mark.server


def bins(directory: Path, *bodies: bytes) -> str:
    """A directory of .bin files."""
    directory.mkdir()
    for number, body in enumerate(bodies):
        (directory / f"{number:03d}.bin").write_bytes(body)
    return str(directory)


def invoke(*arguments: str) -> Result:
    """The command in this process: its exit code and what it wrote."""
    return CliRunner().invoke(application("replay"), ["replay", *arguments])


def replay(file: str, target: str, *arguments: str, status: int = 0) -> dict[str, Any]:
    """The report."""
    done = invoke(file, "--target", target, "--json", *arguments)
    assert done.exit_code == status, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Counting(Echo):
    """Counts bodies and paths; answers 500 to ``bad``, and 401 to ``who``, with what it was sent."""

    bodies: ClassVar[Counter[bytes]] = Counter()
    paths: ClassVar[Counter[str]] = Counter()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.bodies[body] += 1
        self.paths[self.path] += 1
        status, text = {b"bad": (500, b"no\n such thing"), b"who": (401, self.headers["Authorization"])}.get(
            body, (200, b"")
        )
        self.send_response(status)
        answer = text.encode() if isinstance(text, str) else text
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@pytest.fixture
def counting() -> Any:
    Counting.bodies.clear()
    Counting.paths.clear()
    with echo_server(Counting) as address:
        yield f"http://{address}"


def test_every_method_over_grpc(census: Path, tmp_path: Path) -> None:
    requests = {
        "Classify": examples_request("Classify", "classify", census_input(), version=77),
        "Regress": examples_request("Regress", "regress", census_input(2)),
        "MultiInference": tasks_request([("classify", "classify"), ("regress", "regress")], census_input()),
    }
    path = tmp_path / "warmup"
    path.write_bytes(
        b"".join(frame(prediction_log(one.SerializeToString(), method)) for method, one in requests.items())
        # A record of the third kind whose signature there is not, and one of no kind at all.
        + frame(prediction_log(examples_request("Regress", "nope", census_input()).SerializeToString(), "Regress"))
        + frame(length_delimited(99, b""))
    )
    with HostProcess(census, eas=False) as host:
        found = replay(str(path), f"grpc://{host.grpc}", "--count", "3", status=1)
        assert host.new_builds() == len(requests)
    assert [one["status"] for one in found["records"]] == ["ok"] * 3 + ["failed"] * 2
    assert [one["sent"] for one in found["records"]] == [3, 3, 3, 3, 0]
    assert [list(one["reasons"]) for one in found["records"][3:]] == [
        ["INVALID_ARGUMENT: No signature was found with the name: nope"],
        ["has no log_type: the server passes it over; is it a PredictionLog at all?"],
    ]
    assert all(one["first_ms"] > 0 and one["steady_ms"] > 0 for one in found["records"][:3])
    assert (found["sent"], found["failed"], found["failed_records"]) == (12, 4, 2)


def test_eas_by_a_directory_a_store_and_json_lines(edge: Path, tmp_path: Path) -> None:
    filters: Sequence[tuple[str, ...]] = (("sum",), ("double",), ())
    bodies = [edge_request(1, 2, 3, outputs=outputs).SerializeToString() for outputs in filters]
    batch = Batch("run")
    for outputs, body in zip(filters, bodies, strict=True):
        add(batch, signature(outputs, family="eas", model="rank"), body=body)
        # Another version used it too: it is sent once.
        add(batch, signature(outputs, family="eas", model="rank"), body=body, version="2")
    store = str(tmp_path / "store")
    # Never seen to succeed, and it does not.
    unproven = eas({"x": [1.0]}, outputs=["nope"])
    add(batch, signature(["nope"], family="eas", model="rank"), proven=0, unproven=1, body=unproven)
    filled(tmp_path / "store", batch).close()
    lines = str(tmp_path / "lines.jsonl")
    done = capture("export", "--format", "jsonl", "--model", "rank", "--store", store, "--out", lines)
    assert done.returncode == 0, done.stderr
    with HostProcess(edge, "--eas-url=/path", grpc=False) as host:
        target = f"http://{host.eas}"
        replay(bins(tmp_path / "bins", *bodies), target, "--model", "rank")
        assert host.new_builds() == len(bodies)
        for source in (store, lines):
            assert [one["status"] for one in replay(source, target)["records"]] == ["ok"] * len(bodies)
        assert host.new_builds() == len(bodies)
        failed = replay(store, target, "--unproven", status=1)["records"][-1]
        assert list(failed["reasons"]) == [
            "HTTP 400: output 'nope' not found; signature 'serving_default' has double, sum"
        ]


def test_a_signed_request_passes_a_gateway_that_checks_signatures(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    source = bins(tmp_path / "bins", eas({"x": [1.0]}))
    with echo_server() as behind, gateway(behind, url="/my/url", service="rank") as front:
        replay(source, f"http://{front.address}", "--model", "rank", "--auth", f"eas-hmac:@{token}")
        replay(source, f"http://{front.address}/api/predict/r%20k/v1?a=b%2Fc", "--auth", f"eas-hmac:@{token}")
        replay(source, f"http://{front.address}/my/url", "--auth", f"eas-token:@{token}")
        refused = replay(source, f"http://{front.address}", "--model", "rank", status=1)
    assert [(one.target, one.authorized) for one in front.arrived] == [
        ("/api/predict/rank", "signed"),
        ("/api/predict/r%20k/v1?a=b%2Fc", "signed"),
        ("/my/url", "token"),
        ("/api/predict/rank", "another body"),
    ]
    assert list(refused["records"][0]["reasons"]) == ["HTTP 401: another body"]


def test_a_server_that_repeats_the_credential_does_not_bring_it_into_the_report(
    counting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    source = tmp_path / "requests.txt"
    source.write_bytes(b"who\n")
    found = replay(str(source), f"{counting}/s", "--auth", "bearer:env:SECRET", status=1)
    assert list(found["records"][0]["reasons"]) == ["HTTP 401: Bearer ***"]
    plain = invoke(str(source), "--target", f"{counting}/s", "--auth", "bearer:env:SECRET")
    assert plain.exit_code == 1
    assert "hunter2" not in plain.stdout + plain.stderr + json.dumps(found)


def test_text_is_sent_line_by_line_and_failures_are_told(counting: str, tmp_path: Path) -> None:
    source = tmp_path / "requests.txt"
    source.write_bytes(b'{"a": 1}\nbad\n')
    done = capture("replay", str(source), "--target", counting, "--model", "s", "--count", "4", "--concurrency", "3")
    assert done.returncode == 1
    assert Counting.bodies == {b'{"a": 1}': 4, b"bad": 4}
    assert set(Counting.paths) == {"/api/predict/s"}
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert rows[0][:4] == ["RECORD", "STATUS", "SENT", "FAILED"]
    assert [row[:4] for row in rows[1:]] == [["1", "ok", "4", "0"], ["2", "failed", "4", "4"]]
    assert "failed: record 2 at byte 9: HTTP 500: no such thing (4 times)\n" in done.stderr


def test_rest_goes_out_as_it_was_sent(counting: str, tmp_path: Path) -> None:
    body = b'{"instances": [[1.0]]}'
    rest = wire_signature("tfserving", "m", "REST Predict row", "", [], [])
    batch = Batch("run")
    add(batch, rest, body=body)
    path, headers = "/v1/models/m/versions/3:predict", {"content-type": "application/json", "content-encoding": "gzip"}
    batch.samples[key_of(rest)] = Sample(body, gzip.compress(body, mtime=0), headers, path, "", "proven", NOW)
    # Over gRPC the same store has another record: it is another server's, which is told and is no failure.
    add(batch, signature(model="m"))
    filled(tmp_path / "store", batch).close()
    found = replay(str(tmp_path / "store"), f"{counting}/behind")
    assert Counting.bodies == {gzip.compress(body, mtime=0): 1}
    assert Counting.paths == {"/behind/v1/models/m:predict": 1}
    assert sorted(one["status"] for one in found["records"]) == ["ok", "skipped"]
    assert (found["failed"], found["skipped_records"]) == (0, 1)
    plain = invoke(str(tmp_path / "store"), "--target", counting)
    assert plain.exit_code == 0
    assert ": was captured from gRPC; say --target grpc://host:port\n" in plain.stderr


def test_pace(counting: str, tmp_path: Path) -> None:
    source = tmp_path / "requests.txt"
    source.write_bytes(b"a\nb\n")
    # The second request would be due after the end.
    slow = ("--rate", "0.01", "--duration", "99")
    assert replay(str(source), f"{counting}/s", *slow)["sent"] == 1
    assert replay(str(source), f"{counting}/s", *slow, "--loop")["sent"] == 1
    assert replay(str(source), f"{counting}/s", "--duration", "0.5", "--loop", "--rate", "1000")["sent"] > 2


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with echo_server() as address:
        pass
    source = bins(tmp_path / "bins", eas({"x": [1.0]}))
    found = replay(source, f"http://{address}", "--model", "rank", status=1)
    assert found["records"][0]["first_ms"] is None
    assert next(iter(found["records"][0]["reasons"])).startswith("ClientConnectorError: ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("cut", "--target", "grpc://h:1"), "cut: record 1: corrupted record at byte 0: cut off"),
        (("none", "--target", "grpc://h:1"), "none: No such file or directory"),
        (("a.txt", "--target", "grpc://h:1"), "a.txt: no record can be sent: record 1 at byte 0 is a request to EAS"),
        (("a.txt", "--target", "http://h:1"), "names no service; say --model, or --target http://host:port/path"),
        (("a.txt", "--target", "h:1"), "--target h:1: no address"),
        (("a.txt", "--target", "http://h:1/s", "--loop"), "--loop: say for how many seconds"),
        (("a.txt", "--target", "http://h:1/s", "--loop", "--duration", "1", "--gate", "0"), "--loop: a gate sends"),
        (("a.txt", "--target", "http://h:1/s", "--gate", "x"), "--gate x: no address"),
        (("a.txt", "--target", "http://h:1/s", "--gate-on-failure", "x"), "--gate-on-failure x: say ready or fail"),
        (("cut", "--target", "grpc://h:1", "--gate", "0"), "cut: record 1: corrupted record at byte 0: cut off"),
        (("a.txt", "--target", "http://h:1/s", "--auth", "eas-token:hunter2"), "--auth: a secret is no argument"),
        (("a.txt", "--target", "grpc://h:1", "--auth", "eas-token:hunter2"), "--auth: EAS's tokens are for http"),
    ],
)
def test_nothing_usable_is_one_line(arguments: tuple[str, ...], text: str, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(frame(b"abc")[:-2])
    (tmp_path / "a.txt").write_bytes(b"a\n")
    done = invoke(str(tmp_path / arguments[0]), *arguments[1:])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("capture: error: ")
    assert done.stderr.count("\n") == 1
    assert text in done.stderr
    assert "hunter2" not in done.stderr
