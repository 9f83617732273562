"""The refresh job on versions in object stores: what it writes where, what it keeps on the local disk, and on real
TensorFlow."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from pathlib import Path

import pytest

from capture.errors import UserError
from capture.export.manifest import MANIFEST_SUFFIX
from capture.export.tfrecord import WARMUP_PATH, read_records
from capture.store.base import Batch, Store
from replay.publishing import scratch
from replay.publishing.place import open_place
from replay.publishing.target import Target, open_target
from replay.refreshing.job import Job, Outcome, What, run_job
from replay.refreshing.local import LocalPlace
from tests.replay.test_signature_matrix import tfserving
from tests.replay.test_verify import fill
from tests.support.processes import capture
from tests.support.refreshing import Script, body, saved_model
from tests.support.stores import NOW, add, filled, signature
from tests.support.tf_host import HostProcess

pytestmark = pytest.mark.server

MANIFEST = WARMUP_PATH + MANIFEST_SUFFIX


def upload(target: Target, version: Path, name: str) -> None:
    """saved_model.pb last, as a trainer does."""
    files = sorted(
        (path for path in version.rglob("*") if path.is_file()), key=lambda path: path.name == "saved_model.pb"
    )
    for path in files:
        target.put(f"{name}/{path.relative_to(version)}", path)


def store_of(path: Path, *outputs: str) -> Store:
    batch = Batch("run")
    for name in outputs:
        add(batch, signature((name,)), version="8", body=body("good", name))
    return filled(path, batch)


@pytest.fixture(autouse=True)
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of temporary files."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def run(base: str, staging: str, source: Store, **named: bool) -> list[Outcome]:
    job = Job("m", open_place(base, staging), staging=bool(staging), **named)
    return run_job(job, source, trial=Script(), now=lambda: NOW + 60)


def test_a_staged_version_goes_out_with_its_file(s3: Target, tmp_path: Path, disk: Path) -> None:
    served, staged = open_target(f"{s3.url}/m"), open_target(f"{s3.url}/staged")
    upload(staged, saved_model(tmp_path / "9"), "9")
    staged.write("10/variables/variables.index", b"not yet complete")
    done = run(served.url, staged.url, store_of(tmp_path / "store", "a", "c"))
    assert [(one.version, one.what, one.records) for one in done] == [
        ("9", What.PROMOTED, 2),
        ("10", What.PASSED, 0),
    ]
    warmup, manifest = served.read(f"9/{WARMUP_PATH}"), served.read(f"9/{MANIFEST}")
    assert warmup is not None
    assert manifest is not None
    assert len(list(read_records(warmup))) == 2
    assert json.loads(manifest)["model_version"] == "9"
    assert served.find("9/saved_model.pb") is not None
    assert [one.path for one in staged.files("")] == ["10/variables/variables.index"]
    assert os.listdir(disk) == []


def test_a_served_version_gets_its_file_and_keeps_what_was_there(s3: Target, tmp_path: Path) -> None:
    served = open_target(f"{s3.url}/m")
    upload(served, saved_model(tmp_path / "9"), "9")
    store = store_of(tmp_path / "store", "a")
    assert [one.what for one in run(served.url, "", store)] == [What.PUBLISHED]
    first = served.read(f"9/{WARMUP_PATH}"), served.read(f"9/{MANIFEST}")
    assert [one.what for one in run(served.url, "", store)] == [What.PASSED]
    assert [one.what for one in run(served.url, "", store, in_place=True)] == [What.UNCHANGED]
    more = store_of(tmp_path / "more", "a", "c")
    assert [(one.what, one.records) for one in run(served.url, "", more, in_place=True)] == [(What.PUBLISHED, 2)]
    assert (served.read(f"9/{WARMUP_PATH}.prev"), served.read(f"9/{MANIFEST}.prev")) == first


def test_local_copies_are_few_and_made_anew_only_when_the_model_changed(
    s3: Target, tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("9", "10", "11", "12"):
        s3.write(f"{name}/saved_model.pb", name.encode())
    fetched: list[str] = []
    get = type(s3).get

    def noted(self: Target, path: str, destination: Path) -> None:
        fetched.append(path.split("/")[-2])
        get(self, path, destination)

    monkeypatch.setattr(type(s3), "get", noted)
    place = open_place(s3.url)
    nine, ten, eleven, twelve = place.served()
    for version in (nine, nine, ten, eleven, nine):
        with place.model(version) as directory:
            assert (directory / "saved_model.pb").read_bytes() == version.name.encode()
        # A warm-up file is no part of the model.
        place.write(version, b"", b"{}")
    assert fetched == ["9", "10", "11"]
    s3.write("11/saved_model.pb", b"another")
    for version in (eleven, twelve, nine, ten):
        with place.model(version) as directory:
            assert not (directory / "assets.extra").exists()
    # The one that was not asked for longest went.
    assert fetched == ["9", "10", "11", "11", "12", "10"]
    assert len(os.listdir(disk)) == scratch.KEPT


def test_a_disk_without_room_is_named(s3: Target, tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "RESERVE_BYTES", 1 << 60)
    upload(s3, saved_model(tmp_path / "9"), "9")
    done = run(s3.url, "", store_of(tmp_path / "store", "a"))
    assert [one.what for one in done] == [What.FAILED]
    assert done[0].text.startswith(f"{disk}: ")
    assert done[0].text.endswith("set TMPDIR to a directory on a larger disk")
    assert s3.find(f"9/{WARMUP_PATH}") is None


def test_what_a_killed_run_left_on_the_disk_is_removed_and_what_a_running_one_needs_is_not(disk: Path) -> None:
    for name in ("warmtap-version-dead", "warmtap-version-alive", "other"):
        (disk / name).mkdir()
        (disk / name / "lock").touch()
    with (disk / "warmtap-version-alive" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        scratch.remove_left_behind()
    assert sorted(os.listdir(disk)) == ["other", "warmtap-version-alive"]


def test_file_urls_are_local_directories(tmp_path: Path) -> None:
    place = open_place(f"file://{tmp_path}/m", str(tmp_path / "staged"))
    assert isinstance(place, LocalPlace)
    assert place.name == str(tmp_path / "m")


def test_one_that_is_no_bucket_fails_the_model(s3: Target, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="s3://no-such-bucket: no bucket no-such-bucket; create it"):
        run("s3://no-such-bucket/m", "s3://no-such-bucket/staged", store_of(tmp_path / "store", "a"))


def test_on_real_tensorflow_by_the_command(edge: Path, s3: Target, tmp_path: Path) -> None:
    runs = [tfserving(["sum"]), tfserving([], signature="with_default")]
    store = fill(tmp_path / "captured", "tfserving", [*runs, tfserving(["gone"])], [])
    staged = open_target(f"{s3.url}/staged")
    upload(staged, edge, "2")
    arguments = ["refresh", "--saved-model-base", f"{s3.url}/edge", "--staging", staged.url, "--store", str(store)]
    done = capture(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "--state: say a local directory" in done.stderr
    done = capture(*arguments, "--state", str(tmp_path / "state"))
    assert done.returncode == 0, done.stderr
    assert "version 2: promoted: 2 records, each run on it with TensorFlow" in done.stdout
    assert "does not fit: no output gone" in done.stdout
    version = tmp_path / "edge" / "2"
    for one in open_target(f"{s3.url}/edge").files("2"):
        path = version.parent / one.path
        path.parent.mkdir(parents=True, exist_ok=True)
        open_target(f"{s3.url}/edge").get(one.path, path)
    with HostProcess(version, "--model-name=edge") as host:
        assert host.builds == len(runs)
