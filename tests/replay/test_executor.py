"""The executor against TensorFlow's real session: what builds a graph, what comes back, what is refused."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from replay import tf_protos
from replay.executor import build
from replay.executor.api import GRAPH_BUILDS, INVALID_ARGUMENT, OK, Executor, ExecutorError, RunResult
from replay.executor.session import open_executor
from tests.support.processes import run_tensorflow
from tests.support.tf_requests import DT_FLOAT, DT_INT32, tensor

pytestmark = pytest.mark.server


class Caller:
    """One executor, called by aliases; ``built`` are the builds of the last call."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.built = 0

    def __call__(
        self, inputs: dict[str, Any], outputs: Sequence[str], signature: str = "serving_default", *, values: bool = True
    ) -> RunResult:
        found = self.executor.signature_defs[signature]
        feeds = [(found.inputs[alias].name, proto.SerializeToString()) for alias, proto in inputs.items()]
        before = self.executor.builds()
        result = self.executor.run(feeds, [found.outputs[alias].name for alias in outputs], values=values)
        after = self.executor.builds()
        assert before is not None
        assert after is not None
        self.built = after - before
        return result


@pytest.fixture
def call(edge: Path) -> Iterator[Caller]:
    executor = open_executor(edge, level="executor")
    yield Caller(executor)
    executor.close()


def x(rows: int = 1, value: float = 1.0) -> dict[str, Any]:
    return {"x": tensor(DT_FLOAT, [rows, 3], [value] * rows * 3)}


def proto(serialized: bytes) -> Any:
    return tf_protos.load("tensorflow.core.framework.tensor_pb2").TensorProto.FromString(serialized)


def test_a_load_is_not_counted(call: Caller) -> None:
    assert call.executor.level == "executor"
    assert call.executor.note == ""
    assert call.executor.builds() == 0
    assert call.executor.counter(GRAPH_BUILDS) is not None


def test_the_first_run_builds_and_no_later_one(call: Caller) -> None:
    for expected in (1, 0, 0):
        assert call(x(), ["sum", "double"]).code == OK
        assert call.built == expected


def test_order_and_batch_and_values_build_nothing(call: Caller) -> None:
    scale = {"scale": tensor(DT_FLOAT, [], [3.0])}
    call(x() | scale, ["scaled"], "with_default")
    assert call.built == 1
    for inputs in (scale | x(), x(7) | scale, x(1, -2.0) | scale, x(0) | scale):
        assert call(inputs, ["scaled"], "with_default").code == OK
        assert call.built == 0
    call(x(), ["sum", "double"])
    assert call.built == 1
    call(x(), ["double", "sum"])
    assert call.built == 0


def test_every_other_list_of_fetches_builds_once(call: Caller) -> None:
    for outputs in (["sum", "double"], ["sum"], ["double"], ["sum", "sum", "double"], ["sum", "sum"]):
        for expected in (1, 0):
            assert call(x(), outputs).code == OK
            assert call.built == expected, outputs


def test_two_aliases_of_one_tensor_are_a_duplicate_fetch(call: Caller) -> None:
    call(x(), ["sum", "double"])
    call(x(), ["a", "c"], "aliases")
    assert call.built == 0, "the same tensor names are the same executor, whatever the signature"
    result = call(x(), ["a", "b", "c"], "aliases")
    assert call.built == 1
    assert len(result.outputs) == 3
    assert result.outputs[0] == result.outputs[1]


def test_a_run_that_fails_has_built(call: Caller) -> None:
    result = call(x(1, -1.0), ["positive"], "checked")
    assert result.code == INVALID_ARGUMENT
    assert "x must not be negative" in result.message
    assert call.built == 1
    assert call(x(), ["positive"], "checked").code == OK
    assert call.built == 0, "the executor of a failed run stays"


def test_a_wrong_dtype_is_found_after_the_build(call: Caller) -> None:
    result = call({"x": tensor(DT_INT32, [1, 3], [1, 2, 3])}, ["sum"])
    assert result.code == INVALID_ARGUMENT
    assert call.built == 1


def test_a_tensor_that_does_not_parse_reaches_no_session(call: Caller) -> None:
    broken = tensor(DT_FLOAT, [1, 3], [])
    broken.tensor_content = b"123"
    result = call({"x": broken}, ["sum"])
    assert (result.code, result.bad_feed) == (INVALID_ARGUMENT, 0)
    assert call.built == 0


def test_an_unknown_tensor_is_an_answer_not_an_exception(call: Caller) -> None:
    result = call.executor.run([("x:0", x()["x"].SerializeToString())], ["nothing:0"])
    assert result.code != OK
    assert "nothing" in result.message
    assert result.outputs == ()


def test_values_come_back_in_the_order_of_the_fetches(call: Caller) -> None:
    result = call(x(2, 1.5), ["double", "sum"])
    double, total = map(proto, result.outputs)
    assert list(double.float_val) == [3.0] * 6
    assert [dim.size for dim in double.tensor_shape.dim] == [2, 3]
    assert list(total.float_val) == [4.5, 4.5]
    assert result.seconds > 0


def test_values_can_be_left_out(call: Caller) -> None:
    result = call(x(), ["sum"], values=False)
    assert (result.code, result.outputs) == (OK, ())


def test_strings_with_zero_bytes_survive(call: Caller) -> None:
    signature = call.executor.signature_defs["types"]
    fed = tensor(7, [2], [b"a\0b", b"\0"])
    result = call.executor.run([(signature.inputs["string"].name, fed.SerializeToString())], ["out_string:0"])
    assert list(proto(result.outputs[0]).string_val) == [b"a\0b", b"\0"]


def test_signatures_are_those_of_the_model(call: Caller) -> None:
    signature = call.executor.signature_defs["with_default"]
    assert {alias: (info.name, info.dtype, info.shape) for alias, info in signature.inputs.items()} == {
        "x": ("x:0", DT_FLOAT, (-1, 3)),
        "scale": ("scale:0", DT_FLOAT, ()),
    }
    assert list(proto(signature.defaults["scale"]).float_val) == [2.0]
    assert signature.method_name == "tensorflow/serving/predict"


def test_runs_may_overlap_and_close_waits_for_them(edge: Path) -> None:
    executor = open_executor(edge, level="executor")
    feeds = [("x:0", x(1000)["x"].SerializeToString())]
    codes: list[int] = []

    def work() -> None:
        for _ in range(50):
            try:
                codes.append(executor.run(feeds, ["total:0"]).code)
            except ExecutorError:
                return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    executor.close()
    for thread in threads:
        thread.join()
    assert set(codes) <= {OK}
    with pytest.raises(ExecutorError, match="closed"):
        executor.run(feeds, ["total:0"])
    executor.close()


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match=r"no saved_model\.pb"):
        open_executor(tmp_path)
    with pytest.raises(ExecutorError, match="no such directory"):
        open_executor(tmp_path / "absent")


def test_a_corrupt_model(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ExecutorError) as caught:
        open_executor(tmp_path, level="executor")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_tags(edge: Path) -> None:
    with pytest.raises(ExecutorError, match="supplied tags"):
        open_executor(edge, tags=("gpu",), level="executor")


def test_a_compiler_that_fails_is_quoted(edge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'shim.cc:1: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "tensorflow_flags", lambda: ([], []))
    with pytest.raises(ExecutorError, match="error: no such thing"):
        open_executor(edge, level="executor")
    assert (tmp_path / "cache" / "warmtap").stat().st_mode & 0o777 == 0o700


def test_a_cache_that_others_can_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "warmtap"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ExecutorError, match="others may write"):
        build.shim_path()


def test_a_folder_named_tensorflow_is_not_asked_for_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    compile_flags, link_flags = build.tensorflow_flags()
    assert any(flag.startswith("-I") for flag in compile_flags)
    assert link_flags


def test_without_a_compiler_the_c_api_runs_and_says_so(edge: Path, tmp_path: Path) -> None:
    """In a process of its own: it imports TensorFlow, finds no compiler and an empty cache."""
    program = """
import json, sys
from replay import tf_protos
from replay.executor.session import open_executor
from tests.support.tf_requests import DT_FLOAT, DT_INT32, DT_STRING, tensor
executor = open_executor(sys.argv[1])
message = tf_protos.load("tensorflow.core.framework.tensor_pb2").TensorProto
def run(name, proto, *fetches):
    result = executor.run([(name, proto.SerializeToString())], fetches)
    return result, [message.FromString(output) for output in result.outputs]
x = tensor(DT_FLOAT, [1, 3], [1.0, 2.0, 3.0])
result, outputs = run("x:0", x, "twice:0", "total:0", "twice:0")
strings = run("in_string:0", tensor(DT_STRING, [2], [b"a" + bytes(1), b"b"]), "out_string:0")[1][0]
broken = tensor(DT_FLOAT, [1, 3], [])
broken.tensor_content = b"123"
print(json.dumps({
    "level": executor.level, "note": executor.note, "builds": executor.builds(), "code": result.code,
    "values": [list(output.float_val) for output in outputs], "strings": [v.hex() for v in strings.string_val],
    "dtype": run("x:0", tensor(DT_INT32, [1, 3], [1, 2, 3]), "total:0")[0].code,
    "broken": run("x:0", broken, "total:0")[0].bad_feed,
    "failed": run("x:0", tensor(DT_FLOAT, [1, 3], [-1.0] * 3), "positive:0")[0].message,
    "unknown": run("x:0", x, "nothing:0")[0].message,
    "signatures": sorted(executor.signature_defs),
}))
executor.close()
"""
    environment = {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("CXX", None)
    found = run_tensorflow(program, str(edge), env=environment)
    assert found["level"] == "runs"
    assert "no C++ compiler" in found["note"]
    assert "not counted" in found["note"]
    assert found["builds"] is None
    assert (found["code"], found["dtype"], found["broken"]) == (OK, INVALID_ARGUMENT, 0)
    assert found["values"] == [[2.0, 4.0, 6.0], [6.0], [2.0, 4.0, 6.0]]
    assert found["strings"] == ["6100", "62"]
    assert "x must not be negative" in found["failed"]
    assert "nothing" in found["unknown"]
    with_shim = open_executor(edge, level="executor")
    assert found["signatures"] == sorted(with_shim.signature_defs)
    with_shim.close()
