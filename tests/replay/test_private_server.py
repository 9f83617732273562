"""The parts of a private server that start no server."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from capture.export.tfrecord import WARMUP_PATH
from capture.signature import WireSignature
from replay.calls import Counts
from replay.private_server import PrivateServer, ServerError, filled, place_model, read_counts
from replay.traffic import Judged

#: In the form of TF Serving's util/prometheus_exporter.cc.
TEXT = """# TYPE :tensorflow:cc:saved_model:load_attempt_count counter
:tensorflow:cc:saved_model:load_attempt_count{model_path="/m/1",status="success"} 1
# TYPE :tensorflow:core:graph_build_calls counter
:tensorflow:core:graph_build_calls{} 7
# TYPE :tensorflow:core:graph_build_time_usecs counter
:tensorflow:core:graph_build_time_usecs{} 91000
# TYPE :tensorflow:core:xla_compilations counter
:tensorflow:core:xla_compilations{device="a b"} 2
:tensorflow:core:xla_compilations{device="c"} 3
"""


def test_counters_in_prometheus_text() -> None:
    assert read_counts(TEXT) == Counts(7, 5)


def test_a_counter_that_never_moved_is_absent_there() -> None:
    assert read_counts(TEXT.partition("# TYPE :tensorflow:core:xla")[0]) == Counts(7, 0)


@pytest.mark.parametrize("text", ["", "<html>not found</html>", "other_metric 1\n"])
def test_a_page_without_any_counter_says_nothing(text: str) -> None:
    assert read_counts(text) == Counts(None, None)


def test_the_command_is_split_before_it_is_filled_in() -> None:
    words = filled("server '--name {model_name}' --port={grpc_port} {{}}", model_name="a b; c", grpc_port="1")
    assert words == ["server", "--name a b; c", "--port=1", "{}"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("server {port}", "no placeholder {port}; there are {grpc_port}"),
        ("server {", "write {{ and }} for braces"),
        ("server {}", "write {{ and }} for braces"),
        ("server 'a", "No closing quotation"),
        ("", "is empty"),
    ],
)
def test_a_command_that_is_none(command: str, message: str) -> None:
    with pytest.raises(ServerError) as error:
        filled(command, grpc_port="1")
    assert message in str(error.value)


def test_the_model_is_placed_with_the_file_or_without_one(tmp_path: Path) -> None:
    source = tmp_path / "5"
    (source / "variables").mkdir(parents=True)
    (source / "variables" / "data").write_bytes(b"weights")
    (source / WARMUP_PATH).parent.mkdir()
    (source / WARMUP_PATH).write_bytes(b"its own")
    place_model(source, tmp_path / "without" / "5", b"")
    assert not (tmp_path / "without" / "5" / WARMUP_PATH).exists()
    place_model(source, tmp_path / "with" / "5", b"judged")
    assert (tmp_path / "with" / "5" / WARMUP_PATH).read_bytes() == b"judged"
    assert (tmp_path / "with" / "5" / "variables" / "data").read_bytes() == b"weights"
    # The model itself is as it was.
    assert (source / WARMUP_PATH).read_bytes() == b"its own"


class Rest(BaseHTTPRequestHandler):
    """The part of TF Serving's REST API that a held-out request goes to; ``capture host`` has none."""

    asked: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, body))
        good = body == b'{"instances": [1]}'
        self.send_response(200 if good else 400)
        self.end_headers()
        self.wfile.write(b"{}" if good else b"{ \"error\": \"Missing 'inputs' or 'instances' key\" }\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.server
def test_a_rest_request_goes_to_the_rest_port_byte_for_byte() -> None:
    def judged(body: bytes) -> Judged:
        return Judged(WireSignature("tfserving", "a b", "REST Predict row", "", ("x",), None), "g", body)

    with HTTPServer(("127.0.0.1", 0), Rest) as rest:
        thread = threading.Thread(target=rest.serve_forever)
        thread.start()
        server = PrivateServer(1, rest.server_port)
        assert server.call(judged(b'{"instances": [1]}')) == ""
        assert server.call(judged(b"{}")) == "HTTP 400: { \"error\": \"Missing 'inputs' or 'instances' key\" }"
        rest.shutdown()
        thread.join()
    assert server.call(judged(b"{}")).startswith("ConnectionRefusedError: ")
    server.close()
    assert Rest.asked == [("/v1/models/a%20b:predict", b'{"instances": [1]}'), ("/v1/models/a%20b:predict", b"{}")]
