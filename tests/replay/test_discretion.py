"""Errors of real kernels that quote what they were fed, told where nothing that users sent may be told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capture.export.manifest import MANIFEST_SUFFIX
from capture.export.tfrecord import WARMUP_PATH, frame
from capture.graph import read_graph
from replay.discretion import NodeNames, withheld, without_record
from tests.replay.test_signature_matrix import tfserving
from tests.replay.test_verify import fill, verify
from tests.replay.test_verify_levels import HOST
from tests.support.processes import capture
from tests.support.tf_models import private_copy
from tests.support.tf_requests import DT_STRING, predict_request, tensor

pytestmark = pytest.mark.server

SECRET = "4711.25"
GOOD = tfserving([], value=1.0)
#: An Assert prints its tensor, and a parser of tf.Examples what it cannot parse.
NEGATIVE = tfserving([], signature="checked", value=-float(SECRET))
GARBLED = predict_request(
    {"inputs": tensor(DT_STRING, [1], [b"\xff\xff " + SECRET.encode()])}, model="edge", signature="classify"
).SerializeToString()
KEEP = ("--scrub", "--scrub-rule", "edge:x=keep", "--scrub-rule", "edge:inputs=keep")
WITHHELD = "its text may quote values and is withheld"


def test_only_names_of_the_graph_are_told(edge: Path) -> None:
    nodes = NodeNames(edge)
    assert (nodes.op("x"), nodes.op("twice"), nodes.op("twice/nothing"), nodes.op("nothing")) == (
        "Placeholder",
        "Mul",
        "",
        "",
    )
    assert withheld(f"Invalid: {SECRET}\n\t [[{{{{node twice}}}}]]", nodes) == f"failed at node twice (Mul); {WITHHELD}"
    # What looks like a node may be what a user sent.
    assert withheld(f"Bad: [[{{{{node {SECRET}}}}}]] [[{{{{node twice}}}}]]", nodes).startswith(
        "failed at node twice ("
    )
    for text in (f"Bad: [[{{{{node {SECRET}}}}}]]", SECRET, ""):
        assert withheld(text, nodes) == f"failed in the model; {WITHHELD}"
    assert withheld("[[{{node x}}]]", NodeNames(edge / "absent")) == f"failed in the model; {WITHHELD}"


def test_a_node_of_a_function_is_known_by_who_calls_it(compiled: Path) -> None:
    nodes = NodeNames(compiled)
    assert nodes.op("StatefulPartitionedCall") == "StatefulPartitionedCall"
    assert nodes.op("StatefulPartitionedCall/nothing") == ""
    inside = next(node for function in read_graph(compiled).functions.values() for node in function.nodes)
    assert nodes.op(f"StatefulPartitionedCall/StatefulPartitionedCall/{inside.name}") == inside.op


def test_the_record_that_a_server_cannot_parse() -> None:
    text = f"INVALID_ARGUMENT: Failed to parse warmup record: \n{SECRET} from /m"
    assert without_record(text) == f"INVALID_ARGUMENT: Failed to parse warmup record; {WITHHELD}"
    assert without_record("INVALID_ARGUMENT: no such output") == "INVALID_ARGUMENT: no such output"


def test_refresh_says_where_a_scrubbed_record_failed_and_not_on_what(edge: Path, tmp_path: Path) -> None:
    store = fill(tmp_path / "store", "tfserving", [GOOD, NEGATIVE, GARBLED], [])
    told = {}
    for name, options in (("plain", ()), ("scrubbed", KEEP)):
        model = private_copy(edge, tmp_path / name)
        done = capture(
            "refresh", "--saved-model-base", str(model.parent), "--store", str(store), "--model", "edge", *options
        )
        assert done.returncode == 0, done
        manifest = (model / WARMUP_PATH).with_name("tf_serving_warmup_requests" + MANIFEST_SUFFIX).read_text()
        reasons = [one["reason"] for one in json.loads(manifest)["left_out"]]
        assert len(reasons) == 2
        told[name] = done.stdout + done.stderr + manifest
    assert SECRET in told["plain"]
    assert SECRET not in told["scrubbed"]
    assert all("INVALID_ARGUMENT: failed " in one and one.endswith(WITHHELD) for one in reasons)
    assert any("failed at node" in one and "(Assert)" in one for one in reasons), reasons


def test_verify_of_a_scrubbed_file(edge: Path, tmp_path: Path) -> None:
    store = fill(tmp_path / "store", "tfserving", [GOOD], [GOOD, NEGATIVE])
    out = tmp_path / "warmup"
    export = ("export", "--format", "tfrecord", "--model", "edge", "--store", str(store), "--out", str(out))
    for options in ((), ("--scrub", "--force")):
        assert capture(*export, *options).returncode == 0
        _, found = verify(edge, store, "--warmup", str(out), "--herd", "0")
        text = json.dumps(found)
        assert (SECRET in text, WITHHELD in text) == (not options, bool(options))
    # A file without a manifest, where it is asked for; on a server, whose texts are all alike.
    out.with_name(out.name + MANIFEST_SUFFIX).unlink()
    _, found = verify(edge, store, "--warmup", str(out), "--server-cmd", HOST, "--herd", "0", "--scrub")
    assert SECRET not in json.dumps(found)
    assert "INVALID_ARGUMENT: failed at node" in json.dumps(found)
    out.write_bytes(frame(b"\xff" + SECRET.encode()))
    for more in (("--server-cmd", HOST), ()):
        status, found = verify(edge, store, "--warmup", str(out), "--herd", "0", "--scrub", *more)
        assert (status, SECRET in json.dumps(found)) == (1, False)
        assert "withheld" in found["reasons"][0]
