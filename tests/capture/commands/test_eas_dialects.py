"""Files for every kind of EAS service: written, described, read back, compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capture.commands.export import export as run_export
from capture.dialects.base import Route
from capture.dialects.table import EAS
from capture.errors import UserError
from capture.export.compare import compare
from capture.export.entries import Contents
from capture.export.read import read_any
from capture.signature import Misfit, WireSignature, executor_key
from capture.store.base import Batch, open_store
from replay.services import refuse_other_services
from tests.support.eas_bodies import BODIES, PACK, torch
from tests.support.processes import capture
from tests.support.stores import add, filled

#: A service of each kind, named after it; one more whose clients compress.
PACKED = "packed"


def signature_of(dialect: str, body: bytes, model: str) -> WireSignature:
    return EAS[dialect].read(Route(EAS[dialect], "predict", model, ""), body).signature


@pytest.fixture
def store(tmp_path: Path) -> Path:
    batch = Batch("run1")
    for dialect, body in BODIES.items():
        add(batch, signature_of(dialect, body, dialect), body=body, proven=5)
    one = signature_of("eas-pytorch", torch(1), PACKED)
    key = add(batch, one, body=torch(1), proven=9)
    batch.samples[key].wire_body = PACK["snappy"](torch(1))
    add(batch, signature_of("eas-pytorch", torch(2), PACKED), body=torch(2), proven=1)
    filled(tmp_path / "s", batch).close()
    return tmp_path / "s"


def export(store: Path, form: str, model: str, out: Path, **more: Any) -> dict[str, Any]:
    """Write it; its manifest."""
    run_export(form, model, out, store=str(store), **more)
    beside = out / "manifest.json" if out.is_dir() else out.with_name(out.name + ".manifest.json")
    described: dict[str, Any] = json.loads(beside.read_text())
    return described


def same(a: Contents, b: Contents) -> bool:
    """Whether both have the same signatures."""
    found = compare(a, b)
    return not found.only_a and not found.only_b and found.same + len(found.changed) > 0


@pytest.mark.parametrize("dialect", EAS)
def test_a_file_of_each_kind_reads_back_as_what_it_is(store: Path, tmp_path: Path, dialect: str) -> None:
    described = export(store, "eas-bin", dialect, tmp_path / "out")
    assert (described["dialect"], described["model"]) == (dialect, dialect)
    (path,) = (tmp_path / "out").glob("*.bin")
    assert path.read_bytes() == BODIES[dialect]
    one = signature_of(dialect, BODIES[dialect], dialect)
    for name in (tmp_path / "out", path):
        (entry,) = read_any(str(name)).entries
        assert entry.signature == one
    assert same(read_any(str(path)), read_any(str(store), model=dialect))
    # A file from elsewhere has no manifest: then it has to be said.
    alone = tmp_path / "alone.bin"
    alone.write_bytes(BODIES[dialect])
    (entry,) = read_any(str(alone), dialect=dialect).entries
    assert str(entry.signature) == str(one).replace(f"predict {dialect}/", "predict /")


@pytest.mark.parametrize("dialect", EAS)
def test_json_lines_of_each_kind_read_back(store: Path, tmp_path: Path, dialect: str) -> None:
    described = export(store, "jsonl", dialect, tmp_path / "f.jsonl")
    assert described["dialect"] is None
    assert json.loads((tmp_path / "f.jsonl").read_text())["dialect"] == dialect
    contents = read_any(str(tmp_path / "f.jsonl"))
    assert [entry.signature for entry in contents.entries] == [signature_of(dialect, BODIES[dialect], dialect)]
    assert contents.all_remarks() == []


def test_json_lines_of_each_kind_are_ingested_as_what_they_were(store: Path, tmp_path: Path) -> None:
    for dialect in EAS:
        export(store, "jsonl", dialect, tmp_path / f"{dialect}.jsonl")
    done = capture("ingest", "--store", str(tmp_path / "t"), *(str(tmp_path / f"{dialect}.jsonl") for dialect in EAS))
    assert done.returncode == 0, done.stderr
    there = open_store(str(tmp_path / "t"))
    found = {row.key.owner.model: (row.signature, row.proven, row.unproven) for row in there.signatures()}
    there.close()
    assert found == {name: (signature_of(name, body, name), 5, 0) for name, body in BODIES.items()}


def test_text_is_told_by_its_manifest_or_by_option(store: Path, tmp_path: Path) -> None:
    described = export(store, "eas-txt", "eas-string", tmp_path / "f.txt")
    assert described["dialect"] == "eas-string"
    (entry,) = read_any(str(tmp_path / "f.txt")).entries
    assert entry.signature == signature_of("eas-string", BODIES["eas-string"], "eas-string")
    assert same(read_any(str(tmp_path / "f.txt")), read_any(str(store), model="eas-string"))
    (tmp_path / "f.txt.manifest.json").unlink()
    (entry,) = read_any(str(tmp_path / "f.txt")).entries
    assert entry.signature is None
    (entry,) = read_any(str(tmp_path / "f.txt"), dialect="eas-string").entries
    assert str(entry.signature) == "predict /json (items, user) -> (*)"


def test_what_clients_compressed_is_written_unpacked_or_as_they_sent_it(store: Path, tmp_path: Path) -> None:
    described = export(store, "eas-bin", PACKED, tmp_path / "out")
    assert "clients sent 1 of these 2 requests compressed, the files hold them unpacked" in described["note"]
    assert [path.read_bytes() for path in sorted((tmp_path / "out").glob("*.bin"))] == [torch(1), torch(2)]
    described = export(store, "eas-bin", PACKED, tmp_path / "wire", wire=True)
    assert "the files hold them as they were sent" in described["note"]
    first, second = sorted((tmp_path / "wire").glob("*.bin"))
    assert (first.read_bytes(), second.read_bytes()) == (PACK["snappy"](torch(1)), torch(2))
    contents = read_any(str(tmp_path / "wire"))
    assert f"is compressed; unpacked it has {len(torch(1))} bytes" in {text for _, _, text in contents.all_remarks()}
    assert same(contents, read_any(str(tmp_path / "out")))
    with pytest.raises(UserError, match=r"^--wire: is for eas-bin; a jsonl file holds requests as the server reads"):
        export(store, "jsonl", PACKED, tmp_path / "x", wire=True)


def test_a_body_of_another_kind_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "f.bin").write_bytes(BODIES["eas-onnx"])
    done = capture("inspect", str(tmp_path / "f.bin"))
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        f"capture: error: {tmp_path / 'f.bin'}: record 1 at byte 0 of f.bin: not an EAS TensorFlow PredictRequest"
        " (signature_name); a .bin is the body of one request to a service, read here as eas-tensorflow; if it is for"
        " another kind, say --dialect",
    )
    assert capture("inspect", str(tmp_path / "f.bin"), "--dialect", "eas-onnx").returncode == 0
    done = capture("inspect", str(tmp_path / "f.bin"), "--dialect", "onnx")
    assert (done.returncode, done.stderr) == (
        1,
        f"capture: error: --dialect onnx: no dialect of EAS; one of: {', '.join(EAS)}\n",
    )


def test_a_service_of_two_dialects_is_not_mixed(tmp_path: Path) -> None:
    batch = Batch("run1")
    for dialect in ("eas-tensorflow", "eas-onnx"):
        add(batch, signature_of(dialect, BODIES[dialect], "rank"), body=BODIES[dialect])
    filled(tmp_path / "s", batch).close()
    with pytest.raises(UserError) as told:
        export(tmp_path / "s", "eas-bin", "rank", tmp_path / "o")
    assert str(told.value) == (
        "service rank was captured in several dialects (eas-tensorflow, eas-onnx); say which with --dialect"
    )
    described = export(tmp_path / "s", "eas-bin", "rank", tmp_path / "o", dialect="eas-onnx")
    assert (described["dialect"], described["coverage"]["share"]) == ("eas-onnx", 1.0)
    with pytest.raises(UserError, match=r"^--dialect eas-onnx: eas-txt cannot hold its requests$"):
        export(tmp_path / "s", "eas-txt", "rank", tmp_path / "p", dialect="eas-onnx")


OTHERS = [name for name in EAS if name != "eas-tensorflow"]


@pytest.mark.parametrize("dialect", OTHERS)
def test_what_runs_no_tensorflow_has_no_executor(store: Path, tmp_path: Path, dialect: str) -> None:
    with pytest.raises(Misfit, match=rf"^not a TensorFlow service \({dialect}\): its requests have no executor$"):
        executor_key(signature_of(dialect, BODIES[dialect], dialect), {})
    source = open_store(str(store))
    refuse_other_services(source, "eas-tensorflow")
    refuse_other_services(source, None)
    with pytest.raises(UserError, match=rf"^{dialect}: not a TensorFlow service \(captured as {dialect}\): "):
        refuse_other_services(source, dialect)
    source.close()


def test_verify_and_refresh_say_that_it_is_no_tensorflow(store: Path, tmp_path: Path) -> None:
    said = (
        "capture: error: eas-onnx: not a TensorFlow service (captured as eas-onnx): there is no graph to verify;"
        " `capture export` and `capture inspect` do what can be done for it\n"
    )
    (tmp_path / "base" / "1").mkdir(parents=True)
    (tmp_path / "base" / "1" / "saved_model.pb").touch()
    (tmp_path / "f.bin").write_bytes(BODIES["eas-onnx"])
    base, file = str(tmp_path / "base"), str(tmp_path / "f.bin")
    verify = ("verify", "--saved-model", f"{base}/1", "--traffic", str(store), "--warmup", file, "--model", "eas-onnx")
    refresh = ("refresh", "--saved-model-base", base, "--store", str(store), "--model", "eas-onnx")
    for arguments, code in ((verify, 2), (refresh, 1)):
        done = capture(*arguments)
        assert (done.returncode, done.stderr) == (code, said)
