"""Judging by SessionRun, which no file can hold: from the store to the verdict, and what each command says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capture.dialects.base import Route
from capture.dialects.table import BY_NAME
from capture.savedmodel import read_saved_model
from capture.store.base import Batch, HeldOut, ModelVersion, RecordKey, Sample, SignatureDelta, open_store
from tests.support.processes import capture
from tests.support.stores import NOW
from tests.support.tf_requests import census_input, examples_request, serialized_examples, session_request

pytestmark = pytest.mark.server

DIALECT = BY_NAME["tfserving-grpc"]


def session(census: Path, *aliases: str, age: float = 30.0) -> Any:
    """A SessionRun of what ``regress`` feeds and these signatures' ``outputs``."""
    defs = read_saved_model(census).signatures
    fed = {defs[alias].inputs["inputs"].name: serialized_examples(census_input(age=age)) for alias in aliases}
    return session_request(fed, [defs[alias].outputs["outputs"].name for alias in aliases])


def regression(age: float) -> Any:
    return examples_request("Regress", "regress", census_input(age=age))


def store(path: Path, sent: list[tuple[str, Any]], held: list[tuple[str, Any]]) -> Path:
    """A store with these (method, request) of one model as samples and as held-out requests."""
    batch = Batch("run")
    for number, (method, request) in enumerate([*sent, *held]):
        body = request.SerializeToString()
        where = f"/tensorflow.serving.{'SessionService' if method == 'SessionRun' else 'PredictionService'}/{method}"
        signature = DIALECT.read(Route(DIALECT, method, "", where), body).signature
        key = RecordKey(ModelVersion("tfserving", signature.model, "1"), signature.digest)
        batch.seen.setdefault(key, SignatureDelta(signature, 1.0, 1.0)).proven += 1
        kept = Sample(body, None, {}, where, "", "proven", NOW)
        if number < len(sent):
            batch.samples[key] = kept
        else:
            batch.held_out[str(number)] = (key, HeldOut(str(number), kept, 0.5, True))
    opened = open_store(str(path), create=True)
    opened.apply(batch)
    opened.close()
    return path


def export(where: Path, out: Path, *arguments: str) -> Any:
    return capture("export", "--format", "tfrecord", "--model", "census", "--out", str(out), "--store", str(where),
                   *arguments)  # fmt: skip


def verify(census: Path, warmup: Path, where: Path) -> tuple[int, dict[str, Any]]:
    done = capture("verify", "--saved-model", str(census), "--warmup", str(warmup), "--traffic", str(where), "--json")
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, found


def test_one_that_shares_an_executor_is_covered(census: Path, tmp_path: Path) -> None:
    where = store(
        tmp_path / "store",
        [("Regress", regression(20.0)), ("SessionRun", session(census, "regress"))],
        [("Regress", regression(30.0)), ("SessionRun", session(census, "regress", age=40.0))],
    )
    done = export(where, tmp_path / "warmup")
    assert done.returncode == 0
    assert "a warm-up file cannot hold SessionRun: the server answers UNIMPLEMENTED" in done.stderr
    status, found = verify(census, tmp_path / "warmup", where)
    assert (status, found["verdict"], found["held_out_requests"]) == (0, "proved", 2)
    assert (found["cold"]["graph_builds"], found["warm"]["graph_builds"]) == (1, 0)


def test_one_of_its_own_executor_is_not_and_the_reason_is_said(census: Path, tmp_path: Path) -> None:
    both = session(census, "regress", "second")
    where = store(tmp_path / "store", [("Regress", regression(20.0)), ("SessionRun", both)], [("SessionRun", both)])
    assert export(where, tmp_path / "warmup").returncode == 0
    status, found = verify(census, tmp_path / "warmup", where)
    assert (status, found["verdict"], found["warm"]["graph_builds"]) == (1, "failed", 1)
    (reason,) = found["reasons"]
    assert reason.startswith("SessionRun census (regress_inputs:0, second_inputs:0) -> (")
    assert "built 1 graph; a warm-up file cannot hold SessionRun" in reason


def test_what_the_commands_say(census: Path, tmp_path: Path) -> None:
    where = store(tmp_path / "store", [("SessionRun", session(census, "regress"))], [])
    done = capture("ls", "--store", str(where))
    line = next(one for one in done.stdout.splitlines() if "SessionRun" in one)
    assert "SessionRun census (regress_inputs:0) -> (StatefulPartitionedCall" in line
    shown = capture("show", line.split("\t")[0], "--store", str(where), "--saved-model", str(census))
    assert "  executor   feed (regress_inputs:0) fetch (StatefulPartitionedCall" in shown.stdout
    done = export(where, tmp_path / "warmup")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "capture: error: nothing to export for model census: 1 signatures left out; the first:"
    )
    assert "a warm-up file cannot hold SessionRun" in done.stderr
    assert not (tmp_path / "warmup").exists()
    done = capture(
        "export", "--format", "jsonl", "--model", "census", "--out", str(tmp_path / "j"), "--store", str(where)
    )
    assert done.returncode == 0
    assert capture("inspect", str(tmp_path / "j")).stdout.count("SessionRun census (regress_inputs:0)") == 1
