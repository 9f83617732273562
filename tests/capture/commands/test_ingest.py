"""``capture ingest``: what comes of files in a store."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from capture.commands.ingest import WRITE_RECORDS
from capture.export.tfrecord import frame, prediction_log
from capture.schema import messages
from capture.schema.wire import length_delimited
from capture.store.base import Batch, Store, StoredSignature, open_store
from tests.support import calls
from tests.support.processes import capture
from tests.support.stores import add, body_of, filled, signature

pytestmark = pytest.mark.server

GRPC = "/tensorflow.serving.PredictionService/Predict"


def b64(body: bytes) -> str:
    return base64.b64encode(body).decode()


def eas_line(**more: Any) -> str:
    return json.dumps({"path": "/api/predict/rank", "body_base64": b64(calls.eas()), "status": 200, **more}) + "\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "s.sqlite"


def ingest(place: Path, *arguments: object, status: int = 0) -> tuple[str, list[str]]:
    """Standard output and the lines of standard error."""
    done = capture("ingest", *map(str, arguments), "--store", str(place))
    assert done.returncode == status, done
    return done.stdout, done.stderr.splitlines()


def opened(place: Path) -> Store:
    return open_store(str(place))


def rows(place: Path) -> list[StoredSignature]:
    store = opened(place)
    found = store.signatures()
    store.close()
    return found


def test_what_export_writes_is_read_back_whole(tmp_path: Path, place: Path) -> None:
    a, b = signature(["a"]), signature(["b"])
    eas = signature(["e"], family="eas", model="rank")
    batch = Batch("run1", counters={"requests_observed": 12})
    add(batch, a, version="3", proven=5, unproven=2)
    add(batch, b, version="3", proven=3)
    add(batch, eas, version="unknown", proven=4)
    source = tmp_path / "source.sqlite"
    filled(source, batch).close()
    files = []
    for model in ("m", "rank"):
        files.append(tmp_path / f"{model}.jsonl")
        done = capture("export", "--format", "jsonl", "--model", model, "--out", str(files[-1]), "--store", str(source))
        assert done.returncode == 0, done
    ingest(place, *files)
    found = {row.key: row for row in rows(place)}
    expected = {row.key: row for row in rows(source)}
    assert set(found) == set(expected)
    assert {key: (row.proven, row.unproven, row.sample_outcome) for key, row in found.items()} == {
        key: (row.proven, row.unproven, "proven") for key, row in expected.items()
    }
    store = opened(place)
    for key, row in found.items():
        sample = store.sample(key)
        assert sample is not None
        assert sample.body == body_of(row.signature)
        assert sample.captured_at == expected[key].sample_at
    assert store.counters()["requests_observed"] == 14
    store.close()


def test_archives_lines_and_prediction_logs_are_judged_by_the_recorded_response(tmp_path: Path, place: Path) -> None:
    def entry(outputs: list[str], answered: int) -> dict[str, Any]:
        body = calls.eas(outputs=outputs)
        request = {
            "method": "POST",
            "url": "http://h/api/predict/rank",
            "bodySize": len(body),
            "postData": {"text": b64(body), "encoding": "base64"},
        }
        return {"request": request, "response": {"status": answered}}

    page = {"request": {"method": "GET", "url": "http://h/index.html"}, "response": {"status": 200}}
    archive = tmp_path / "browser.har"
    archive.write_text(
        json.dumps({"log": {"entries": [entry(["ok"], 200), entry(["late"], 408), entry(["who"], 401), page]}})
    )
    lines = tmp_path / "access.log"
    lines.write_text(
        eas_line()
        + json.dumps({"path": GRPC, "body_base64": b64(calls.predict(outputs=["x"])), "grpc_status": 0})
        + "\n"
        + json.dumps({"path": GRPC, "body_base64": b64(calls.predict(outputs=["y"]))})
        + "\n"
    )
    records = tmp_path / "logged"
    answered = length_delimited(1, calls.predict(outputs=["z"])) + length_delimited(2, calls.predict_response(9))
    records.write_bytes(frame(prediction_log(calls.predict(outputs=["w"]))) + frame(length_delimited(6, answered)))
    said, errors = ingest(place, archive, lines, records, "--model-version", "4")
    assert errors == []
    assert said.splitlines() == [
        f"{archive}: requests 4: proven 1, unproven 1, refused 1, ignored 1",
        f"{lines}: requests 3: proven 2, unproven 1",
        f"{records}: requests 2: proven 1, unproven 1",
    ]
    found = {
        (row.signature.model, row.signature.outputs): (row.key.owner.version, row.proven, row.unproven)
        for row in rows(place)
    }
    assert found == {
        ("rank", ("ok",)): ("4", 1, 0),
        ("rank", ("late",)): ("4", 0, 1),
        ("rank", None): ("4", 1, 0),
        ("m", ("x",)): ("4", 1, 0),
        ("m", ("y",)): ("4", 0, 1),
        ("m", ("w",)): ("4", 0, 1),
        ("m", ("z",)): ("9", 1, 0),
    }
    store = opened(place)
    assert store.refusals() == [("eas", "rank", "refused", "not authenticated", 1)]
    assert store.ignored() == [("HTTP GET, other path", 1)]
    assert store.counters()["requests_observed"] == 9
    store.close()


def test_what_cannot_be_read_is_named_and_the_rest_is_stored(tmp_path: Path, place: Path) -> None:
    file = tmp_path / "a.jsonl"
    huge = json.dumps({"path": "/api/predict/rank", "body": "x" * ((64 << 20) + 1)})
    file.write_text(eas_line() + "nonsense\n\n" + eas_line(body_base64=b64(b"\xff\xff")) + huge + "\n" + eas_line())
    said, errors = ingest(place, file, status=1)
    assert said == f"{file}: requests 5: proven 2, undecodable 1, oversized 1, unread 1\n"
    assert [one.partition(": ")[2].partition(":")[0] for one in errors[:3]] == ["line 2", "line 4", "line 5"]
    assert errors[1].endswith("line 4: undecodable: not an EAS TensorFlow PredictRequest")
    assert errors[2].endswith("line 5: oversized: body over the limit")
    assert errors[3:] == ["capture: error: 3 of 5 requests could not be read; they are named above"]
    (row,) = rows(place)
    assert row.proven == 2


def test_a_file_is_counted_once_under_any_name_and_a_log_that_has_grown_goes_on(tmp_path: Path, place: Path) -> None:
    file, copy = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    file.write_text(eas_line() * 3 + eas_line()[:20])
    _, errors = ingest(place, file, status=1)
    assert len(errors) == 2, "a last line that is half written is no request yet"
    copy.write_text(eas_line() * 3)
    said, errors = ingest(place, copy)
    assert said == f"{copy}: requests 0\n"
    assert errors == [f"{copy}: it was ingested before, and passed over"]
    file.write_text(eas_line() * 5)
    said, errors = ingest(place, file)
    assert said == f"{file}: requests 2: proven 2\n"
    size = len(eas_line())
    assert errors == [f"{file}: the first {3 * size} of {5 * size} bytes were ingested before, and passed over"]
    assert [row.proven for row in rows(place)] == [5]
    said, errors = ingest(place, file, "--again")
    assert (said, errors) == (f"{file}: requests 5: proven 5\n", [])
    assert [row.proven for row in rows(place)] == [10]
    archive = tmp_path / "c.har"
    archive.write_text('{"log": {"entries": []}}')
    assert ingest(place, archive, archive)[0] == f"{archive}: requests 0\n" * 2


def test_a_run_that_was_interrupted_goes_on(tmp_path: Path, place: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(eas_line() * WRITE_RECORDS)
    ingest(place, file)
    # What the first run had written when it was interrupted.
    file.write_text(eas_line() * (2 * WRITE_RECORDS + 7))
    said, _ = ingest(place, file)
    assert said == f"{file}: requests {WRITE_RECORDS + 7}: proven {WRITE_RECORDS + 7}\n"
    store = opened(place)
    assert store.counters()["requests_observed"] == 2 * WRITE_RECORDS + 7
    assert len(store.runs()) == 3
    store.close()


def test_requests_of_a_custom_url_and_another_dialect(tmp_path: Path, place: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(eas_line(path="/my/url"))
    said, _ = ingest(place, file)
    assert said == f"{file}: requests 1: ignored 1\n"
    file.write_text(eas_line(path="/my/url") + eas_line(path="/other"))
    ingest(place, file, "--service", "mine", "--again", "--dialect", "eas-tensorflow")
    (row,) = rows(place)
    assert (row.signature.model, row.proven) == ("mine", 2)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["missing.har"], "missing.har: No such file or directory"),
        (["empty"], "empty: is empty"),
        (["odd"], "odd: cannot tell what it is; give --format har|jsonl|tfrecord"),
        (["odd", "--format", "xml"], "--format xml: no such format; one of: har, jsonl, tfrecord"),
        (["odd", "--dialect", "x"], "--dialect x: no such dialect; one of: auto, "),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, place: Path, arguments: list[str], why: str) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "odd").write_bytes(b"odd")
    name, *rest = arguments
    _, errors = ingest(place, tmp_path / name, *rest, status=1)
    (line,) = errors
    assert line.removeprefix("capture: error: ").removeprefix(f"{tmp_path}/").startswith(why)


def test_a_level_tells_shapes_apart(tmp_path: Path, place: Path) -> None:
    file = tmp_path / "requests.jsonl"
    bodies = [calls.eas({"x": [1.0] * count}) for count in (1, 2, 2)]
    file.write_text("".join(eas_line(body_base64=b64(body)) for body in bodies))
    ingest(place, file, "--level", "shapes")
    assert sorted((row.hits, row.sample_shapes) for row in rows(place)) == [(1, "x:float[1]"), (2, "x:float[2]")]
    assert len({row.signature.digest for row in rows(place)}) == 1
    _, lines = ingest(place, file, "--level", "shape", status=1)
    assert len(lines) == 1
    assert lines[0].startswith("capture: error: --level: 'shape' is no level; write names, shapes, ")


SECRET = b"secret-4711"


def private(alias: str = "s") -> bytes:
    """A Predict with a string and a number that nobody should find again."""
    request = messages.PredictRequest.FromString(calls.predict({alias: (7, (1,)), "x": (1, (2,))}))
    request.inputs[alias].MergeFromString(length_delimited(8, SECRET))
    request.inputs["x"].MergeFromString(length_delimited(4, b"4711_710"))
    return bytes(request.SerializeToString())


def recorded(*bodies: bytes, path: str = GRPC) -> str:
    return "".join(json.dumps({"path": path, "body_base64": b64(body), "grpc_status": 0}) + "\n" for body in bodies)


def test_scrubbed_nothing_of_what_was_recorded_gets_into_the_store(tmp_path: Path, place: Path) -> None:
    file = tmp_path / "a.jsonl"
    # Twice: one is the sample, one is held out.
    file.write_text(
        recorded(private(), private()) + eas_line(body_base64=b64(gzip.compress(calls.eas({"y": [47.5] * 9}))))
    )
    said, errors = ingest(place, file, "--scrub", "--scrub-rule", "m:s=constant:nobody", "--scrub-rule", "m:z=keep")
    assert said == f"{file}: requests 3: proven 3\n"
    assert errors == ["--scrub-rule m:z: no request has such an input"]
    store = opened(place)
    assert {row.key.owner.model for row in store.signatures()} == {"m", "rank"}
    for row in store.signatures():
        sample = store.sample(row.key)
        assert sample is not None
        assert (b"nobody" in sample.body) == (row.key.owner.model == "m")
    assert len(list(store.held_out())) >= 1
    store.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("s.sqlite*"))
    assert b"nobody" in stored
    for value in (SECRET, b"4711_710", struct.pack("<2f", 47.5, 47.5)):
        assert value not in stored
    # Without rules they are found, where they are.
    ingest(tmp_path / "plain", file)
    plain = b"".join(path.read_bytes() for path in tmp_path.glob("plain*"))
    assert all(value in plain for value in (SECRET, b"4711_710", struct.pack("<2f", 47.5, 47.5)))


def test_what_cannot_be_scrubbed_is_counted_and_not_kept(tmp_path: Path, place: Path) -> None:
    file = tmp_path / "a.jsonl"
    rest = json.dumps({"path": "/v1/models/m:predict", "body": f'{{"inputs": "{SECRET.decode()}"}}', "status": 200})
    file.write_text(recorded(private(), calls.predict()) + rest + "\n")
    said, errors = ingest(place, file, "--scrub", status=1)
    assert said == f"{file}: requests 3: proven 3\n"
    (error,) = errors
    assert error.startswith(
        "capture: error: 2 requests could not be scrubbed: they are counted, and not kept (m: input s"
    )
    assert error.endswith("; mend it, and ingest them into a new store")
    found = rows(place)
    assert sorted((row.proven, row.sample_at is not None) for row in found) == [(1, False), (1, False), (1, True)]
    assert SECRET not in b"".join(path.read_bytes() for path in tmp_path.glob("s.sqlite*"))
    assert ingest(place, file, "--scrub-rule", "m:s=keep", status=1)[1] == [
        "capture: error: --scrub-rule: is for --scrub; say both"
    ]
