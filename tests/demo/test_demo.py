"""The demonstration's own claims, held against its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.demo.run import EAS_CALLS, GRPC_CALLS, GRPC_REFUSED, demo

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, ranking: Path) -> dict[str, Any]:
    """One run of the demonstration."""
    out = tmp_path_factory.mktemp("demo")
    found = demo(out, ranking)
    assert sorted(path.name for path in out.glob("*.png")) == ["verify-eas.png", "verify-tfserving.png"]
    # What make demo writes is this, and nothing that JSON cannot say.
    again: dict[str, Any] = json.loads(json.dumps(found))
    assert again == found
    return again


def test_everything_that_was_sent_was_observed(report: dict[str, Any]) -> None:
    assert report["requests_sent"] == report["requests_observed"] == GRPC_CALLS + EAS_CALLS
    assert report["requests_refused"] == GRPC_REFUSED
    assert report["losses"] == 0


def test_tf_serving_builds_nothing_behind_its_file(report: dict[str, Any]) -> None:
    found = report["protocols"]["tfserving"]
    # Every output by name and an empty filter: two wire signatures, one executor.
    assert found["wire_signatures"] == found["executor_keys"] + 1
    assert report["exported"]["tfrecord"]["records"] == found["executor_keys"]
    for measured in (found, found["verify"]):
        assert measured["cold"]["graph_builds"] == found["executor_keys"]
        assert measured["warm"]["graph_builds"] == 0
    assert found["verify"]["verdict"] == "proved"
    assert found["verify"]["level"] == "executor"
    assert found["verify"]["held_out_requests"] > found["executor_keys"]
    assert found["verify"]["byte_identical"] == 0


def test_eas_warms_one_signature_and_says_so(report: dict[str, Any]) -> None:
    found = report["protocols"]["eas"]
    assert found["cold"]["graph_builds"] == found["executor_keys"] == report["exported"]["eas-bin"]["records"]
    assert found["warm"]["graph_builds"] == found["executor_keys"] - 1
    assert found["warm"]["warmup_builds"] == 1
    assert found["verify"]["verdict"] == "failed"
    assert len(found["verify"]["reasons"]) == found["executor_keys"] - 1


def test_eas_behind_the_gate_builds_nothing_more(report: dict[str, Any]) -> None:
    found = report["protocols"]["eas"]
    assert found["gated"]["graph_builds"] == 0
    assert found["gated"]["warmup_builds"] == found["executor_keys"] > 1
