"""verify on SavedModels of every kind, with a mix of signatures each: it passes with the exported file, and when one
record is removed it fails and says which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from capture.commands.export import export
from replay.commands import verify as command
from replay.verify import How, Report
from tests.models.kinds import IMAGE, TOKENS, WIDTH
from tests.replay.test_verify_methods import store
from tests.support.tf_models import saved_model
from tests.support.tf_requests import (
    DT_FLOAT,
    DT_INT64,
    DT_STRING,
    census_input,
    examples_request,
    predict_request,
    tasks_request,
    tensor,
)

pytestmark = pytest.mark.server

#: One request of production: its method and its message.
Sent = tuple[str, Any]


def floats(*shape: int, value: float) -> Any:
    size = 1
    for one in shape:
        size *= one
    return tensor(DT_FLOAT, shape, [value] * size)


def predict(model: str, outputs: list[str], signature: str = "", **inputs: Any) -> Sent:
    return "Predict", predict_request(inputs, model=model, signature=signature, outputs=outputs)


def tf2(rows: int) -> list[Sent]:
    x, y = floats(rows, WIDTH, value=rows), floats(rows, WIDTH, value=0.5)
    return [
        predict("tf2", ["a"], x=x),
        predict("tf2", [], "pair", x=x, y=y),
        predict("tf2", ["product"], "pair", x=x, y=y),
        predict("tf2", ["a", "b"], x=x),
    ]


def tf1(rows: int) -> list[Sent]:
    x = floats(rows, WIDTH, value=rows)
    return [predict("tf1", ["y"], x=x), predict("tf1", ["z"], x=x), predict("tf1", [], x=x)]


def lookup(rows: int) -> list[Sent]:
    token = tensor(DT_STRING, [rows], [TOKENS[row % len(TOKENS)].encode() for row in range(rows)])
    return [
        predict("lookup", ["embedding"], token=token),
        predict("lookup", [], token=token),
        predict("lookup", [], "tokens", id=tensor(DT_INT64, [rows], range(rows))),
    ]


def jit(rows: int) -> list[Sent]:
    x = floats(rows, WIDTH, value=rows)
    return [predict("jit", ["dense"], x=x), predict("jit", ["top"], x=x)]


def conv(rows: int) -> list[Sent]:
    image = floats(rows, IMAGE, IMAGE, 3, value=rows)
    return [predict("conv", [], image=image), predict("conv", ["features"], image=image)]


def census(rows: int) -> list[Sent]:
    examples = census_input(rows)
    return [
        ("Classify", examples_request("Classify", "classify", examples)),
        ("MultiInference", tasks_request([("classify", "classify"), ("regress", "regress")], examples)),
        ("Regress", examples_request("Regress", "regress", examples)),
        ("Regress", examples_request("Regress", "second", examples)),
    ]


def basic_pitch(rows: int) -> list[Sent]:
    audio = floats(1, 43844, 1, value=rows / 10)
    return [predict("basic_pitch", ["note"], input_2=audio), predict("basic_pitch", ["note", "onset"], input_2=audio)]


@dataclass(frozen=True, slots=True)
class Kind:
    """``traffic`` makes requests by a number, of which batch size and values depend; ``lost`` is what the explanation
    says when the last one's record is missing."""

    traffic: Callable[[int], list[Sent]]
    lost: str


KINDS = {
    "tf2": Kind(tf2, "fetches also: b"),
    "tf1": Kind(tf1, "fetches all outputs (empty filter), not only: "),
    "lookup": Kind(lookup, "signature_name is tokens, not serving_default"),
    "jit": Kind(jit, "fetches also: top; fetches not: dense"),
    "conv": Kind(conv, "fetches only: features, not all outputs (empty filter)"),
    "census": Kind(census, "signature_name is second, not regress"),
    "basic_pitch": Kind(basic_pitch, "fetches also: onset"),
}


def model_of(kind: str, cache: Path) -> Path:
    """The SavedModel; basic-pitch is by Spotify, from its package, which is not run."""
    if kind == "census":
        return saved_model(cache, "census")
    if kind != "basic_pitch":
        return saved_model(cache, "kinds") / kind
    spec = find_spec("basic_pitch")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("basic-pitch is not installed: pip install --no-deps -r requirements/models.txt")
    return Path(spec.submodule_search_locations[0]) / "saved_models" / "icassp_2022" / "nmp"


def judged(model: Path, kind: str, tmp_path: Path, sent: list[Sent], held: list[Sent]) -> Report:
    """A file exported from ``sent``, judged by ``held``."""
    export("tfrecord", kind, tmp_path / "warmup", store=str(store(tmp_path / "sent", sent, [])), saved_model=model)
    where = store(tmp_path / "store", [], held)
    return command._run(model, tmp_path / "warmup", str(where), None, None, How(herd=0), None, False)


@pytest.mark.parametrize("kind", KINDS)
def test_with_its_file_and_with_one_record_less(kind: str, model_cache: Path, tmp_path: Path) -> None:
    traffic, model = KINDS[kind].traffic, model_of(kind, model_cache)
    sent, held = traffic(1), traffic(2) + traffic(3)
    (tmp_path / "whole").mkdir()
    found = judged(model, kind, tmp_path / "whole", sent, held)
    summary = found.summary()
    assert (summary["verdict"], summary["level"], summary["reasons"]) == ("proved", "executor", [])
    assert (summary["cold"]["graph_builds"], summary["warm"]["graph_builds"]) == (len(sent), 0)
    assert (summary["held_out_requests"], summary["byte_identical"]) == (len(held), 0)
    if kind == "jit":
        # Two batch sizes that no record has: no graph, and XLA compiles all the same. Told, with its count.
        assert summary["warm"]["xla_compilations"] == 2
        assert any("XLA compiled" in note for note in summary["notes"])
    else:
        assert summary["warm"]["xla_compilations"] == 0

    (tmp_path / "poorer").mkdir()
    summary = judged(model, kind, tmp_path / "poorer", sent[:-1], held).summary()
    assert (summary["verdict"], summary["warm"]["graph_builds"]) == ("failed", 1)
    (reason,) = summary["reasons"]
    assert "built 1 graph; nearest record" in reason
    assert KINDS[kind].lost in reason
