"""REST calls through the pipeline, and what an export makes of them: together with the same calls over gRPC."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from capture.commands.export import export
from capture.errors import UserError
from capture.export.base import ExportError
from capture.export.read import read_any, read_store
from capture.export.tfrecord import WITHOUT_DEFS, read_records
from capture.schema import messages
from capture.schema.wire import length_delimited
from capture.store.base import ModelVersion, StoredMetadata, open_store
from tests.capture.test_pipeline import Rig
from tests.support.calls import predict
from tests.support.stores import filled
from tests.support.tap_frames import Flow, GrpcFlow

M = "/v1/models/m"
ROWS = json.dumps({"instances": [{"x": 1.5}, {"x": 2.5}]}).encode()
COLUMNS = json.dumps({"inputs": {"x": [1.5, 2.5]}}).encode()
PLAIN = json.dumps({"instances": [1.5]}).encode()
ANSWER = b'{"predictions": [1]}'


def model(directory: Path, dtype: int = 1) -> Path:
    """A version directory with SignatureDefs and no graph: x to y, and ex (examples) to value."""
    entries = []
    for name, alias, output, kind in (("serving_default", "x", "y", dtype), ("examples", "inputs", "outputs", 7)):
        entry = messages.SignatureEntry(key=name)
        entry.value.inputs[alias].name, entry.value.inputs[alias].dtype = f"{alias}:0", kind
        entry.value.outputs[output].name = f"{output}:0"
        entries.append(length_delimited(5, entry.SerializeToString()))
    info = messages.MetaInfoDef(tags=["serve"]).SerializeToString()
    directory.mkdir()
    graph = length_delimited(1, info) + b"".join(entries)
    (directory / "saved_model.pb").write_bytes(length_delimited(2, graph))
    return directory


def test_a_call_is_stored_as_it_was_sent() -> None:
    rig = Rig()
    rig.feed(Flow().post(f"{M}/versions/07:predict?a=b", ROWS, headers="Authorization: secret\r\n", answer=ANSWER))
    key, outcome = rig.only_call()
    sample = rig.pipeline.batch.samples[key]
    assert (key.owner, outcome) == (("tfserving", "m", "7"), "proven")
    assert (sample.body, sample.wire_body, sample.headers) == (ROWS, None, {})
    assert (sample.path, sample.shapes) == (f"{M}/versions/07:predict", "x:number[2]")


def test_names_are_decoded_once() -> None:
    rig = Rig()
    rig.feed(Flow().post("/v1/models/a%2Fb%2541/labels/c%3Ad:predict", ROWS, answer=ANSWER))
    assert rig.only_call()[0].owner == ("tfserving", "a/b%41", "unknown")


def test_gzip_is_kept_both_ways() -> None:
    rig, packed = Rig(), gzip.compress(ROWS)
    rig.feed(Flow().post(M + ":predict", packed, headers="Content-Encoding: gzip\r\n", answer=ANSWER))
    sample = rig.pipeline.batch.samples[rig.only_call()[0]]
    assert (sample.body, sample.wire_body) == (ROWS, packed)


def test_what_is_no_call_or_was_refused_is_counted() -> None:
    rig, flow = Rig(), Flow()
    refused = json.dumps({"error": "JSON Value: ... Type: String is not of expected type: float"}, indent=4).encode()
    flow.post(M + ":predict", ROWS, status=400, answer=refused)
    flow.post(M + ":predict", b"{}", status=400, answer=refused)
    flow.post(M + ":predict", b"\x00", answer=ANSWER)
    flow.post(M + ":predict", ROWS, headers="Content-Encoding: gzip\r\n", status=400, answer=refused)
    flow.post(M + ":predict", ROWS, status=200, answer=gzip.compress(refused))
    flow.post(M + "/metadata", b"", method="GET").post(M, b"", method="GET").post(M + ":PREDICT", ROWS, status=400)
    rig.feed(flow)
    assert rig.only_call()[1] == "proven"
    assert dict(rig.pipeline.batch.refusals) == {
        ("tfserving", "m", "refused", "malformed body"): 1,
        ("tfserving", "m", "refused", "neither instances nor inputs"): 1,
        ("tfserving", "m", "undecodable", "not a JSON object"): 1,
        ("tfserving", "m", "undecodable", "gzip body: broken data"): 1,
    }
    assert dict(rig.pipeline.batch.ignored) == {
        "REST GET model metadata": 1,
        "REST GET model status": 1,
        "REST POST, malformed URL": 1,
    }


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The same call by rows, by columns and over gRPC; a plain one; and a call with examples."""
    rig, rest, grpc = Rig(), Flow(1), GrpcFlow(2)
    for body in (ROWS, COLUMNS, COLUMNS, PLAIN):
        rest.post(M + ":predict", body, answer=ANSWER)
    examples = json.dumps({"signature_name": "examples", "examples": [{"a": 1}]}).encode()
    rest.post(M + ":regress", examples, answer=b'{"results": [1]}')
    grpc.call(predict({"x": (1, [1])}, fill=bytes(4)), b"")
    rig.feed(rest, grpc)
    path = tmp_path / "s.sqlite"
    opened = open_store(str(path), create=True)
    opened.apply(rig.pipeline.take())
    opened.close()
    return path


def lines(path: Path) -> list[str]:
    return sorted(str(entry.signature) for entry in read_any(str(path)).entries)


def test_rest_and_grpc_are_one_record(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "warmup"
    export("tfrecord", "m", out, store=str(store), saved_model=model(tmp_path / "1"))
    logs = [messages.PredictionLog.FromString(record) for record in read_records(out.read_bytes())]
    assert [log.WhichOneof("log_type") for log in logs] == ["predict_log", "regress_log"]
    assert lines(out) == ["Predict m/serving_default (x) -> (*)", "Regress m/examples (inputs) -> (*)"]
    described = json.loads((tmp_path / "warmup.manifest.json").read_text())
    assert [(one["hits"], len(one["also_covers"])) for one in described["records"]] == [(5, 3), (1, 0)]
    assert described["coverage"]["share"] == 1.0
    request = messages.PredictRequest.FromString(messages.PredictLog.FromString(logs[0].predict_log).request)
    assert request.inputs["x"].dtype == 1


def test_without_the_model_rest_is_left_out_with_the_remedy(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "warmup"
    export("tfrecord", "m", out, store=str(store))
    assert lines(out) == ["Predict m/serving_default (x) -> (*)", "Regress m/examples (inputs) -> (*)"]
    left_out = json.loads((tmp_path / "warmup.manifest.json").read_text())["left_out"]
    assert {one["reason"] for one in left_out} == {WITHOUT_DEFS}
    assert {one["line"].partition(" m/")[0] for one in left_out} == {"REST Predict row", "REST Predict column"}


def metadata(path: Path, dtype: str, model: str = "m") -> Path:
    """The server's answer for the model above."""
    signatures = {
        name: {"inputs": {alias: {"dtype": kind, "name": f"{alias}:0"}}, "outputs": {out: {"name": f"{out}:0"}}}
        for name, alias, out, kind in (
            ("serving_default", "x", "y", dtype),
            ("examples", "inputs", "outputs", "DT_STRING"),
        )
    }
    answer = {"model_spec": {"name": model}, "metadata": {"signature_def": {"signature_def": signatures}}}
    path.write_text(json.dumps(answer))
    return path


def test_the_servers_metadata_does_as_well_as_the_model(store: Path, tmp_path: Path) -> None:
    files = [tmp_path / "by model", tmp_path / "by metadata"]
    export("tfrecord", "m", files[0], store=str(store), saved_model=model(tmp_path / "1"))
    export("tfrecord", "m", files[1], store=str(store), metadata=metadata(tmp_path / "m.json", "DT_FLOAT"))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_the_sidecar_was_told_of_a_version_converts_its_requests(tmp_path: Path) -> None:
    rig, flow = Rig(), Flow()
    flow.post(M + "/versions/7:predict", ROWS, answer=ANSWER)
    flow.post(M + "/versions/8:predict", COLUMNS, answer=ANSWER)
    flow.post(M + "/versions/9:predict", PLAIN, answer=ANSWER)
    flow.post(M + ":predict", b'{"signature_name": "examples", "inputs": ["a"]}', answer=ANSWER)
    rig.feed(flow)
    batch = rig.pipeline.take()
    for version, dtype in (("7", "DT_FLOAT"), ("8", "DT_INT32"), ("10", "DT_DOUBLE")):
        owner = ModelVersion("tfserving", "m", version)
        batch.metadata[owner] = StoredMetadata(owner, 1.0, metadata(tmp_path / "m.json", dtype).read_bytes())
    filled(tmp_path / "s.sqlite", batch).close()
    out = tmp_path / "warmup"
    export("tfrecord", "m", out, store=str(tmp_path / "s.sqlite"))
    # 7 takes floats; 8 would have refused it; of 9 nothing is known; for no version the newest, 10, speaks.
    assert lines(out) == ["Predict m/examples (inputs) -> (*)", "Predict m/serving_default (x) -> (*)"]
    left_out = json.loads((tmp_path / "warmup.manifest.json").read_text())["left_out"]
    assert sorted(one["reason"][:30] for one in left_out) == [WITHOUT_DEFS[:30], "does not convert to a gRPC requ"[:30]]


def test_metadata_that_is_none_is_told_with_the_remedy(store: Path, tmp_path: Path) -> None:
    def error(path: Path, **options: Path) -> str:
        with pytest.raises(UserError) as caught:
            export("tfrecord", "m", tmp_path / "o", store=str(store), metadata=path, **options)
        assert not (tmp_path / "o").exists()
        return str(caught.value)

    how = f"save the server's answer: curl -s http://SERVER:8501/v1/models/m/metadata -o {tmp_path}/"
    assert error(tmp_path / "gone.json").endswith(f"gone.json: No such file or directory; {how}gone.json")
    bad = tmp_path / "bad.json"
    bad.write_text('{"error": "Servable not found for request: Latest(m)"}')
    assert "bad.json: not the metadata of a model: " in error(bad)
    other = metadata(tmp_path / "other.json", "DT_FLOAT", model="other")
    assert "is the metadata of model other, not of m" in error(other)
    assert "leave it out" in error(other, saved_model=model(tmp_path / "1"))


def test_a_body_that_the_model_would_refuse_is_left_out_with_the_servers_words(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "warmup"
    export("tfrecord", "m", out, store=str(store), saved_model=model(tmp_path / "1", dtype=3))
    # The request over gRPC, whose dtype no one checks, stands for all of them.
    assert lines(out) == ["Predict m/serving_default (x) -> (*)", "Regress m/examples (inputs) -> (*)"]
    only_rest = open_store(str(store))
    rows = read_store(only_rest, "m").entries
    only_rest.close()
    assert len(rows) == 5


def test_only_rest_that_does_not_convert_is_no_export(tmp_path: Path) -> None:
    rig = Rig()
    rig.feed(Flow().post(M + ":predict", ROWS, answer=ANSWER))
    path = tmp_path / "s.sqlite"
    opened = open_store(str(path), create=True)
    opened.apply(rig.pipeline.take())
    opened.close()
    with pytest.raises(ExportError, match=r"does not convert to a gRPC request: .* is not of expected type: int32"):
        export("tfrecord", "m", tmp_path / "o", store=str(path), saved_model=model(tmp_path / "1", dtype=3))
    with pytest.raises(ExportError, match="say --saved-model DIR"):
        export("tfrecord", "m", tmp_path / "o", store=str(path))


def test_json_lines_hold_the_body_and_are_read_back(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    export("jsonl", "m", out, store=str(store))
    contents = read_any(str(out))
    assert not contents.all_remarks()
    assert sorted(str(entry.signature) for entry in contents.entries) == [
        "Predict m/serving_default (x) -> (*)",
        "REST Predict column m/serving_default (x) -> (*)",
        "REST Predict row m/serving_default () -> (*)",
        "REST Predict row m/serving_default (x) -> (*)",
        "REST Regress m/examples (inputs) -> (*)",
    ]
    bodies = [json.loads(line).get("body_json") for line in out.read_text().splitlines()]
    assert json.loads(ROWS) in bodies
