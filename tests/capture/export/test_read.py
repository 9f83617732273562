"""Warm-up files read back, also those that are not right: what is in them, and what a server would say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capture.dialects.base import Unreadable
from capture.dialects.table import stored_route
from capture.errors import UserError
from capture.export.base import ExportError, Format, Record
from capture.export.compare import compare
from capture.export.entries import Contents, Severity
from capture.export.read import read_any
from capture.export.read_requests import read_eas_bin, read_eas_txt, read_jsonl
from capture.export.read_tfrecord import read_tfrecord
from capture.export.table import FORMATS
from capture.export.tfrecord import MAX_RECORDS, frame, prediction_log
from capture.schema import messages
from capture.schema.wire import length_delimited
from capture.signature import WireSignature, wire_signature
from capture.store.base import Batch, Sample
from tests.support.calls import eas, of_examples, predict
from tests.support.stores import add, body_of, filled, key_of, sample, signature

A, B, C = signature(["a"]), signature(["a", "model_version_id"]), signature()
EAS = signature(["e"], family="eas", model="rank")


def record(one: WireSignature, body: bytes | None = None, *, hits: int = 7) -> tuple[Record, Sample]:
    return Record(key_of(one), one, hits, "proven", "x:float[1]"), sample(body_of(one) if body is None else body)


def written(form: str, *records: tuple[Record, Sample]) -> bytes:
    found: Format = FORMATS[form]
    files = found.write(list(records))
    found.check(files, list(records))
    return files[0].data


def remarks(contents: Contents) -> list[str]:
    return [f"{severity}: {place}: {text}" for severity, place, text in contents.all_remarks()]


# --- what is written reads back as what it was ---


def test_a_tfrecord_reads_back() -> None:
    contents = read_tfrecord(written("tfrecord", record(B), record(A)))
    assert [one.signature for one in contents.entries] == [B, A]
    assert [one.identity for one in contents.entries] == [B.digest, A.digest]
    assert [one.kind for one in contents.entries] == ["predict_log"] * 2
    assert contents.entries[0].shapes == "x:float[1]"
    second = len(frame(prediction_log(body_of(B))))
    assert [one.place for one in contents.entries] == ["record 1 at byte 0", f"record 2 at byte {second}"]
    # Exports name no version.
    assert (remarks(contents), contents.broken) == ([], "")


def test_jsonl_reads_back_and_is_json_for_anyone() -> None:
    text = {"q": ["a", 1], "wide": "ü\u2028"}
    json_body = json.dumps(text).encode()
    with_json = record(signature(["j"], family="eas", model="rank"), json_body)
    data = written("jsonl", record(B, hits=9), record(EAS), with_json)
    assert data.endswith(b"\n")
    first, second, third = map(json.loads, data.decode().split("\n")[:-1])
    assert (first["signature"], first["line"], first["hits"], first["outcome"]) == (B.digest, str(B), 9, "proven")
    assert (first["family"], first["dialect"], first["model"], first["version"]) == (
        "tfserving",
        "tfserving-grpc",
        "m",
        "1",
    )
    assert (first["inputs"], first["outputs"]) == (["x"], ["a", "model_version_id"])
    assert (second["dialect"], second["method"]) == ("eas-tensorflow", "predict")
    assert "body_json" not in second
    assert third["body_json"] == text
    contents = read_jsonl(data)
    assert [one.identity for one in contents.entries][:2] == [B.digest, EAS.digest]
    assert [one.signature for one in contents.entries] == [B, EAS, None]
    assert [one.hits for one in contents.entries] == [9, 7, 7]
    assert remarks(contents) == [
        f"error: {contents.entries[2].place}: its body cannot be read (not an EAS TensorFlow PredictRequest); export it"
        " anew"
    ]


def test_jsonl_of_all_outputs_and_of_a_compressed_request() -> None:
    one, kept = record(C)
    kept.wire_body = b"\x1f\x8bcompressed"
    (line,) = map(json.loads, written("jsonl", (one, kept)).splitlines())
    assert line["outputs"] is None
    assert line["wire_body"] == "H4tjb21wcmVzc2Vk"


def test_eas_txt_reads_back_line_by_line() -> None:
    bodies = [b'{"q": 1}', "zwei ü".encode(), b"with\x0bodd\x0cspaces\xc2\x85"]
    data = written("eas-txt", *(record(EAS, body) for body in bodies))
    assert data == b"\n".join(bodies) + b"\n"
    contents = read_eas_txt(data)
    assert [one.size for one in contents.entries] == [len(body) for body in bodies]
    assert [one.place for one in contents.entries][1] == f"record 2 at byte {len(bodies[0]) + 1}"
    assert remarks(contents) == []


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"two\nlines", "holds a line break"),
        (b"two\rlines", "holds a line break"),
        (b"ends\n", "holds a line break"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"", "is empty"),
        (b" \t", "is empty"),
        (body_of(C), "holds a line break"),
    ],
)
def test_what_is_no_line_of_text_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(ExportError) as error:
        FORMATS["eas-txt"].write([record(EAS, b"fine"), record(EAS, body)])
    assert str(error.value) == (
        f"{EAS.digest}: its request {why}, and a .txt holds one request per line; use --format eas-bin"
    )


@pytest.mark.parametrize("form", ["eas-txt", "jsonl"])
def test_a_file_that_changed_on_the_way_to_the_disk_is_noticed(form: str) -> None:
    records = [record(EAS, b"one"), record(EAS, b"two")]
    files = FORMATS[form].write(records)
    data = files[0].data
    for damage in (data[:-3], data.replace(b"one", b"eno").replace(b"b25l", b"ZW5v"), b"x" + data, data + data):
        files[0].data = damage
        with pytest.raises(ExportError, match="does not read back"):
            FORMATS[form].check(files, records)


# --- what is wrong is named with its record and byte ---


def log(field: int, request: bytes) -> bytes:
    """A PredictionLog with this log type (its field number) and request."""
    return length_delimited(field, length_delimited(1, request))


SPEC = length_delimited(1, messages.ModelSpec(name="m", signature_name="s").SerializeToString())
EXAMPLES = length_delimited(2, length_delimited(1, length_delimited(1, b"") * 2))
TASK = length_delimited(1, SPEC + length_delimited(2, b"tensorflow/serving/regress"))
NAMELESS = length_delimited(1, length_delimited(2, b"tensorflow/serving/regress"))


@pytest.mark.parametrize(
    ("entry", "kind", "line", "told"),
    [
        (log(2, SPEC + EXAMPLES), "classify_log", "Classify m/s (inputs) -> (*)", []),
        (log(3, SPEC + EXAMPLES), "regress_log", "Regress m/s (inputs) -> (*)", []),
        (log(4, TASK + EXAMPLES), "multi_inference_log", "MultiInference m (inputs) -> (regress:s)", []),
        (log(4, TASK + TASK + EXAMPLES), "multi_inference_log", "MultiInference m (inputs) -> (regress:s, regress:s)",
         ["error: asks twice for a signature, which TF Serving refuses: no load; remove it"]),
        (log(4, NAMELESS + EXAMPLES), "multi_inference_log", "MultiInference  (inputs) -> (regress:serving_default)",
         ["error: its tasks do not name a model, which TF Serving refuses: no load; remove it"]),
        (log(2, of_examples(version=3)), "classify_log", "Classify m/serving_default (inputs) -> (*)",
         ["warning: names version 3; a warm-up runs on the version that loads it"]),
        (log(2, of_examples(model="")), "classify_log", "Classify /serving_default (inputs) -> (*)", []),
        (log(3, SPEC), "regress_log", "Regress m/s (inputs) -> (*)",
         ["error: holds no example, which TF Serving refuses: no load; remove it"]),
        (log(4, EXAMPLES), "multi_inference_log", "None",
         ["error: its request cannot be read (no tasks); remove it"]),
        (log(5, b""), "session_run_log", "None",
         ["error: is a session_run_log, which TF Serving refuses: no load; remove it"]),
        (log(7, b""), "predict_streamed_log", "None",
         ["error: is a predict_streamed_log, which TF Serving refuses: no load; remove it"]),
        (b"", "no log type", "None",
         ["warning: has no log_type: the server passes it over; is it a PredictionLog at all?"]),
        (b"\xff", "no log type", "None", ["error: is no PredictionLog, and the model does not load; remove it"]),
        (length_delimited(6, b"\xff"), "predict_log", "None",
         ["error: is no predict_log with a request in it, and the model does not load; remove it"]),
        (log(6, predict(["x"], outputs=["a"], version=3)), "predict_log", "Predict m/serving_default (x) -> (a)",
         ["warning: names version 3; a warm-up runs on the version that loads it"]),
        (log(6, predict(["x"], outputs=["a"], label="canary")), "predict_log", "Predict m/serving_default (x) -> (a)",
         ["warning: names version label canary; a warm-up runs on the version that loads it"]),
        (log(6, predict(["x"])), "predict_log", "Predict m/serving_default (x) -> (*)",
         ["note: has an empty output filter: fetches all outputs of the version that loads it"]),
        (log(6, predict(["x"], outputs=["a", "a"])), "predict_log", "Predict m/serving_default (x) -> (a, a)",
         ["error: asks twice for an output, which TF Serving refuses: no load; remove it"]),
        (log(6, predict([], outputs=["a"])), "predict_log", "Predict m/serving_default () -> (a)",
         ["warning: has no inputs"]),
        (log(6, predict(["x"], model="", outputs=["a"])), "predict_log", "Predict /serving_default (x) -> (a)", []),
    ],
)  # fmt: skip
def test_each_kind_of_record(entry: bytes, kind: str, line: str, told: list[str]) -> None:
    before = frame(prediction_log(body_of(A)))
    contents = read_tfrecord(before + frame(entry))
    second = contents.entries[1]
    assert (second.kind, str(second.signature), second.size) == (kind, line, len(entry))
    place = f"record 2 at byte {len(before)}"
    assert remarks(contents)[: len(told)] == [text.replace(": ", f": {place}: ", 1) for text in told]
    assert len([text for text in remarks(contents) if "same signature" not in text]) == len(told)
    assert contents.broken == ""


def test_damage_names_the_record_and_its_byte() -> None:
    good = frame(prediction_log(body_of(A)))
    for data, what in (
        (good + b"\0" + frame(b"")[1:-1] + b"\xff", "corrupted record at byte {}: cut off, or its checksum is wrong"),
        (good + good[:11], "corrupted record at byte {}"),
        (good + good[:-1], "corrupted record at byte {}: cut off, or its checksum is wrong"),
        (good + good[:20] + b"\0\0" + good[22:], "corrupted record at byte {}: cut off, or its checksum is wrong"),
    ):
        contents = read_tfrecord(data)
        assert len(contents.entries) == 1
        assert contents.broken == f"record 2: {what.format(len(good))}; write the file anew"
    assert "it is gzip-compressed, and servers read uncompressed files only" in read_tfrecord(b"\x1f\x8b" * 20).broken


def test_more_records_than_a_server_takes() -> None:
    one = frame(prediction_log(body_of(A)))
    assert not [text for text in remarks(read_tfrecord(one * MAX_RECORDS)) if text.startswith("error")]
    told = remarks(read_tfrecord(one * (MAX_RECORDS + 1)))
    assert told[-1].startswith("error: : 1001 records: TF Serving takes 1000, one more fails the load of the model")
    assert "note: record 2 at byte" in told[0]
    assert told[0].endswith("has the same signature as record 1 at byte 0")


def test_an_empty_file_warms_nothing() -> None:
    for contents in (read_tfrecord(b""), read_eas_txt(b""), read_jsonl(b"")):
        assert [one.severity for one in contents.all_remarks()] == [Severity.WARNING]


def test_wrong_eas_files() -> None:
    contents = read_eas_bin([("1.bin", body_of(EAS)), ("2.bin", predict(["x"], outputs=["a"])), ("3.bin", b"")], "rank")
    assert [one.signature for one in contents.entries] == [EAS, None, None]
    assert [text.partition(";")[0] for text in remarks(contents)][:2] == [
        "error: record 2 at byte 0 of 2.bin: not an EAS TensorFlow PredictRequest (signature_name)",
        "error: record 3 at byte 0 of 3.bin: no inputs",
    ]
    assert remarks(contents)[-1].startswith("note: : 3 files, and EAS documents one for a service")
    lines = read_eas_txt(b"fine\r\n\n\xff\nlast")
    assert [text.partition(";")[0] for text in remarks(lines)] == [
        "warning: record 1 at byte 0: ends in a carriage return, which may be sent as part of the request",
        "warning: record 2 at byte 6: is empty",
        "error: record 3 at byte 7: is not UTF-8 text",
    ]


@pytest.mark.parametrize(
    ("edit", "broken"),
    [
        ((b'"family":', b'"familie":'), "Object missing required field `family`"),
        ((b'"hits":7', b'"hits":"many"'), "Expected `int`, got `str` - at `$.hits`"),
        ((b"{", b"{{"), "JSON is malformed"),
        ((b'"warmtap_jsonl":1', b'"warmtap_jsonl":2'), "written by a newer warmtap (form 2); upgrade warmtap"),
    ],
)  # fmt: skip
def test_wrong_json_lines(edit: tuple[bytes, bytes], broken: str) -> None:
    good = written("jsonl", record(A))
    contents = read_jsonl(good + good.replace(*edit, 1))
    assert len(contents.entries) == 1
    assert contents.broken.startswith(f"record 2 at byte {len(good)}: ")
    assert broken in contents.broken


def test_a_json_line_whose_body_was_edited() -> None:
    contents = read_jsonl(written("jsonl", record(A, body_of(B))))
    assert remarks(contents) == [
        f"warning: record 1 at byte 0: says {A.digest}, but its body is {B.digest}: it was edited"
    ]


# --- what a file is ---


def test_the_kind_is_found_by_name_manifest_and_first_bytes(tmp_path: Path) -> None:
    for name, data, form in (
        ("f.txt", b"text\n", "eas-txt"),
        ("f.bin", body_of(EAS), "eas-bin"),
        ("f.jsonl", written("jsonl", record(A)), "jsonl"),
        ("plain-jsonl", written("jsonl", record(A)), "jsonl"),
        ("tf_serving_warmup_requests", written("tfrecord", record(A)), "tfrecord"),
        ("request", body_of(EAS), "eas-bin"),
        ("noise", b"noise", "tfrecord"),
        ("empty", b"", "tfrecord"),
    ):
        (tmp_path / name).write_bytes(data)
        assert read_any(str(tmp_path / name)).form == form, name
    (tmp_path / "described").write_bytes(b"text\n")
    (tmp_path / "described.manifest.json").write_text('{"format": "eas-txt"}')
    assert read_any(str(tmp_path / "described")).form == "eas-txt"
    assert read_any(str(tmp_path / "described"), form="tfrecord").broken != ""


def test_directories(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a directory without \.bin files; name a file"):
        read_any(str(tmp_path))
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "saved_model.pb").touch()
    with pytest.raises(UserError, match=r"7: this model version has no warm-up file \(assets\.extra/"):
        read_any(str(tmp_path / "7"))
    (tmp_path / "1.bin").write_bytes(body_of(EAS))
    assert read_any(str(tmp_path)).entries[0].signature == wire_signature("eas", "", "predict", "", ["x"], ["e"])
    (tmp_path / "manifest.json").write_text('{"model": "rank"}')
    assert read_any(str(tmp_path)).entries[0].signature == EAS
    assert read_any(str(tmp_path / "1.bin")).entries[0].signature == EAS
    version = tmp_path / "7" / "assets.extra"
    version.mkdir(parents=True)
    (version / "tf_serving_warmup_requests").write_bytes(written("tfrecord", record(B)))
    assert read_any(str(tmp_path / "7")).entries[0].signature == B


def test_a_store_and_one_model_of_it(tmp_path: Path) -> None:
    batch = Batch("run1")
    add(batch, A, proven=5)
    add(batch, B, proven=0, unproven=2)
    add(batch, C, stored=False)
    add(batch, EAS)
    filled(tmp_path / "s", batch).close()
    for name in (str(tmp_path / "s"), f"sqlite:{tmp_path / 's'}"):
        contents = read_any(name, model="m")
        assert contents.form == "store"
        assert [(one.signature, one.hits) for one in contents.entries] == [(A, 5), (B, 2), (C, 1)]
    assert [text.rpartition(": ")[2] for text in remarks(contents)] == [
        "was never seen to succeed (unproven), so it is not exported",
        "no request of it is stored (none was kept), so it cannot be exported",
    ]
    assert len(read_any(str(tmp_path / "s")).entries) == 4
    (tmp_path / "s").chmod(0o644)
    with pytest.raises(UserError, match="others may read it"):
        read_any(str(tmp_path / "s"))


def test_stored_requests_find_their_dialect_again() -> None:
    for family, body, path in (
        ("tfserving", predict(["x"]), "/tensorflow.serving.PredictionService/Predict"),
        ("tfserving", predict(["x"]), ""),
        ("eas", eas(), "/api/predict/rank"),
        ("eas", eas(), "/custom"),
        ("eas", eas(), ""),
    ):
        route = stored_route(family, "m", path)
        assert route is not None
        assert route.dialect.read(route, body).signature.inputs == ("x",)
        with pytest.raises(Unreadable):
            route.dialect.read(route, b"\xff")
    assert stored_route("triton", "m") is None


# --- two of them ---


def tfrecord(*bodies: bytes) -> Contents:
    """As written by hand: versions stay."""
    return read_tfrecord(b"".join(frame(log(6, body)) for body in bodies))


def test_the_same_is_the_same_in_any_order() -> None:
    found = compare(tfrecord(body_of(A), body_of(B)), tfrecord(body_of(B), body_of(A)))
    assert not found.differs
    assert found.same == 2


def test_what_only_one_has_is_explained_by_its_neighbour() -> None:
    found = compare(tfrecord(body_of(A), body_of(B)), tfrecord(body_of(A), body_of(C)))
    assert [(one.entry.signature, one.nearest, one.differences) for one in found.only_a] == [
        (B, A.digest, ("fetches also: model_version_id",))
    ]
    assert [(one.entry.signature, one.nearest, one.differences) for one in found.only_b] == [
        (C, A.digest, ("fetches all outputs (empty filter), not only: a",))
    ]
    assert (found.changed, found.same) == ([], 1)
    assert compare(tfrecord(body_of(A)), tfrecord()).only_a[0].differences == ()


def test_one_signature_with_other_requests() -> None:
    wide = predict({"x": (9, (1,))}, outputs=["a"], version=4)
    found = compare(tfrecord(body_of(A)), tfrecord(wide, wide))
    assert [one.differences for one in found.changed] == [
        ("inputs are x:int64[1], not x:float[1]", "2 records, not 1", "names version 4, not 3")
    ]
    assert found.differs


def test_a_body_without_a_model_is_compared_without_it(tmp_path: Path) -> None:
    nameless = read_eas_bin([("1.bin", body_of(EAS))])
    named = read_jsonl(written("jsonl", record(EAS)))
    assert not compare(nameless, named).differs
    assert not compare(named, nameless).differs
    other = read_jsonl(written("jsonl", record(signature(["e"], family="eas", model="other"))))
    assert compare(named, other).only_a[0].differences == ("model is rank, not other",)


def test_a_store_is_held_to_its_signatures_only(tmp_path: Path) -> None:
    batch = Batch("run1")
    add(batch, A, version="1")
    add(batch, A, version="2")
    filled(tmp_path / "s", batch).close()
    assert not compare(read_any(str(tmp_path / "s")), tfrecord(body_of(A))).differs


def test_text_is_compared_by_its_bytes() -> None:
    found = compare(read_eas_txt(b"a\nb\n"), read_eas_txt(b"b\nc\n"))
    assert ([len(found.only_a), len(found.only_b)], found.same) == ([1, 1], 1)
