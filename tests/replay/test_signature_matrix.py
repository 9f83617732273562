"""Both signature layers against TensorFlow: an equal executor key never builds, a different one always does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.dialects.base import Route
from capture.dialects.table import BY_NAME
from capture.schema import messages
from capture.signature import WireSignature, executor_key
from replay.calls import CALLERS, Caller, run_counted, signature_defs
from replay.executor.api import Executor
from replay.executor.session import open_executor
from tests.support.tf_requests import DT_FLOAT, predict_request, tensor

pytestmark = pytest.mark.server


def tfserving(
    outputs: list[str], *, signature: str = "", rows: int = 1, value: float = 1.0, scale: float | None = None
) -> bytes:
    inputs = {"x": tensor(DT_FLOAT, [rows, 3], [value] * rows * 3)}
    if scale is not None:
        inputs["scale"] = tensor(DT_FLOAT, [], [scale])
    return bytes(predict_request(inputs, model="edge", signature=signature, outputs=outputs).SerializeToString())


def eas(outputs: list[str], *, signature: str = "serving_default", rows: int = 1, scale: float | None = None) -> bytes:
    request = messages.EasPredictRequest(signature_name=signature, output_filter=outputs)
    request.inputs["x"].dtype = 1
    request.inputs["x"].array_shape.dim.extend([rows, 3])
    request.inputs["x"].float_val.extend([1.0] * rows * 3)
    if scale is not None:
        request.inputs["scale"].dtype = 1
        request.inputs["scale"].float_val.append(scale)
    return bytes(request.SerializeToString())


#: The edge model (tests/models/edge.py). Every request runs; what shares an executor is for the two layers to say.
MATRIX: dict[str, dict[str, bytes]] = {
    "tfserving": {
        "sum": tfserving(["sum"]),
        "sum, other batch": tfserving(["sum"], rows=9),
        "sum, other values": tfserving(["sum"], value=7.0),
        "sum, signature by name": tfserving(["sum"], signature="serving_default"),
        "double": tfserving(["double"]),
        "sum and double": tfserving(["sum", "double"]),
        "double and sum: order": tfserving(["double", "sum"]),
        "empty filter: all outputs": tfserving([]),
        "other signature, same tensors": tfserving(["a", "c"], signature="aliases"),
        "two aliases of one tensor": tfserving(["a", "b"], signature="aliases"),
        "empty filter with a repeated tensor": tfserving([], signature="aliases"),
        "all of it by name": tfserving(["c", "b", "a"], signature="aliases"),
        "default filled in": tfserving([], signature="with_default"),
        "default sent": tfserving([], signature="with_default", scale=3.0),
    },
    "eas": {
        "sum": eas(["sum"]),
        "sum, other batch": eas(["sum"], rows=9),
        "sum twice": eas(["sum", "sum"]),
        "double and sum": eas(["double", "sum"]),
        "empty filter": eas([]),
        "two aliases of one tensor": eas(["a", "b"], signature="aliases"),
        "all inputs": eas([], signature="with_default", scale=3.0),
    },
}
DIALECTS = {"tfserving": BY_NAME["tfserving-grpc"], "eas": BY_NAME["eas-tensorflow"]}


def read(family: str, body: bytes) -> WireSignature:
    dialect = DIALECTS[family]
    return dialect.read(Route(dialect, "Predict", "edge", ""), body).signature


@pytest.fixture
def executor(edge: Path) -> Iterator[Executor]:
    opened = open_executor(edge, level="executor")
    yield opened
    opened.close()


@pytest.mark.parametrize("family", MATRIX)
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_builds_follow_the_executor_key(executor: Executor, family: str, backwards: bool) -> None:
    caller: Caller = CALLERS[family](executor)
    defs = signature_defs(executor)
    seen = set()
    names = sorted(MATRIX[family], reverse=backwards)
    for name in names:
        body = MATRIX[family][name]
        key = executor_key(read(family, body), defs)
        ran = run_counted(executor, caller, body)
        assert ran.message == "", name
        assert ran.builds == (0 if key in seen else 1), f"{name}: {key}"
        seen.add(key)
    # Once more, and nothing is built at all.
    assert [run_counted(executor, caller, MATRIX[family][name]).builds for name in names] == [0] * len(names)


@pytest.mark.parametrize("family", MATRIX)
def test_the_matrix_has_equal_and_different_keys(edge: Path, family: str) -> None:
    """Were all keys different, the test above would prove little."""
    executor = open_executor(edge)
    defs = signature_defs(executor)
    executor.close()
    keys = [executor_key(read(family, body), defs) for body in MATRIX[family].values()]
    assert 1 < len(set(keys)) < len(keys)


@pytest.mark.parametrize("family", MATRIX)
def test_wire_signatures_never_merge_what_has_different_keys(edge: Path, family: str) -> None:
    executor = open_executor(edge)
    defs = signature_defs(executor)
    executor.close()
    for one, other in itertools.combinations(MATRIX[family].values(), 2):
        if executor_key(read(family, one), defs) != executor_key(read(family, other), defs):
            assert read(family, one).digest != read(family, other).digest
