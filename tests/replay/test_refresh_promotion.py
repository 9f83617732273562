"""Staged versions: when they are let out, and what a model server that polls the base sees of it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from capture.errors import UserError
from capture.export.manifest import MANIFEST_SUFFIX
from capture.export.tfrecord import WARMUP_PATH, frame, prediction_log, read_records
from capture.store.base import Batch, Store
from replay.refreshing.history import History
from replay.refreshing.job import Job, PromoteCold, What, run_job
from replay.refreshing.local import LocalPlace
from replay.refreshing.place import Version
from replay.trial import Request, Trial
from tests.support.refreshing import Script, body, job, saved_model
from tests.support.stores import add, filled, signature

#: Promotions that a poller looks at.
MANY = 2000


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    return tmp_path / "m"


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    (tmp_path / "staged").mkdir()
    return tmp_path / "staged"


@pytest.fixture
def fill(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    opened: list[Store] = []

    def filling(*outputs: str, model: str = "m") -> Store:
        batch = Batch("run")
        for name in outputs:
            add(batch, signature((name,), model=model), body=body("good", name))
        opened.append(filled(tmp_path / "store", batch))
        return opened[-1]

    yield filling
    for store in opened:
        store.close()


def passed(todo: Job, store: Store) -> list[tuple[str, What, str]]:
    return [(one.version, one.what, one.text) for one in run_job(todo, store, trial=Script())]


def records(version: Path) -> int:
    return len(list(read_records((version / WARMUP_PATH).read_bytes())))


def test_a_staged_version_goes_out_with_its_file(base: Path, staging: Path, fill: Callable[..., Store]) -> None:
    saved_model(staging / "7")
    todo = job(base, staging=staging, history=True)
    said = passed(todo, fill("a", "c"))
    assert said == [("7", What.PROMOTED, "2 records, each run on it with TensorFlow 2.21 (level executor)")]
    assert records(base / "7") == 2
    assert os.listdir(staging) == []
    assert [one.event for one in History(base).events()] == ["publishing", "published", "promoted"]


def test_one_that_is_not_complete_waits(base: Path, staging: Path, fill: Callable[..., Store]) -> None:
    (staging / "7").mkdir()
    saved_model(staging / "8")
    (staging / "notes").mkdir()
    (staging / "9").touch()
    todo = job(base, staging=staging, complete_when="_DONE")
    store = fill("a")
    assert passed(todo, store) == [
        ("7", What.PASSED, "staged, no _DONE yet"),
        ("8", What.PASSED, "staged, no _DONE yet"),
    ]
    for name in ("7", "8"):
        (staging / name / "_DONE").touch()
    assert [one[:2] for one in passed(todo, store)] == [("7", What.PASSED), ("8", What.PROMOTED)]
    assert passed(todo, store)[0] == ("7", What.PASSED, "staged, no saved_model.pb yet")


@pytest.mark.parametrize("gone", [False, True])
def test_one_that_changes_while_it_is_run_is_not_let_out(
    base: Path, staging: Path, fill: Callable[..., Store], gone: bool
) -> None:
    """As tf.saved_model.save does, which writes one more file; what ran was not what would be served."""
    saved_model(staging / "7")
    store, script = fill("a"), Script()

    def trial(directory: Path, family: str, requests: list[Request]) -> Trial:
        if gone:
            shutil.rmtree(staging / "7")
        else:
            (staging / "7" / "fingerprint.pb").write_bytes(b"late")
        return script(directory, family, requests)

    todo = job(base, staging=staging)
    (outcome,) = run_job(todo, store, trial=trial)
    assert (outcome.version, outcome.what) == ("7", What.FAILED)
    assert outcome.text.startswith("changed while it was worked on, and nothing was published; ")
    assert os.listdir(base) == []
    if not gone:
        assert not (staging / "7" / WARMUP_PATH).exists()
        assert [one[:2] for one in passed(todo, store)] == [("7", What.PROMOTED)]


def test_a_number_that_is_served_already_stays_staged(base: Path, staging: Path, fill: Callable[..., Store]) -> None:
    saved_model(base / "7")
    saved_model(staging / "7")
    said = passed(job(base, staging=staging), fill("a"))
    assert said[1] == ("7", What.FAILED, "is served already; stage it under another number, or remove the staged one")
    assert (staging / "7" / "saved_model.pb").exists()
    # And where it appeared only just now.
    with pytest.raises(UserError, match=r"m/7: is there already; stage it under another number"):
        LocalPlace(base, staging).promote(Version("7", True))


@pytest.mark.parametrize(
    ("cold", "served", "what"),
    [
        ("first", False, What.PROMOTED),
        ("first", True, What.HELD),
        ("always", True, What.PROMOTED),
        ("never", False, What.HELD),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_a_version_on_which_nothing_runs(
    base: Path,
    staging: Path,
    fill: Callable[..., Store],
    cold: PromoteCold,
    served: bool,
    what: What,
    known: bool,
) -> None:
    if served:
        (saved_model(base / "6") / "assets.extra").mkdir()
        (base / "6" / WARMUP_PATH).touch()
    saved_model(staging / "7")
    store = fill("gone", model="m" if known else "other")
    said = passed(job(base, staging=staging, promote_cold=cold), store)[-1]
    assert said[:2] == ("7", what)
    why = "nothing captured for model m runs on it"
    if not known:
        why = "nothing captured of model m; the store has of TF Serving: other"
    assert why in said[2]
    assert (base / "7").exists() == (what is What.PROMOTED)
    assert not list((base / "7").rglob("tf_serving_warmup_requests*"))


def test_only_the_first_version_goes_out_cold(base: Path, staging: Path, fill: Callable[..., Store]) -> None:
    for name in ("7", "8"):
        saved_model(staging / name)
    todo, store = job(base, staging=staging), fill("gone")
    assert [one[1] for one in passed(todo, store)] == [What.PROMOTED, What.HELD]
    assert passed(todo, store)[1][1] is What.HELD
    # And the next one where the first was taken back.
    (base / "7").rename(base.parent / "away")
    assert [one[:2] for one in passed(todo, store)] == [("8", What.PROMOTED)]


def test_a_trainers_own_file_of_which_nothing_runs(base: Path, staging: Path, fill: Callable[..., Store]) -> None:
    """It would stop the server from loading the version."""
    version = saved_model(staging / "7")
    (version / WARMUP_PATH).parent.mkdir()
    theirs = frame(prediction_log(body("bad", "a")))
    (version / WARMUP_PATH).write_bytes(theirs)
    store = fill(model="other")
    assert passed(job(base, staging=staging, promote_cold="never"), store)[0][1] is What.HELD
    assert (version / WARMUP_PATH).read_bytes() == theirs
    assert passed(job(base, staging=staging), store)[0][1] is What.PROMOTED
    assert (base / "7" / WARMUP_PATH).read_bytes() == b""
    assert (base / "7" / f"{WARMUP_PATH}.prev").read_bytes() == theirs


def test_a_link_to_a_version_is_not_moved(
    base: Path, staging: Path, tmp_path: Path, fill: Callable[..., Store]
) -> None:
    saved_model(tmp_path / "elsewhere")
    (staging / "7").symlink_to("../elsewhere")
    said = passed(job(base, staging=staging), fill("a"))
    assert [one[:2] for one in said] == [("7", What.FAILED)]
    assert "staged/7: is a symbolic link; stage the directory itself" in said[0][2]
    assert not (tmp_path / "elsewhere" / "assets.extra").exists()


def test_a_version_that_fails_stays_staged(base: Path, staging: Path, fill: Callable[..., Store]) -> None:
    (staging / "7").mkdir()
    (staging / "7" / "saved_model.pb").write_bytes(b"\xff" * 100)
    saved_model(staging / "8")
    said = passed(job(base, staging=staging), fill("a"))
    assert [one[:2] for one in said] == [("7", What.FAILED), ("8", What.PROMOTED)]
    assert not (base / "7").exists()


def test_a_trainers_own_file_goes_out_with_it(base: Path, staging: Path, fill: Callable[..., Store]) -> None:
    saved_model(staging / "7")
    store = fill("a")
    run_job(job(base, staging=staging), store, trial=Script())
    theirs = (base / "7" / WARMUP_PATH).read_bytes()
    version = saved_model(staging / "8")
    (version / WARMUP_PATH).parent.mkdir()
    (version / WARMUP_PATH).write_bytes(theirs)
    assert [one[1] for one in passed(job(base, staging=staging), store)] == [What.PASSED, What.PROMOTED]
    assert (base / "8" / WARMUP_PATH).read_bytes() == theirs


def test_several_versions_at_once_and_a_canary(base: Path, staging: Path, tmp_path: Path) -> None:
    """5 and 6 are served, each to clients of its own; 7 was called as a canary before it is let out here. What each was
    asked for goes into every file, the version's own requests first."""
    batch = Batch("run")
    for version, outputs in (("5", "ab"), ("6", "c"), ("7", "a")):
        for name in outputs:
            add(batch, signature((name,)), version=version, body=body(f"of{version}", name))
    store = filled(tmp_path / "store", batch)
    for version in ("5", "6"):
        saved_model(base / version, {name: f"{name}:0" for name in "abc"})
    saved_model(staging / "7", {name: f"{name}:0" for name in "abc"})
    said = passed(job(base, staging=staging), store)
    assert [one[:2] for one in said] == [("5", What.PUBLISHED), ("6", What.PUBLISHED), ("7", What.PROMOTED)]

    def origins(version: str) -> list[bytes]:
        data = (base / version / WARMUP_PATH).read_bytes()
        return sorted(record[place : place + 3] for record in read_records(data) if (place := record.find(b"of")) > 0)

    assert origins("5") == [b"of5", b"of5", b"of6"]
    assert origins("6") == [b"of5", b"of5", b"of6"]
    assert origins("7") == [b"of5", b"of6", b"of7"]
    # The old one goes; what it was asked for is carried on.
    shutil.rmtree(base / "5")
    saved_model(staging / "8", {name: f"{name}:0" for name in "abc"})
    assert passed(job(base, staging=staging), store)[-1][:2] == ("8", What.PROMOTED)
    assert len(origins("8")) == 3
    store.close()


def test_wrong_places_are_one_line(base: Path, tmp_path: Path, fill: Callable[..., Store]) -> None:
    store = fill("a")
    with pytest.raises(UserError, match=r"none: no such directory; create it"):
        run_job(job(base, staging=tmp_path / "none"), store, trial=Script())
    with pytest.raises(UserError, match=r"/dev/shm: is not on the file system of "):
        run_job(job(base, staging=Path("/dev/shm")), store, trial=Script())


def poll(base: str, wanted: int, out: Connection) -> None:
    """TF Serving's rule (sources/storage_path/file_system_storage_path_source.cc: a child whose name is a number is a
    version): load it as soon as its saved_model.pb is there. Says which versions it saw without a file."""
    seen, cold = set[str](), []
    out.send("polling")
    while len(seen) < wanted:
        for name in os.listdir(base):
            if name.isdigit() and name not in seen and os.path.exists(f"{base}/{name}/saved_model.pb"):
                seen.add(name)
                file = f"{base}/{name}/{WARMUP_PATH}"
                if not (os.path.exists(file) and os.path.exists(file + MANIFEST_SUFFIX)):
                    cold.append(name)
    out.send(cold)


@pytest.mark.server
def test_a_poller_never_sees_a_version_without_its_file(
    base: Path, staging: Path, fill: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill("a")
    for number in range(MANY):
        saved_model(staging / str(number))
    # Durability is another test's; here it is the order that counts.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    mine, theirs = multiprocessing.Pipe()
    poller = multiprocessing.get_context("fork").Process(target=poll, args=(str(base), MANY, theirs))
    poller.start()
    try:
        assert mine.recv() == "polling"
        done = run_job(job(base, staging=staging), store, trial=Script())
        assert {one.what for one in done} == {What.PROMOTED}
        assert len(done) == MANY
        assert mine.recv() == []
    finally:
        poller.kill()
        poller.join()
