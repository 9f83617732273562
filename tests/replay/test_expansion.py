"""Expanding records with a trial by script: what is run, what stays as it is, and what a full file leaves out."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from capture.dialects.tfserving_calls import read_predict
from capture.export.base import Record
from capture.signature import SignatureDef, TensorInfo
from capture.store.base import Sample
from replay.expansion import Expansion, expand, within
from replay.tf_protos import TensorFlowMissing
from replay.trial import Request, Trial, Tried
from tests.support.calls import predict
from tests.support.stores import key_of, sample

DEFS = {"serving_default": SignatureDef({"x": TensorInfo("x:0", 1, (-1,))}, {"a": TensorInfo("y:0")})}


def record(name: str, rows: int, *, inputs: str = "x") -> tuple[Record, Sample]:
    body = predict({inputs: (1, (rows,))}, model=name, fill=b"abcd" * rows)
    signature = read_predict(body).signature
    return Record(key_of(signature), signature, 5, "proven", f"x:float[{rows}]"), sample(body)


def shapes(body: bytes) -> str:
    return read_predict(body).shapes


class Script:
    """A trial that fails requests of these shapes; ``ran`` are the shapes of all that it was given."""

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.ran: list[str] = []

    def __call__(self, saved_model: Path, family: str, requests: list[Request]) -> Trial:
        found = [shapes(request.body) for request in requests]
        self.ran += found
        return Trial("executor", "2.21", [Tried("no" if one in self.failing else "", 0.5) for one in found])


def of(done: Expansion) -> list[tuple[str, int | None, str]]:
    return [(one.record.signature.model, one.record.batch, shapes(one.sample.body)) for one in done.variants]


def test_only_what_is_new_is_run(tmp_path: Path) -> None:
    script = Script()
    done = expand([record("m", 8)], DEFS, (1, 8), tmp_path, trial=script)
    assert of(done) == [("m", 1, "x:float[1]"), ("m", 8, "x:float[8]")]
    assert script.ran == ["x:float[1]"]
    assert [one.seconds for one in done.variants] == [0.5, None]
    assert done.variants[0].record.shapes == done.variants[0].sample.shapes == "x:float[1]"


def test_a_record_stays_as_it_is_where_no_size_runs_or_it_has_no_batch(tmp_path: Path) -> None:
    done = expand(
        [record("m", 2), record("n", 2, inputs="z")], DEFS, (1, 4), tmp_path, trial=Script("x:float[1]", "x:float[4]")
    )
    assert of(done) == [("m", None, "x:float[2]"), ("n", None, "z:float[2]")]
    assert [one.reason for one in done.left_out] == [
        "not expanded to batch sizes: the model has no input z in signature serving_default;"
        " the record itself is in the file",
        "batch 1: does not run: no; the record itself is in the file",
        "batch 4: does not run: no; the record itself is in the file",
    ]


def test_nothing_is_run_for_nothing(tmp_path: Path) -> None:
    script = Script()
    assert of(expand([record("m", 2)], DEFS, (), tmp_path, trial=script)) == [("m", None, "x:float[2]")]
    done = expand([record("m", 2)], DEFS, (2,), tmp_path, trial=script)
    assert (of(done), done.left_out, done.tensorflow) == ([("m", 2, "x:float[2]")], [], "")
    assert script.ran == []


def test_a_full_file_keeps_one_of_each_before_a_second_of_any(tmp_path: Path) -> None:
    done = within(expand([record(name, 2) for name in "lmn"], DEFS, (1, 4), tmp_path, trial=Script()), 4)
    assert [(name, batch) for name, batch, _ in of(done)] == [("l", 1), ("l", 4), ("m", 1), ("n", 1)]
    assert {one.reason for one in done.left_out} == {"batch 4: a warm-up file holds at most 4 records"}
    done = within(expand([record(name, 2) for name in "lmn"], DEFS, (), tmp_path, trial=Script()), 2)
    assert [(one.signature.model, one.reason) for one in done.left_out] == [
        ("n", "a warm-up file holds at most 2 records")
    ]


def test_without_tensorflow_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    with pytest.raises(TensorFlowMissing, match=r"^TensorFlow is not installed here: pip install"):
        expand([record("m", 2)], DEFS, (1,), tmp_path)
