from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from capture.savedmodel import SavedModelError, read_saved_model
from capture.schema import messages
from capture.schema.wire import length_delimited, write_varint
from capture.signature import SignatureDef, TensorInfo
from tests.support.processes import run_tensorflow
from tests.support.tf_models import saved_model

_TF_READING = """
import json, sys
from tensorflow.python.saved_model import loader_impl
model = loader_impl.parse_saved_model(sys.argv[1])
def info(i):
    shape = i.tensor_shape
    return [i.name, i.dtype, None if shape.unknown_rank else [dim.size for dim in shape.dim]]

graph, = [g for g in model.meta_graphs if set(g.meta_info_def.tags) == {"serve"}]
print(json.dumps({"version": graph.meta_info_def.tensorflow_version, "signatures": {
    key: [{a: info(i) for a, i in d.inputs.items()}, {a: info(i) for a, i in d.outputs.items()}, d.method_name,
          sorted(d.defaults)] for key, d in graph.signature_def.items()}}))
"""


@pytest.mark.server
@pytest.mark.parametrize("kind", ["ranking", "edge"])
def test_a_real_model_reads_as_tensorflow_reads_it(kind: str, pytestconfig: pytest.Config) -> None:
    directory = saved_model(pytestconfig.cache.mkdir("saved_models"), kind)
    expected = run_tensorflow(_TF_READING, str(directory))
    found = read_saved_model(directory)
    assert found.tensorflow_version == expected["version"]
    assert found.signatures == {
        key: SignatureDef(_infos(inputs), _infos(outputs), method, frozenset(defaults))
        for key, (inputs, outputs, method, defaults) in expected["signatures"].items()
    }
    assert "serving_default" in found.signatures


def _infos(tensors: dict[str, Any]) -> dict[str, TensorInfo]:
    return {
        alias: TensorInfo(name, dtype, None if shape is None else tuple(shape))
        for alias, (name, dtype, shape) in tensors.items()
    }


def meta_graph(*tags: str, key: str = "serving_default", graph: bytes = b"") -> bytes:
    entry = messages.SignatureEntry(key=key)
    entry.value.inputs["x"].name = "x:0"
    entry.value.outputs["y"].name = "y:0"
    info = messages.MetaInfoDef(tags=tags, tensorflow_version="2.21.0")
    return length_delimited(
        2,
        length_delimited(1, info.SerializeToString())
        + length_delimited(2, graph)
        + length_delimited(5, entry.SerializeToString()),
    )


def write(directory: Path, data: bytes) -> Path:
    (directory / "saved_model.pb").write_bytes(data)
    return directory


def error(directory: Path, *tags: str) -> str:
    with pytest.raises(SavedModelError) as caught:
        read_saved_model(directory, tags or ("serve",))
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(str(directory), "DIR")


def test_the_meta_graph_with_exactly_the_tags_is_chosen(tmp_path: Path) -> None:
    write(
        tmp_path,
        b"\x08\x01" + meta_graph("train", key="a") + meta_graph("serve", "gpu", key="b") + meta_graph("serve", key="c"),
    )
    assert set(read_saved_model(tmp_path).signatures) == {"c"}
    assert set(read_saved_model(tmp_path, ["gpu", "serve"]).signatures) == {"b"}


def test_wrong_tags_are_named(tmp_path: Path) -> None:
    write(tmp_path, meta_graph("train") + meta_graph("serve", "gpu"))
    assert error(tmp_path) == "DIR/saved_model.pb: no meta graph with tags {serve}; it has {train}, {gpu, serve}"


def test_an_empty_file(tmp_path: Path) -> None:
    write(tmp_path, b"")
    assert error(tmp_path) == "DIR/saved_model.pb: no meta graph with tags {serve}; it has no meta graph"


def test_a_file_cut_off_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = meta_graph("serve", graph=bytes(40))
    for size in range(len(whole)):
        write(tmp_path, whole[:size])
        assert error(tmp_path).startswith("DIR/saved_model.pb: no")
    write(tmp_path, whole[:50])
    assert error(tmp_path) == (
        "DIR/saved_model.pb: not a SavedModel (field 2 at byte 0 runs past the end); was it copied completely?"
    )


def test_a_corrupt_file(tmp_path: Path) -> None:
    write(tmp_path, b"not a protobuf at all, but long enough")
    assert error(tmp_path).startswith("DIR/saved_model.pb: not a SavedModel (")
    # The framing is right, the SignatureDef is not.
    write(tmp_path, length_delimited(2, length_delimited(5, b"\x0a\x05ab")))
    assert error(tmp_path).startswith("DIR/saved_model.pb: not a SavedModel (")


def test_a_signature_over_the_bound_is_not_read(tmp_path: Path) -> None:
    size = 65 << 20
    head = write_varint(5 << 3 | 2) + write_varint(size)
    with (tmp_path / "saved_model.pb").open("wb") as file:
        file.write(write_varint(2 << 3 | 2) + write_varint(len(head) + size) + head)
        file.truncate(file.tell() + size)
    assert f"field 5 of {size} bytes" in error(tmp_path)


def test_absent_models(tmp_path: Path) -> None:
    gone = "DIR: no such directory; give the version directory that holds saved_model.pb"
    assert error(tmp_path / "none") == gone
    assert error(tmp_path) == "DIR: no saved_model.pb; give the version directory that holds it"
    for name in ("1", "23", "notes"):
        (tmp_path / name).mkdir()
    assert error(tmp_path) == "DIR: no saved_model.pb; did you mean DIR/23?"
    for name in ("saved_model.pbtxt", "saved_model.cpb"):
        (tmp_path / name).touch()
        assert error(tmp_path) == f"DIR: holds {name}, which warmtap cannot read; save the model as saved_model.pb"


def test_saved_model_pb_that_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").mkdir()
    assert error(tmp_path) == "DIR/saved_model.pb: Is a directory"


def test_the_graph_is_skipped(tmp_path: Path) -> None:
    graph = 3 << 30
    head = length_delimited(1, messages.MetaInfoDef(tags=["serve"]).SerializeToString())
    entry = messages.SignatureEntry(key="after the graph")
    tail = length_delimited(5, entry.SerializeToString())
    inner = head + write_varint(2 << 3 | 2) + write_varint(graph)
    with (tmp_path / "saved_model.pb").open("wb") as file:
        file.write(write_varint(2 << 3 | 2) + write_varint(len(inner) + graph + len(tail)) + inner)
        file.seek(graph, 1)
        file.write(tail)
    tracemalloc.start()
    try:
        found = read_saved_model(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert set(found.signatures) == {"after the graph"}
