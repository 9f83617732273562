"""``capture inspect`` and ``capture diff`` as users run them, on files of warmtap and of TensorFlow itself."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from capture.export.tfrecord import frame, prediction_log
from capture.signature import WireSignature
from capture.store.base import Batch
from tests.support.processes import ROOT, capture, run_tensorflow
from tests.support.stores import add, body_of, filled, signature

pytestmark = pytest.mark.server

A, B, C = signature(["a"]), signature(["a", "model_version_id"]), signature()
EAS = signature(["e"], family="eas", model="rank")


def failed(*arguments: object, status: int = 1) -> str:
    """The one line on standard error of a command that ends so."""
    done = capture(*map(str, arguments))
    assert done.returncode == status, done
    lines = [line for line in done.stderr.splitlines() if line.startswith("capture: error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0].removeprefix("capture: error: ")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    batch = Batch("run1")
    add(batch, A, proven=5)
    add(batch, B, proven=30)
    add(batch, EAS, proven=3)
    path = tmp_path / "s.sqlite"
    filled(path, batch).close()
    return path


def export(store: Path, form: str, model: str, out: Path, *more: str) -> Path:
    arguments = ["export", "--store", str(store), "--format", form, "--model", model, "--out", str(out), *more]
    done = capture(*arguments)
    assert done.returncode == 0, done.stderr
    return out


# --- export ---


def test_export_jsonl_of_either_family(store: Path, tmp_path: Path) -> None:
    out = export(store, "jsonl", "m", tmp_path / "f.jsonl")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["signature"], line["hits"]) for line in lines] == [(B.digest, 30), (A.digest, 5)]
    described = json.loads((tmp_path / "f.jsonl.manifest.json").read_text())
    assert (described["format"], described["coverage"]["share"]) == ("jsonl", 1.0)
    assert "no server warms up from it" in described["note"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("f.jsonl*")} == {0o600}
    (line,) = export(store, "jsonl", "rank", tmp_path / "e.jsonl").read_text().splitlines()
    assert json.loads(line)["signature"] == EAS.digest
    export(store, "jsonl", "m", out, "--limit", "1")
    assert len(out.read_text().splitlines()) == 1
    assert "jsonl could be written for: m, rank" in failed(
        "export", "--store", store, "--format", "jsonl", "--model", "none", "--out", tmp_path / "o"
    )


def test_export_eas_txt_of_text_and_of_nothing_else(tmp_path: Path) -> None:
    batch = Batch("run1")
    for number, hits in ((1, 2), (2, 9)):
        add(batch, text([f"o{number}"]), proven=hits, body=b'{"n": %d}' % number)
    bytes_ = text(["b"], "bytes")
    add(batch, bytes_, body=b"\xff\xfe")
    add(batch, EAS, proven=1)
    filled(tmp_path / "s", batch).close()
    out = export(tmp_path / "s", "eas-txt", "text", tmp_path / "warmup.txt")
    assert out.read_bytes() == b'{"n": 2}\n{"n": 1}\n'
    assert capture("inspect", str(out)).returncode == 0
    options = ["--store", tmp_path / "s", "--format", "eas-txt", "--out", tmp_path / "o", "--model"]
    why = "its request is not UTF-8 text, and a .txt holds one request per line; use --format eas-bin"
    assert failed("export", *options, "bytes") == f"{bytes_.digest}: {why}"
    assert failed("export", *options, "rank") == (
        "nothing captured for model rank; eas-txt could be written for: bytes, text"
    )
    assert not (tmp_path / "o").exists()


def text(names: list[str], model: str = "text") -> WireSignature:
    return signature(family="eas-string", model=model, inputs=names)


# --- inspect ---


def test_inspect_an_export(store: Path, tmp_path: Path) -> None:
    out = export(store, "tfrecord", "m", tmp_path / "f")
    done = capture("inspect", str(out))
    assert done.returncode == 0
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    size = str(len(prediction_log(body_of(B))))
    assert rows[0] == ["RECORD", "TYPE", "SIZE", "HITS", "VERSION", "SIGNATURE", "LINE", "INPUTS"]
    assert rows[1] == ["1", "predict_log", size, "-", "-", B.digest[:15], str(B), "x:float[1]"]
    assert done.stderr == "tfrecord: records 2, signatures 2\n"
    document = json.loads(capture("inspect", str(out), "--json").stdout)
    assert (document["format"], document["error"], document["remarks"]) == ("tfrecord", None, [])
    assert document["records"][1]["signature"] == A.digest
    assert document["records"][1]["outputs"] == ["a"]


def test_inspect_a_store_and_a_directory(store: Path, tmp_path: Path) -> None:
    done = capture("inspect", str(store), "--model", "m")
    assert [line.split("\t")[3] for line in done.stdout.splitlines()] == ["HITS", "30", "5"]
    assert done.stderr == "store: records 2, signatures 2\n"
    out = export(store, "eas-bin", "rank", tmp_path / "d")
    done = capture("inspect", str(out))
    assert str(EAS) in done.stdout
    assert done.returncode == 0


def test_a_damaged_file_is_one_line_with_record_byte_and_remedy(tmp_path: Path) -> None:
    path, good = tmp_path / "f", frame(prediction_log(body_of(A)))
    path.write_bytes(good + good[:-1] + b"\0")
    what = f"corrupted record at byte {len(good)}: cut off, or its checksum is wrong"
    wanted = f"{path}: record 2: {what}; write the file anew"
    assert failed("inspect", path) == wanted
    done = capture("inspect", str(path), "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (1, wanted.removeprefix(f"{path}: "))
    # What came before it is listed.
    assert A.digest[:15] in capture("inspect", str(path)).stdout


def test_names_from_a_file_drive_no_terminal(tmp_path: Path) -> None:
    hostile = signature(["\x1b[31mred\x07"], model="evil\x1b]0;title\x07")
    (tmp_path / "f").write_bytes(frame(prediction_log(body_of(hostile))) * 2)
    done = capture("inspect", str(tmp_path / "f"))
    assert "\x1b" not in done.stdout + done.stderr
    assert "\x07" not in done.stdout + done.stderr


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    assert failed("inspect", tmp_path / "none") == f"{tmp_path}/none: No such file or directory"
    assert failed("inspect", tmp_path).endswith("is a directory without .bin files; name a file")
    (tmp_path / "f").touch()
    told = failed("inspect", tmp_path / "f", "--format", "zip")
    assert told == "--format zip: no such format; one of: tfrecord, eas-bin, eas-txt, jsonl, store"
    assert capture("inspect").returncode == 2


#: Writes a warm-up file with TensorFlow's own writer and TF Serving's own messages, one record of each kind.
_BY_TENSORFLOW = """
import json, sys
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, inference_pb2, predict_pb2, prediction_log_pb2, regression_pb2
from tensorflow_serving.apis import session_service_pb2

path, kinds = sys.argv[1], sys.argv[2].split(",")
example = tf.train.Example(features=tf.train.Features(feature={
    "f": tf.train.Feature(float_list=tf.train.FloatList(value=[1.0]))}))

def predict(outputs, version=None):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "hand"
    request.model_spec.signature_name = "score"
    if version: request.model_spec.version.value = version
    request.inputs["ids"].CopyFrom(tf.make_tensor_proto([[1, 2, 3]], dtype=tf.int64))
    request.inputs["name"].CopyFrom(tf.make_tensor_proto(["a", "b"]))
    request.output_filter.extend(outputs)
    return request

def log(kind):
    found = prediction_log_pb2.PredictionLog()
    if kind.startswith("predict"):
        outputs, version = [] if kind == "predict-all" else ["y"], 3 if kind == "predict-3" else None
        found.predict_log.request.CopyFrom(predict(outputs, version))
        found.predict_log.response.outputs["y"].CopyFrom(tf.make_tensor_proto([1.0]))
        found.log_metadata.model_spec.name = "hand"
    elif kind == "classify":
        found.classify_log.request.model_spec.name = "hand"
        found.classify_log.request.input.example_list.examples.extend([example, example])
    elif kind == "regress":
        found.regress_log.request.model_spec.name = "hand"
        found.regress_log.request.input.example_list_with_context.examples.append(example)
        found.regress_log.request.input.example_list_with_context.context.CopyFrom(example)
    elif kind == "multi":
        for signature, method in (("r", "regress"), ("c", "classify")):
            task = found.multi_inference_log.request.tasks.add(method_name="tensorflow/serving/" + method)
            task.model_spec.name, task.model_spec.signature_name = "hand", signature
        found.multi_inference_log.request.input.example_list.examples.append(example)
    elif kind == "session":
        found.session_run_log.request.model_spec.name = "hand"
    elif kind == "streamed":
        found.predict_streamed_log.request.add().CopyFrom(predict(["y"]))
    return found

options = tf.io.TFRecordOptions(compression_type="GZIP" if "gzip" in kinds else "")
with tf.io.TFRecordWriter(path, options) as writer:
    for kind in kinds:
        if kind == "example": writer.write(example.SerializeToString())
        elif kind != "gzip": writer.write(log(kind).SerializeToString())
print(json.dumps(sum(1 for _ in tf.data.TFRecordDataset(path, "GZIP" if "gzip" in kinds else ""))))
"""


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    """Records that TF Serving takes, of each log type."""
    path = tmp_path / "tf_serving_warmup_requests"
    kinds = "predict,predict-3,predict-all,classify,regress,multi,example"
    assert run_tensorflow(_BY_TENSORFLOW, str(path), kinds) == 7
    return path


def test_inspect_a_file_that_tensorflow_wrote(by_hand: Path) -> None:
    done = capture("inspect", str(by_hand))
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()[1:]]
    assert [(row[1], row[4], row[6], row[7]) for row in rows] == [
        ("predict_log", "-", "Predict hand/score (ids, name) -> (y)", "ids:int64[1,3] name:string[2]"),
        ("predict_log", "3", "Predict hand/score (ids, name) -> (y)", "ids:int64[1,3] name:string[2]"),
        ("predict_log", "-", "Predict hand/score (ids, name) -> (*)", "ids:int64[1,3] name:string[2]"),
        ("classify_log", "-", "Classify hand/serving_default (inputs) -> (*)", "inputs:string[2]"),
        ("regress_log", "-", "Regress hand/serving_default (inputs) -> (*)", "inputs:string[1]"),
        ("multi_inference_log", "-", "MultiInference hand (inputs) -> (classify:c, regress:r)", "inputs:string[1]"),
        ("no log type", "-", "-", "-"),
    ]
    told = [line.partition(" at byte ")[0] + ":" + line.split(": ", 2)[2] for line in done.stderr.splitlines()[:-1]]
    assert told == [
        "warning: record 2:names version 3; a warm-up runs on the version that loads it",
        "note: record 2:has the same signature as record 1 at byte 0",
        "note: record 3:has an empty output filter: fetches all outputs of the version that loads it",
        "warning: record 7:has no log_type: the server passes it over; is it a PredictionLog at all?",
    ]


@pytest.mark.parametrize(
    ("kinds", "text"),
    [
        ("predict,session", "is a session_run_log, which TF Serving refuses: no load; remove it"),
        ("predict,streamed", "is a predict_streamed_log, which TF Serving refuses: no load; remove it"),
    ],
)
def test_a_file_of_tensorflow_that_the_server_refuses(tmp_path: Path, kinds: str, text: str) -> None:
    path = tmp_path / "f"
    run_tensorflow(_BY_TENSORFLOW, str(path), kinds)
    told = failed("inspect", path)
    assert told.startswith(f"{path}: record 2 at byte ")
    assert told.endswith(text)


def test_a_file_that_tensorflow_compressed(tmp_path: Path) -> None:
    run_tensorflow(_BY_TENSORFLOW, str(tmp_path / "f"), "predict,gzip")
    assert failed("inspect", tmp_path / "f") == (
        f"{tmp_path}/f: record 1: corrupted record at byte 0; it is gzip-compressed, and servers read uncompressed"
        " files only; write the file anew"
    )


@pytest.mark.parametrize("command", [["inspect", "FILE"], ["diff", "FILE", "FILE"]])
def test_no_tensorflow_is_needed(command: list[str], by_hand: Path) -> None:
    program = (
        "import sys\nfrom capture.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as done:\n    assert not done.code\n"
        "heavy = {'tensorflow', 'tensorflow_serving', 'aiohttp', 'grpc', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    words = [str(by_hand) if word == "FILE" else word for word in command]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --- diff ---


def test_diff_explains(store: Path, tmp_path: Path) -> None:
    a = export(store, "tfrecord", "m", tmp_path / "a")
    b = tmp_path / "b"
    b.write_bytes(frame(prediction_log(body_of(A))) + frame(prediction_log(body_of(C))))
    done = capture("diff", str(a), str(b))
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        f"only in A  {B.digest[:15]}  {B}",
        f"           fetches also: model_version_id (than {A.digest[:15]} in B)",
        f"only in B  {C.digest[:15]}  {C}",
        f"           fetches all outputs (empty filter), not only: a (than {A.digest[:15]} in A)",
        "the same in both: 1",
    ]
    document = json.loads(capture("diff", str(a), str(b), "--json").stdout)
    assert document["only_in_a"] == [
        {"signature": B.digest, "line": str(B), "nearest": A.digest, "differences": ["fetches also: model_version_id"]}
    ]
    assert (document["changed"], document["same"]) == ([], 1)


def test_diff_across_formats_and_with_the_store(store: Path, tmp_path: Path) -> None:
    tfrecord = export(store, "tfrecord", "m", tmp_path / "a")
    jsonl = export(store, "jsonl", "m", tmp_path / "a.jsonl")
    for left, right in ((tfrecord, jsonl), (jsonl, tfrecord), (store, tfrecord), (store, jsonl), (store, store)):
        done = capture("diff", str(left), str(right), "--model", "m")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert capture("diff", str(store), str(tfrecord)).returncode == 1, "the store has another model"
    directory = export(store, "eas-bin", "rank", tmp_path / "d")
    assert capture("diff", str(directory), str(store), "--model", "rank").returncode == 0
    (one,) = directory.glob("*.bin")
    # Away from its manifest a body names no service.
    (tmp_path / "moved.bin").write_bytes(one.read_bytes())
    assert capture("diff", str(tmp_path / "moved.bin"), str(directory)).returncode == 0


def test_diff_of_other_shapes_and_of_a_file_by_hand(by_hand: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run_tensorflow(_BY_TENSORFLOW, str(other), "predict,predict-all,classify,regress,multi,example")
    done = capture("diff", str(by_hand), str(other))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("in both    w1-")
    assert lines[1:] == ["           in B 1 record, not 2; names version none, not 3", "the same in both: 5"]
    assert capture("diff", str(other), str(other)).returncode == 0


def test_what_cannot_be_read_cannot_be_compared(store: Path, tmp_path: Path) -> None:
    good = export(store, "tfrecord", "m", tmp_path / "a")
    broken = tmp_path / "broken"
    broken.write_bytes(good.read_bytes()[:-1])
    assert "record 2: corrupted record at byte " in failed("diff", good, broken, status=2)
    assert "No such file or directory" in failed("diff", good, tmp_path / "none", status=2)
    run_tensorflow(_BY_TENSORFLOW, str(broken), "session")
    assert "record 1 at byte 0: is a session_run_log" in failed("diff", broken, good, status=2)
    store.chmod(0o644)
    assert "others may read it" in failed("diff", good, store, status=2)
    assert capture("diff", str(good), str(store), "--allow-shared-store", "--model", "m").returncode == 0
