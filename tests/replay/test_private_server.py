"""The parts of a private server that start nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from capture.export.tfrecord import WARMUP_PATH
from replay.calls import Counts
from replay.private_server import ServerError, filled, place_model, read_counts

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
