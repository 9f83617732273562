"""doctor on real SavedModels, and on files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capture.doctor import Finding, recommended_level
from capture.graph import read_graph
from capture.levels import parse_level
from tests.support.processes import capture
from tests.support.tf_models import saved_model

pytestmark = pytest.mark.server


def test_each_trouble_is_found_where_it_is(model_cache: Path) -> None:
    model = saved_model(model_cache, "troubles")
    done = capture("doctor", "--saved-model", str(model), "--json")
    assert done.returncode == 1, done.stderr
    found = {one["kind"]: one for one in json.loads(done.stdout)["findings"]}
    where = {kind: one["signatures"] for kind, one in found.items()}
    assert where["xla"] == ["compiled"]
    assert "set level shapes" in found["xla"]["text"]
    assert where["convolution"] == ["convolves"]
    assert found["convolution"]["ops"] == {"Conv2D": 1}
    assert where["batching"] == ["batches"]
    assert found["batching"]["text"].endswith("--batch-sizes 2,8")
    assert where["assigns"] == ["counts"]
    assert where["table"] == ["learns"]
    assert (where["random"], found["random"]["severity"]) == (["draws"], "note")
    assert not any("plain" in one["signatures"] for one in found.values() if one["severity"] == "action")


def test_a_model_without_trouble(ranking: Path, edge: Path) -> None:
    done = capture("doctor", "--saved-model", str(ranking))
    assert (done.returncode, done.stdout) == (
        0,
        "nothing found: one request for each set of names is all that this model needs\n",
    )
    done = capture("doctor", "--saved-model", str(edge), "--json")
    assert done.returncode == 0, done.stdout
    kinds = {one["kind"] for one in json.loads(done.stdout)["findings"]}
    assert kinds == {"shared", "defaults"}


def finding(kind: str, sizes: tuple[int, ...] = (), scalars: tuple[str, ...] = ()) -> Finding:
    return Finding("action", kind, ("s",), "", {}, sizes, scalars)


@pytest.mark.parametrize(
    ("findings", "level"),
    [
        ([], "names"),
        ([finding("assigns"), finding("convolution")], "names"),
        ([finding("tensorrt")], "shapes"),
        ([finding("xla", scalars=("k", "axis"))], "shapes+values(axis, k)"),
        ([finding("batching", sizes=(2, 8)), finding("xla", scalars=("k",))], "shapes(batch=2,8)+values(k)"),
    ],
)
def test_the_level_that_it_recommends_is_one(findings: list[Finding], level: str) -> None:
    assert recommended_level(findings) == level
    parse_level(level)


def test_it_is_told_with_the_setting(compiled: Path) -> None:
    done = capture("doctor", "--saved-model", str(compiled))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == (
        'recommended: capture.levels: {MODEL: "shapes+values(k)"} in the sidecar\'s settings'
    )


def test_what_is_no_model(tmp_path: Path, ranking: Path) -> None:
    done = capture("doctor", "--saved-model", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    whole = (ranking / "saved_model.pb").read_bytes()
    (tmp_path / "saved_model.pb").write_bytes(whole[: len(whole) // 2])
    done = capture("doctor", "--saved-model", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "was it copied completely?" in done.stderr


def test_every_node_is_read(ranking: Path) -> None:
    graph = read_graph(ranking)
    assert graph.count > len(graph.nodes) > 0
    assert any("StatefulPartitionedCall" in node.op and node.calls for node in graph.nodes.values())
