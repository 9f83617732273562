"""The executor keys of Classify, Regress, MultiInference and SessionRun against TensorFlow: an equal key never builds,
a different one always does; and Predict shares where the keys say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from capture.dialects.base import Route
from capture.dialects.table import BY_NAME
from capture.savedmodel import read_saved_model
from capture.signature import WireSignature, executor_key
from replay import tf_protos
from replay.calls import TFServingCaller, run_counted, signature_defs
from replay.executor.session import open_executor
from tests.support.tf_requests import (
    census_input,
    examples_request,
    predict_request,
    serialized_examples,
    session_request,
    tasks_request,
)

pytestmark = pytest.mark.server

ONE, MANY, CONTEXT = census_input(), census_input(9, age=50.0), census_input(2, context=True)
INPUTS = {"inputs": serialized_examples(ONE)}


def matrix(defs_of: Path) -> dict[str, tuple[str, bytes]]:
    """Requests of the census model by name: (method, body). Every one runs."""
    regress = read_saved_model(defs_of).signatures["regress"]
    made = {
        "classify": ("Classify", examples_request("Classify", "classify", ONE)),
        "classify, other batch": ("Classify", examples_request("Classify", "classify", MANY)),
        "classify, with context": ("Classify", examples_request("Classify", "classify", CONTEXT)),
        "classify, default signature": ("Classify", examples_request("Classify", "", ONE)),
        "classify, default signature by name": ("Classify", examples_request("Classify", "serving_default", MANY)),
        "scores alone": ("Classify", examples_request("Classify", "scores", ONE)),
        "regress": ("Regress", examples_request("Regress", "regress", ONE)),
        "regress, second": ("Regress", examples_request("Regress", "second", ONE)),
        "one task": ("MultiInference", tasks_request([("regress", "regress")], ONE)),
        "two tasks": ("MultiInference", tasks_request([("classify", "classify"), ("regress", "regress")], ONE)),
        "two tasks: order": (
            "MultiInference", tasks_request([("regress", "regress"), ("classify", "classify")], MANY)
        ),
        "two other tasks": ("MultiInference", tasks_request([("regress", "second"), ("regress", "regress")], ONE)),
        "predict, all outputs": ("Predict", predict_request(INPUTS, model="census", signature="classify")),
        "predict, both by name": (
            "Predict",
            predict_request(INPUTS, model="census", signature="classify", outputs=["scores", "classes"]),
        ),
        "predict, scores of two": (
            "Predict", predict_request(INPUTS, model="census", signature="classify", outputs=["scores"])
        ),
        "session run of what regress runs": (
            "SessionRun", session_request({regress.inputs["inputs"].name: INPUTS["inputs"]},
                                          [regress.outputs["outputs"].name]),
        ),
        "session run, another name": (
            "SessionRun",
            session_request({regress.inputs["inputs"].name.removesuffix(":0"): INPUTS["inputs"]},
                            [regress.outputs["outputs"].name]),
        ),
    }  # fmt: skip
    return {name: (method, request.SerializeToString()) for name, (method, request) in made.items()}


def read(method: str, body: bytes) -> WireSignature:
    dialect = BY_NAME["tfserving-grpc"]
    return dialect.read(Route(dialect, method, "census", ""), body).signature


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_builds_follow_the_executor_key(census: Path, backwards: bool) -> None:
    requests = matrix(census)
    executor = open_executor(census, level="executor")
    caller, defs, seen = TFServingCaller(executor), signature_defs(executor), set()
    names = sorted(requests, reverse=backwards)
    for name in names:
        method, body = requests[name]
        key = executor_key(read(method, body), defs)
        ran = run_counted(executor, caller, body, method)
        assert ran.message == "", name
        assert ran.builds == (0 if key in seen else 1), f"{name}: {key}"
        seen.add(key)
    # Were all keys different, or all the same, this would prove little.
    assert len(seen) == 9
    again = [run_counted(executor, caller, requests[name][1], requests[name][0]).builds for name in names]
    assert again == [0] * len(names)
    executor.close()


def test_tasks_on_one_placeholder_feed_it_once(edge: Path) -> None:
    """A model of TensorFlow 1's kind: its signatures of examples share their input."""
    given = tf_protos.load("tensorflow_serving.apis.input_pb2").Input()
    given.example_list.examples.add().features.feature["x"].float_list.value.append(0.25)
    tasks = tasks_request([("classify", "classify"), ("regress", "regress")], given, model="edge").SerializeToString()
    executor = open_executor(edge, level="executor")
    caller = TFServingCaller(executor)
    key = executor_key(read("MultiInference", tasks), signature_defs(executor))
    assert len(key.feeds) == 1
    assert len(key.fetches) == 3
    same = session_request({key.feeds[0]: serialized_examples(given)}, key.fetches, model="edge").SerializeToString()
    assert executor_key(read("SessionRun", same), {}) == key
    assert run_counted(executor, caller, tasks, "MultiInference").builds == 1
    assert run_counted(executor, caller, same, "SessionRun").builds == 0
    executor.close()


def test_what_has_different_keys_has_different_wire_signatures(census: Path) -> None:
    defs = read_saved_model(census).signatures
    keys: dict[str, set[object]] = {}
    for method, body in matrix(census).values():
        signature = read(method, body)
        keys.setdefault(signature.digest, set()).add(executor_key(signature, defs))
    assert {len(found) for found in keys.values()} == {1}


def test_what_a_session_run_cannot_do_here_is_said(census: Path) -> None:
    executor = open_executor(census)
    caller = TFServingCaller(executor)
    request = session_request({}, ["y:0"])
    request.target.append("init")
    targets = caller.call(request.SerializeToString(), "SessionRun")
    aliases = session_request({}, ["y:0"])
    aliases.tensor_name_is_alias = True
    assert targets == "UNIMPLEMENTED: SessionRun with targets cannot be run here"
    assert caller.call(aliases.SerializeToString(), "SessionRun").startswith("UNIMPLEMENTED: SessionRun with aliases")
    assert caller.call(b"\xff", "Regress") == "INVALID_ARGUMENT: not a request of Regress"
    executor.close()
