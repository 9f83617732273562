"""Scrubbed files on real TensorFlow: they run, they warm what production sends, and what does not run is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capture.dialects.base import Route
from capture.dialects.table import BY_NAME
from capture.export.manifest import MANIFEST_SUFFIX
from capture.export.tfrecord import WARMUP_PATH
from capture.store.base import Batch, HeldOut, ModelVersion, RecordKey, SignatureDelta
from tests.replay.test_signature_matrix import tfserving
from tests.replay.test_verify import fill, verify
from tests.support.processes import capture
from tests.support.stores import filled, sample
from tests.support.tf_models import private_copy
from tests.support.tf_requests import DT_STRING, examples_request, predict_request, ranking_inputs, tensor

pytestmark = pytest.mark.server

MARKERS = (b"alice-4711", b"category-63")
RULES = ("--scrub-rule", "ranking:user_id=constant:0")


def ranking_request(rows: int = 2) -> bytes:
    inputs = ranking_inputs(rows)
    inputs["user_id"] = tensor(DT_STRING, [rows], [MARKERS[0]] * rows)
    inputs["category"] = tensor(DT_STRING, [rows], [MARKERS[1]] * rows)
    return bytes(predict_request(inputs).SerializeToString())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """One request of the ranking model, and another one held out."""
    dialect = BY_NAME["tfserving-grpc"]
    signature = dialect.read(Route(dialect, "Predict", "ranking", ""), ranking_request()).signature
    key = RecordKey(ModelVersion("tfserving", "ranking", "1"), signature.digest)
    batch = Batch("run", seen={key: SignatureDelta(signature, 1.0, 1.0, 2)}, samples={key: sample(ranking_request())})
    batch.held_out["h"] = (key, HeldOut("h", sample(ranking_request(3)), 0.5, True))
    path = tmp_path / "store"
    filled(path, batch).close()
    return path


def test_refresh_scrubs_runs_and_warms_production(ranking: Path, tmp_path: Path, store: Path) -> None:
    model = private_copy(ranking, tmp_path)
    words = tmp_path / "words"
    words.write_text("category-1\ncategory-2\n")
    refresh = ("refresh", "--saved-model-base", str(model.parent), "--store", str(store), "--scrub")
    done = capture(*refresh, *RULES)
    assert "cannot be scrubbed: input category: holds strings, which has no rule" in done.stdout
    assert not (model / WARMUP_PATH).exists()
    done = capture(*refresh, *RULES, "--scrub-rule", f"ranking:category=vocabulary:{words}")
    assert done.returncode == 0, done.stderr
    assert "version 1: 1 records, scrubbed, each run on it with TensorFlow" in done.stdout
    file = model / WARMUP_PATH
    described = file.with_name(file.name + MANIFEST_SUFFIX).read_bytes()
    for marker in MARKERS:
        assert marker not in file.read_bytes() + described
    assert b"category-2" in file.read_bytes()
    manifest = json.loads(described)
    assert manifest["scrubbed"] is True
    assert manifest["scrub_rules"][0] == RULES[1]
    assert manifest["proof"]["verdict"] == "every record ran"
    status, found = verify(model, store)
    assert (status, found["verdict"], found["warm"]["graph_builds"]) == (0, "proved", 0)


def test_export_scrubs_says_what_was_not_run_and_verify_runs_it(ranking: Path, tmp_path: Path, store: Path) -> None:
    out = tmp_path / "warmup"
    export = (
        *("export", "--format", "tfrecord", "--model", "ranking", "--store", str(store), "--out", str(out)),
        *("--saved-model", str(ranking)),
    )
    done = capture(*export, "--scrub", *RULES)
    assert done.returncode == 1
    assert "input category: holds strings, which has no rule; say 'ranking:category=constant:VALUE'" in done.stderr
    assert not out.exists()
    done = capture(*export, "--scrub", *RULES, "--scrub-rule", "*:*=constant:x", "--scrub-rule", "ranking:usr=zero")
    assert done.returncode == 0, done.stderr
    assert "scrubbed, and not run: capture verify says whether every record runs" in done.stderr
    assert "--scrub-rule ranking:usr: no request has such an input" in done.stderr
    manifest = json.loads(out.with_name(out.name + MANIFEST_SUFFIX).read_bytes())
    assert (manifest["scrubbed"], manifest["proof"]) == (True, {"level": "none"})
    for marker in MARKERS:
        assert marker not in out.read_bytes()
    status, found = verify(ranking, store, "--warmup", str(out))
    assert (status, found["verdict"], found["byte_identical"]) == (0, "proved", 0)


def test_every_dtype_is_still_read_by_tensorflow_and_what_fails_scrubbed_is_named(edge: Path, tmp_path: Path) -> None:
    from tests.models.edge import TYPES

    numbers = dict(zip(TYPES, (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 17, 18, 19), strict=True))
    inputs = {}
    for name, dtype in numbers.items():
        inputs[name] = tensor(DT_STRING, [1], [b"x"]) if name == "string" else tensor(1, [1], [])
        inputs[name].dtype = dtype
    typed = predict_request(inputs, model="edge", signature="types").SerializeToString()
    checked = tfserving([], signature="checked", value=1.0)
    model = private_copy(edge, tmp_path)
    store = fill(tmp_path / "store", "tfserving", [typed, checked], [])
    refresh = ("refresh", "--saved-model-base", str(model.parent), "--store", str(store), "--scrub")
    constants = {"string": "s", "bool": "true"}
    rules = [word for name in TYPES for word in ("--scrub-rule", f"edge:{name}=constant:{constants.get(name, '1')}")]
    done = capture(*refresh, *rules, "--scrub-rule", "edge:x=constant:-1")
    assert done.returncode == 0, done.stderr
    assert "version 1: 1 records, scrubbed" in done.stdout
    assert "does not run on version 1: INVALID_ARGUMENT" in done.stdout


def test_examples_made_anew_run(census: Path, tmp_path: Path) -> None:
    from tests.support.tf_requests import census_input

    request = examples_request("Classify", "classify", census_input(2)).SerializeToString()
    dialect = BY_NAME["tfserving-grpc"]
    signature = dialect.read(Route(dialect, "Classify", "census", ""), request).signature
    key = RecordKey(ModelVersion("tfserving", "census", "1"), signature.digest)
    batch = Batch("run", seen={key: SignatureDelta(signature, 1.0, 1.0, 2)}, samples={key: sample(request)})
    filled(tmp_path / "store", batch).close()
    model = private_copy(census, tmp_path)
    done = capture(
        "refresh", "--saved-model-base", str(model.parent), "--store", str(tmp_path / "store"), "--scrub"
    )  # fmt: skip
    assert "version 1: 1 records, scrubbed" in done.stdout, done.stdout
    assert b"clerk" not in (model / WARMUP_PATH).read_bytes()


def test_wrong_usage_is_one_line(tmp_path: Path, store: Path) -> None:
    base = ("export", "--format", "eas-bin", "--model", "m", "--store", str(store), "--out", str(tmp_path / "o"))
    for more, text in (
        (("--scrub-rule", "m:x=zero"), "--scrub-rule: is for --scrub; say both"),
        (("--scrub", "--scrub-rule", "x"), "--scrub-rule x: no rule; write MODEL:INPUT=RULE"),
        (("--scrub", "--scrub-rule", "m:x=vocabulary:/absent"), "/absent: No such file or directory"),
        (("--scrub", "--wire"), "--wire: holds the bytes as clients sent them; leave it out, or --scrub"),
    ):
        done = capture(*base, *more)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert text in done.stderr
