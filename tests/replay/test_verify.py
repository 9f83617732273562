"""verify against real TensorFlow: passes with the right file, fails with the right explanation, and never claims more
than was run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capture.commands.export import export
from capture.dialects import tfserving_calls, tfserving_grpc
from capture.dialects.base import Route
from capture.dialects.skeletons import Skeletons
from capture.dialects.table import BY_NAME
from capture.export import select
from capture.export.manifest import MANIFEST_SUFFIX
from capture.export.tfrecord import read_records
from capture.signature import ExecutorKey, SignatureDef, WireSignature, executor_key
from capture.store.base import Batch, HeldOut, ModelVersion, RecordKey, SignatureDelta, open_store
from tests.replay.test_signature_matrix import eas, tfserving
from tests.support.processes import capture
from tests.support.stores import sample

pytestmark = pytest.mark.server


def fill(
    path: Path, family: str, sent: Sequence[bytes], held: Sequence[bytes], read: Callable[..., Any] | None = None
) -> Path:
    """A store that holds ``sent`` as samples and ``held`` as held-out requests of model ``edge``."""
    dialect = BY_NAME["tfserving-grpc" if family == "tfserving" else "eas-tensorflow"]
    batch = Batch("run")
    for number, body in enumerate([*sent, *held]):
        signature = (read or dialect.read)(Route(dialect, "Predict", "edge", ""), body).signature
        key = RecordKey(ModelVersion(family, "edge", "1"), signature.digest)
        delta = batch.seen.setdefault(key, SignatureDelta(signature, 1.0, 1.0))
        delta.proven += 1
        if number < len(sent):
            batch.samples.setdefault(key, sample(body))
        else:
            batch.held_out[str(number)] = (key, HeldOut(str(number), sample(body), 0.5, True))
    store = open_store(str(path), create=True)
    store.apply(batch)
    store.close()
    return path


def verify(saved_model: Path, store: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """``capture verify --json`` as a process: exit status and document."""
    done = capture("verify", "--saved-model", str(saved_model), "--traffic", str(store), "--json", *arguments)
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, found


SENT = [tfserving(["sum"]), tfserving(["sum", "double"]), tfserving([], signature="with_default")]
HELD = [
    tfserving(["sum"], rows=4),
    tfserving(["double", "sum"], value=2.0),
    tfserving([], signature="with_default", scale=9.0),
]


@pytest.fixture
def warmup(tmp_path: Path) -> Path:
    return tmp_path / "warmup"


def exported(store: Path, out: Path, model: Path) -> Path:
    export("tfrecord", "edge", out, store=str(store), saved_model=model)
    return out


def test_the_right_file_is_proved(edge: Path, tmp_path: Path, warmup: Path) -> None:
    store = fill(tmp_path / "store", "tfserving", SENT, HELD)
    status, found = verify(edge, store, "--warmup", str(exported(store, warmup, edge)))
    assert status == 0
    assert found["verdict"] == "proved"
    assert found["level"] == "executor"
    assert found["held_out_requests"] == found["executor_keys"] == found["records"] == 3
    assert found["byte_identical"] == 0
    assert found["cold"]["graph_builds"] == 3
    assert found["warm"]["graph_builds"] == 0
    assert found["warm"]["warmup_builds"] == 3
    # What was proved stands in the manifest of exactly this file.
    manifest = json.loads(warmup.with_name(warmup.name + MANIFEST_SUFFIX).read_bytes())
    proof = manifest["proof"]
    assert (proof["verdict"], proof["level"], proof["model"]) == ("proved", "executor", "edge")
    assert proof["saved_model"] == "edge/1"
    assert proof["tensorflow"] == found["tensorflow"] != ""
    assert proof["held_out_from"] == proof["held_out_to"] == found["held_out_from"] is not None
    assert proof["saved_model_sha256"] == hashlib.sha256((edge / "saved_model.pb").read_bytes()).hexdigest()


def test_a_missing_record_is_named(edge: Path, tmp_path: Path, warmup: Path) -> None:
    store = fill(tmp_path / "store", "tfserving", SENT, HELD)
    poorer = fill(tmp_path / "poorer", "tfserving", [SENT[0], SENT[2]], [])
    status, found = verify(edge, store, "--warmup", str(exported(poorer, warmup, edge)))
    assert status == 1
    assert found["verdict"] == "failed"
    assert found["warm"]["graph_builds"] == 1
    (reason,) = found["reasons"]
    assert "(x) -> (double, sum): built 1 graph" in reason
    assert "fetches also: double" in reason


def without_filter(patch: pytest.MonkeyPatch) -> None:
    true = tfserving_calls.wire_signature
    patch.setattr(tfserving_calls, "wire_signature", lambda *values: true(*values[:-1], []))


def without_signature_name(patch: pytest.MonkeyPatch) -> None:
    true = tfserving_calls.wire_signature
    patch.setattr(tfserving_calls, "wire_signature", lambda *values: true(*values[:3], "", *values[4:]))


def fetches_as_a_set(patch: pytest.MonkeyPatch) -> None:
    def merged(signature: WireSignature, defs: Mapping[str, SignatureDef]) -> ExecutorKey:
        true = executor_key(signature, defs)
        return replace(true, fetches=tuple(sorted(set(true.fetches))))

    patch.setattr(select, "executor_key", merged)


NAMED = [tfserving([]), tfserving([], signature="aliases")]
ALIASES = [tfserving(["a", "c"], signature="aliases"), tfserving(["a", "b", "c"], signature="aliases")]


@pytest.mark.parametrize(
    ("mutate", "sent", "held", "named"),
    [
        (without_filter, SENT[:2], HELD[:2], "fetches also: double"),
        (without_signature_name, NAMED, NAMED, "signature_name is aliases, not serving_default"),
        (fetches_as_a_set, ALIASES, ALIASES, ": b"),
    ],
)
def test_a_signature_that_is_too_coarse_is_found_out(
    edge: Path,
    tmp_path: Path,
    warmup: Path,
    monkeypatch: pytest.MonkeyPatch,
    mutate: Callable[[pytest.MonkeyPatch], None],
    sent: list[bytes],
    held: list[bytes],
    named: str,
) -> None:
    """Mutations of the rules: the export keeps one record of two, and verify names what is missing."""
    with monkeypatch.context() as patch:
        # What this process has read before keeps its signature, and what it reads now is not kept for others.
        patch.setattr(tfserving_grpc, "_PREDICTS", Skeletons(lambda body: []))
        mutate(patch)
        exported(fill(tmp_path / "mutated", "tfserving", sent, []), warmup, edge)
    assert len(list(read_records(warmup.read_bytes()))) == 1
    store = fill(tmp_path / "store", "tfserving", sent, held)
    status, found = verify(edge, store, "--warmup", str(warmup), "--herd", "0")
    assert (status, found["verdict"], found["warm"]["graph_builds"]) == (1, "failed", 1)
    assert any(named in reason for reason in found["reasons"]), found["reasons"]


def test_without_held_out_requests_it_is_a_self_check(edge: Path, tmp_path: Path, warmup: Path) -> None:
    store = fill(tmp_path / "store", "tfserving", SENT, [])
    status, found = verify(edge, store, "--warmup", str(exported(store, warmup, edge)))
    assert (status, found["verdict"]) == (1, "self-check")


def test_judged_by_the_records_themselves_it_is_a_self_check(edge: Path, tmp_path: Path, warmup: Path) -> None:
    store = fill(tmp_path / "store", "tfserving", SENT, SENT)
    status, found = verify(edge, store, "--warmup", str(exported(store, warmup, edge)))
    assert (status, found["verdict"]) == (1, "self-check")
    assert found["byte_identical"] == 3


def test_a_file_that_fails_the_load_is_not_proved(edge: Path, tmp_path: Path, warmup: Path) -> None:
    store = fill(tmp_path / "store", "tfserving", SENT, HELD)
    exported(store, warmup, edge)
    warmup.write_bytes(warmup.read_bytes()[:-3])
    status, found = verify(edge, store, "--warmup", str(warmup))
    assert (status, found["verdict"]) == (1, "failed")
    assert "the server would not load this model: DATA_LOSS" in found["reasons"][0]


def test_requests_that_the_model_refuses_are_set_aside_and_counted(edge: Path, tmp_path: Path, warmup: Path) -> None:
    store = fill(tmp_path / "store", "tfserving", SENT, [*HELD, tfserving(["gone"])])
    status, found = verify(edge, store, "--warmup", str(exported(store, warmup, edge)))
    assert (status, found["verdict"]) == (0, "proved")
    assert found["held_out_refused"] == 1
    (refused,) = found["not_fitting"]
    assert (refused["reason"], refused["held_out_requests"]) == ("no output gone", 1)


def test_a_signature_of_production_that_is_neither_judged_nor_recorded_is_run(
    edge: Path, tmp_path: Path, warmup: Path
) -> None:
    """It has a stored sample and no held-out request, and the file is of a time before it."""
    earlier = fill(tmp_path / "earlier", "tfserving", SENT[:1], [])
    exported(earlier, warmup, edge)
    store = fill(tmp_path / "store", "tfserving", SENT[:2], HELD[:1])
    status, found = verify(edge, store, "--warmup", str(warmup))
    assert (status, found["verdict"]) == (1, "failed")
    assert found["samples_judged"] == 1
    assert "(x) -> (double, sum): built 1 graph" in found["reasons"][0]


def test_a_file_that_is_replaced_meanwhile_is_not_judged(
    edge: Path, tmp_path: Path, warmup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capture.errors import UserError
    from replay.commands import verify as command
    from replay.verify import How

    store = fill(tmp_path / "store", "tfserving", SENT, HELD)
    exported(store, warmup, edge)
    true = command.run_verify

    def replaced(*values: Any, **named: Any) -> Any:
        report = true(*values, **named)
        export("tfrecord", "edge", warmup, store=str(store), saved_model=edge, limit=1)
        return report

    monkeypatch.setattr(command, "run_verify", replaced)
    with pytest.raises(UserError, match="was replaced while it was judged"):
        command._run(edge, warmup, str(store), None, None, How(), None, False)
    manifest = json.loads(warmup.with_name(warmup.name + MANIFEST_SUFFIX).read_bytes())
    assert manifest["proof"] == {"level": "none"}


def test_without_the_executor_it_claims_no_more_than_that_all_ran(
    edge: Path, tmp_path: Path, warmup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(tmp_path / "store", "tfserving", SENT, HELD)
    exported(store, warmup, edge)
    # No compiler, and no shim from an earlier build.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    status, found = verify(edge, store, "--warmup", str(warmup))
    assert (status, found["verdict"], found["level"]) == (1, "ran", "runs")
    assert found["warm"]["graph_builds"] is None
    assert found["note"]


def test_eas_has_one_file_and_says_what_it_does_not_warm(edge: Path, tmp_path: Path) -> None:
    bodies = [eas(["sum"]), eas(["double"])]
    store = fill(tmp_path / "store", "eas", bodies, [eas(["sum"], rows=5), eas(["double"], rows=5)])
    out = tmp_path / "eas"
    export("eas-bin", "edge", out, store=str(store), saved_model=edge)
    first = sorted(out.glob("*.bin"))[0]
    status, found = verify(edge, store, "--warmup", str(first))
    assert (status, found["verdict"]) == (1, "failed")
    assert found["cold"]["graph_builds"] == 2
    assert found["warm"]["graph_builds"] == 1

    single = fill(tmp_path / "single", "eas", bodies[:1], [eas(["sum"], rows=5)])
    shutil.rmtree(out)
    export("eas-bin", "edge", out, store=str(single), saved_model=edge)
    (only,) = out.glob("*.bin")
    assert verify(edge, single, "--warmup", str(only))[1]["verdict"] == "proved"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--traffic", "nothing.sqlite"], "store nothing.sqlite: no such file"),
        (["--warmup", "nothing"], "nothing: No such file or directory; name the warm-up file with --warmup"),
        (["--model", "other", "--format", "eas-bin"], "--warmup is needed"),
        (["--format", "zip"], "--format zip: no TensorFlow server warms up from it"),
        (["--saved-model", "nothing"], "nothing: no such directory; give the version directory"),
        (
            ["--saved-model", "nothing", "--warmup", "nothing/f"],
            "nothing: no such directory; give the version directory",
        ),
        (["--model", "rank"], "nothing captured of model rank; of tfserving it has: edge"),
    ],
)
def test_what_cannot_be_judged_is_one_line_and_exit_code_2(
    edge: Path, tmp_path: Path, warmup: Path, arguments: list[str], message: str
) -> None:
    store = fill(tmp_path / "store", "tfserving", SENT, HELD)
    exported(store, warmup, edge)
    given = {"--saved-model": str(edge), "--traffic": str(store), "--warmup": str(warmup)}
    if "eas-bin" in arguments:
        del given["--warmup"]
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    done = capture("verify", *(word for pair in given.items() for word in pair))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
