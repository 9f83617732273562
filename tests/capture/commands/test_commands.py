"""The command line as users run it: a process, its output, its exit code."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from capture.export.tfrecord import prediction_log, read_records
from capture.schema import messages
from capture.schema.wire import length_delimited
from capture.store.base import Batch
from tests.support.stores import add, body_of, filled, held_out, key_of, signature
from tests.support.tf_models import ROOT

pytestmark = pytest.mark.server

A, B, C = signature(["a"]), signature(["a", "model_version_id"]), signature()
EAS = [signature(["e"], family="eas", model="rank"), signature(family="eas", model="rank")]
HOSTILE = signature(["\x1b[31mred\x07\u202e"], model="evil\x1b]0;title\x07")


def capture(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "capture", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def error(*arguments: object) -> str:
    done = capture(*arguments)
    assert done.returncode == 1, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("capture: error: ")
    return lines[0].removeprefix("capture: error: ")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three TF Serving signatures on two versions, two of EAS, one never proven, one hostile."""
    batch = Batch("run1", counters={"requests_observed": 99, "requests_lost": 2})
    add(batch, A, version="1", proven=5)
    add(batch, A, version="2", proven=6)
    add(batch, B, version="2", proven=30)
    add(batch, C, version="1", proven=0, unproven=4)
    for hits, one in zip((2, 9), EAS, strict=True):
        add(batch, one, version="unknown", proven=hits)
    add(batch, HOSTILE, proven=1)
    held_out(batch, key_of(A), "h1", b"held")
    batch.refusals["tfserving", "evil\x1b[m", "refused", "unknown signature"] = 3
    batch.ignored["HTTP GET, other path"] = 4
    path = tmp_path / "s.sqlite"
    filled(path, batch).close()
    return path


# --- ls and show ---


def test_ls_off_a_terminal_is_tab_separated(store: Path) -> None:
    done = capture("ls", "--store", store, "--model", "m")
    assert done.returncode == 0
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert rows[0] == ["SIGNATURE", "MODEL", "HITS", "SAMPLE", "SEEN", "LINE"]
    assert [row[:4] for row in rows[1:]] == [
        [B.digest[:15], "m/2", "30", "proven"],
        [A.digest[:15], "m/2", "6", "proven"],
        [A.digest[:15], "m/1", "5", "proven"],
        [C.digest[:15], "m/1", "4", "unproven"],
    ]
    assert rows[1][5] == "Predict m/serving_default (x) -> (a, model_version_id)"
    assert "4 signatures; 99 requests observed" in done.stderr
    assert "not seen: requests_lost 2" in done.stderr


def test_ls_as_json(store: Path) -> None:
    document = json.loads(capture("ls", "--store", store, "--json").stdout)
    first = document["signatures"][0]
    assert (first["signature"], first["version"], first["hits"], first["sample"]) == (B.digest, "2", 30, "proven")
    assert document["counters"]["requests_observed"] == 99


def test_ls_of_what_was_refused(store: Path) -> None:
    done = capture("ls", "--store", store, "--refused")
    assert done.stdout.splitlines()[1:] == [
        "3\trefused\tevil?[m\tunknown signature",
        "4\tno call\t\tHTTP GET, other path",
    ]
    document = json.loads(capture("ls", "--store", store, "--refused", "--json").stdout)
    assert document["refusals"][0]["count"] == 3
    assert document["ignored"] == [{"what": "HTTP GET, other path", "count": 4}]


def test_show_explains_the_difference(store: Path) -> None:
    for name in (B.digest, B.digest[:10], B.digest.removeprefix("w1-")[:12]):
        done = capture("show", name, "--store", store)
        assert done.returncode == 0
        assert f"nearest    {A.digest[:15]}: fetches also: model_version_id" in done.stdout
        assert "30 proven, 0 unproven" in done.stdout
        assert "curl 10.0.0.0/24" in done.stdout


def model(directory: Path) -> Path:
    entry = messages.SignatureEntry(key="serving_default")
    entry.value.inputs["x"].name = "x:0"
    for name in ("a", "model_version_id"):
        entry.value.outputs[name].name = f"{name}:0"
    info = messages.MetaInfoDef(tags=["serve"]).SerializeToString()
    directory.mkdir(exist_ok=True)
    (directory / "saved_model.pb").write_bytes(
        length_delimited(2, length_delimited(1, info) + length_delimited(5, entry.SerializeToString()))
    )
    return directory


def test_show_against_a_model(store: Path, tmp_path: Path) -> None:
    saved = model(tmp_path / "7")
    done = capture("show", A.digest, "--store", store, "--saved-model", saved)
    assert "  executor   feed (x:0) fetch (a:0)\n" in done.stdout
    done = capture("show", HOSTILE.digest, "--store", store, "--saved-model", saved)
    assert f"does not fit {saved}: no output ?[31mred??" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls"], ["ls", "--refused"], ["show", HOSTILE.digest], ["show", HOSTILE.digest, "--model", HOSTILE.model],
        ["export", "--format", "tfrecord", "--model", HOSTILE.model, "--out", "OUT"],
        ["export", "--format", "tfrecord", "--model", "none", "--out", "OUT"],
        ["export", "--format", "tfrecord", "--model", HOSTILE.model, "--out", "OUT", "--saved-model", "MODEL"],
    ],
)  # fmt: skip
def test_nothing_from_traffic_drives_the_terminal(store: Path, tmp_path: Path, arguments: list[str]) -> None:
    places = {"OUT": str(tmp_path / "out"), "MODEL": str(model(tmp_path / "7"))}
    done = capture(*(places.get(word, word) for word in arguments), "--store", store)
    assert done.stdout + done.stderr
    assert not [char for char in done.stdout + done.stderr if not (char.isprintable() or char in "\n\t")]
    assert "Traceback" not in done.stderr


# --- errors ---


def test_errors_are_one_line(store: Path, tmp_path: Path) -> None:
    assert error("show", "w1-zzz", "--store", store) == ("no signature begins with 'w1-zzz'; `capture ls` lists them")
    assert "signatures begin with 'w1-'" in error("show", "w1-", "--store", store)
    missing = tmp_path / "none"
    for command in (["ls"], ["show", "x"], ["export", "--format", "tfrecord", "--model", "m", "--out", "o"]):
        assert error(*command, "--store", missing).startswith(f"store {missing}: no such file")
    assert error("export", "--format", "nope", "--model", "m", "--out", tmp_path / "o", "--store", store) == (
        "--format nope: no such format; one of: tfrecord, eas-bin, eas-txt, jsonl"
    )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--format", "tfrecord", "--model", "rank"],
            "nothing captured for model rank; tfrecord could be written for: ",
        ),
        (
            ["--format", "eas-bin", "--model", "none"],
            "nothing captured for model none; eas-bin could be written for: rank",
        ),
        (["--format", "tfrecord", "--model", "m", "--model-version", "9"], "nothing captured for model m version 9;"),
        (["--format", "tfrecord", "--model", "m", "--saved-model", "/none"], "/none: no such directory;"),
    ],
)
def test_nothing_to_export(store: Path, tmp_path: Path, arguments: list[str], text: str) -> None:
    assert error("export", *arguments, "--out", tmp_path / "o", "--store", store).startswith(text)
    assert not (tmp_path / "o").exists()


def test_wrong_places_to_write(store: Path, tmp_path: Path) -> None:
    options = ["--store", store, "--format"]
    assert error("export", *options, "tfrecord", "--model", "m", "--out", tmp_path).endswith(
        "is a directory; --format tfrecord writes one file, name it"
    )
    (tmp_path / "file").touch()
    assert error("export", *options, "eas-bin", "--model", "rank", "--out", tmp_path / "file").endswith(
        "is a file; --format eas-bin writes a directory, name one"
    )
    assert error("export", *options, "tfrecord", "--model", "m", "--out", store).endswith(
        "is the store itself; name another file"
    )
    assert "is no regular file" in error("export", *options, "tfrecord", "--model", "m", "--out", "/dev/null")
    assert "No such file or directory; nothing was replaced" in error(
        "export", *options, "tfrecord", "--model", "m", "--out", tmp_path / "none" / "f"
    )


def test_a_store_that_others_may_read_is_refused_by_what_reads_it(store: Path, tmp_path: Path) -> None:
    store.chmod(0o644)
    export = ["export", "--format", "tfrecord", "--model", "m", "--out", tmp_path / "o"]
    refresh = ["refresh", "--saved-model-base", tmp_path]
    for command in (["ls"], ["show", A.digest], export, refresh):
        told = error(*command, "--store", store)
        assert told.startswith(f"store {store}: others may read it (mode 0644); chmod 600 {store}, or allow it with ")
    assert not (tmp_path / "o").exists()
    for command in (["ls"], ["show", A.digest], export):
        assert capture(*command, "--store", store, "--allow-shared-store").returncode == 0
    assert "no version directory in it" in error(*refresh, "--store", store, "--allow-shared-store")


def test_a_wrong_option_is_exit_2() -> None:
    assert capture("ls", "--nope").returncode == 2
    assert capture("nope").returncode == 2


# --- export ---


def test_export_tfrecord(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "tf_serving_warmup_requests"
    done = capture("export", "--store", store, "--format", "tfrecord", "--model", "m", "--out", out)
    assert done.returncode == 0, done.stderr
    assert list(read_records(out.read_bytes())) == [prediction_log(body_of(B)), prediction_log(body_of(A))]
    described = json.loads((tmp_path / f"{out.name}.manifest.json").read_bytes())
    assert [(record["signature"], record["hits"], record["from_version"]) for record in described["records"]] == [
        (B.digest, 30, "2"),
        (A.digest, 11, described["records"][1]["from_version"]),
    ]
    assert described["left_out"] == [
        {"signature": C.digest, "line": str(C), "hits": 4, "reason": "never seen to succeed (unproven)"}
    ]
    assert described["coverage"]["calls_covered"] == 41
    assert described["coverage"]["calls_seen"] == 45
    assert described["losses"]["requests_lost"] == 2
    assert described["proof"] == {"level": "none"}
    assert described["files"] == [
        {"name": out.name, "bytes": out.stat().st_size, "sha256": hashlib.sha256(out.read_bytes()).hexdigest()}
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("tf_*")} == {0o600}
    assert "2 records in" in done.stderr
    assert f"left out {C.digest[:15]} (4 hits): never seen to succeed" in done.stderr


def test_export_fitted_to_a_model(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    done = capture(
        "export", "--store", store, "--format", "tfrecord", "--model", "m", "--out", out, "--saved-model",
        model(tmp_path / "7"), "--limit", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    described = json.loads((tmp_path / "f.manifest.json").read_bytes())
    (record,) = described["records"]
    assert record["executor_key"] == {"feeds": ["x:0"], "fetches": ["a:0", "model_version_id:0"]}
    assert described["fitted_to_saved_model"] is True
    assert "cut by the limit of 1" in {one["reason"] for one in described["left_out"]}


def test_export_eas_bin_is_verbatim_and_clears_up_behind_itself(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["export", "--store", store, "--format", "eas-bin", "--model", "rank", "--out", out]
    assert capture(*options).returncode == 0
    names = [f"001-{EAS[1].digest[:15]}.bin", f"002-{EAS[0].digest[:15]}.bin"]
    assert sorted(os.listdir(out)) == [*names, "manifest.json"]
    assert [(out / name).read_bytes() for name in names] == [body_of(EAS[1]), body_of(EAS[0])]
    assert "EAS documents one file per service" in json.loads((out / "manifest.json").read_bytes())["note"]
    (out / "mine.bin").write_bytes(b"not warmtap's")
    described = json.loads((out / "manifest.json").read_bytes())
    # EAS loads one file: the others cover nothing until they are replayed.
    assert described["coverage"]["calls_covered"] < described["coverage"]["calls_in_files"]
    assert described["coverage"]["calls_in_files"] == described["coverage"]["calls_seen"]
    assert capture(*options, "--limit", 1).returncode == 0
    assert sorted(os.listdir(out)) == [names[0], "manifest.json", "mine.bin"]


def test_a_foreign_manifest_stops_the_export(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "weights.bin").touch()
    for text in ('{"files": "../../etc"}', '{"files": [{"name": "weights.bin", "sha256": ""}]}', "no JSON"):
        (out / "manifest.json").write_text(text)
        told = error("export", "--store", store, "--format", "eas-bin", "--model", "rank", "--out", out)
        assert told.endswith("is no eas-bin manifest of warmtap; choose another place or remove it")
        assert sorted(os.listdir(out)) == ["manifest.json", "weights.bin"]


def test_export_replaces_its_own_files_only(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "saved_model.pb"
    options = ["export", "--store", store, "--format", "tfrecord", "--model", "m", "--out", out]
    out.write_bytes(b"the model")
    assert "exists, and is no unchanged export of warmtap" in error(*options)
    assert out.read_bytes() == b"the model"
    assert capture(*options, "--force").returncode == 0
    assert (tmp_path / "saved_model.pb.prev").read_bytes() == b"the model"
    # Its own, unchanged: no questions. Changed by somebody since: as any other file.
    assert capture(*options, "--limit", 1).returncode == 0
    out.write_bytes(out.read_bytes() + b"edited")
    assert "exists, and is no unchanged export of warmtap" in error(*options)


def test_an_export_beside_a_model_is_as_readable_as_the_model(store: Path, tmp_path: Path) -> None:
    extra = tmp_path / "7" / "assets.extra"
    extra.mkdir(parents=True)
    (tmp_path / "7" / "saved_model.pb").touch(0o644)
    out = extra / "tf_serving_warmup_requests"
    assert capture("export", "--store", store, "--format", "tfrecord", "--model", "m", "--out", out).returncode == 0
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE((tmp_path / "7" / "saved_model.pb").stat().st_mode)


def test_a_manifest_cannot_name_files_elsewhere(store: Path, tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.touch()
    out.mkdir()
    names = ["../victim", str(victim), "..", ".", "", "manifest.json", 7]
    listed = [{"name": str(name), "sha256": hashlib.sha256(b"").hexdigest()} for name in names]
    manifest = {"manifest_version": 1, "warmtap": "0.1.0", "format": "eas-bin", "files": listed}
    (out / "manifest.json").write_text(json.dumps(manifest))
    done = capture("export", "--store", store, "--format", "eas-bin", "--model", "rank", "--out", out)
    assert done.returncode == 0, done.stderr
    assert victim.exists()
    assert (out / "manifest.json").exists()


def test_1001_signatures(tmp_path: Path) -> None:
    batch = Batch("run1")
    for number in range(1001):
        add(batch, signature([f"o{number:04}"]), proven=2000 - number)
    path, out = tmp_path / "s", tmp_path / "f"
    filled(path, batch).close()
    options = ["export", "--store", path, "--format", "tfrecord", "--model", "m", "--out", out]
    assert error(*options).startswith("1001 signatures, and tfrecord holds at most 1000: one more fails the load")
    assert not out.exists()
    assert not list(tmp_path.glob("*.json"))
    assert capture(*options, "--limit", 1000).returncode == 0
    assert len(list(read_records(out.read_bytes()))) == 1000
    (cut,) = json.loads((tmp_path / "f.manifest.json").read_bytes())["left_out"]
    assert (cut["line"], cut["reason"]) == ("Predict m/serving_default (x) -> (o1000)", "cut by the limit of 1000")


# --- what it costs to ask for help ---


@pytest.mark.parametrize("arguments", [["--help"], ["ls", "--help"], ["export", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom capture.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as done:\n    assert not done.code\n"
        "heavy = {'tensorflow', 'aiohttp', 'uvloop', 'grpc', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: capture" in done.stdout
