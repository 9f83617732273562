"""refresh with a trial by script: which requests it tries, what it says of those that fail, and what a kill leaves."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capture.errors import UserError
from capture.export.base import ExportError
from capture.export.manifest import MANIFEST_SUFFIX
from capture.export.tfrecord import MAX_RECORDS, WARMUP_PATH, read_records, strip_version
from capture.schema import messages
from capture.store.base import Batch, Store
from replay.refreshing import contents, union
from replay.refreshing.history import History
from replay.refreshing.job import What, run_job
from replay.tf_protos import TensorFlowMissing
from replay.trial import Trial, TrialError
from tests.support.refreshing import Script, body, job, refreshed, saved_model
from tests.support.stores import add, filled, signature


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return saved_model(tmp_path / "m" / "9")


@pytest.fixture
def fill(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    opened: list[Store] = []

    def filling(*samples: tuple[str, str, int, bytes]) -> Store:
        """(outputs, version, proven calls or 0 for one unproven, body)"""
        batch = Batch("run")
        for outputs, number, proven, request in samples:
            one = signature(tuple(outputs))
            add(batch, one, version=number, proven=proven, unproven=0 if proven else 50, body=request)
        opened.append(filled(tmp_path / "store", batch))
        return opened[-1]

    yield filling
    for store in opened:
        store.close()


def requests(version: Path) -> list[bytes]:
    logs = map(messages.PredictionLog.FromString, read_records((version / WARMUP_PATH).read_bytes()))
    return [messages.PredictLog.FromString(log.predict_log).request for log in logs]


def manifest(version: Path) -> dict[str, object]:
    path = version / (WARMUP_PATH + MANIFEST_SUFFIX)
    found: dict[str, object] = json.loads(path.read_bytes())
    return found


def test_a_request_that_fails_is_replaced_by_the_next(version: Path, fill: Callable[..., Store]) -> None:
    good = body("good", "b")
    store = fill(("a", "1", 9, body("bad1", "a")), ("a", "2", 8, body("bad2", "a")), ("b", "1", 1, good))
    script = Script()
    done = refreshed(store, version, script)
    assert (done.what, done.records) == (What.PUBLISHED, 1)
    assert [len(one) for one in script.rounds] == [1, 1, 1]
    assert requests(version) == [strip_version(good)]
    said = "does not run on version 9: INVALID_ARGUMENT: bad; another request of the same executor is in the file"
    assert [(one.key.owner.version, one.reason) for one in done.left_out] == [("1", said), ("2", said)]
    described = manifest(version)
    assert described["coverage"]["calls_covered"] == 18  # type: ignore[index]
    assert described["records"][0]["also_covers"] == [signature(("a",)).digest]  # type: ignore[index]


def test_only_what_failed_is_tried_again(version: Path, fill: Callable[..., Store]) -> None:
    store = fill(("a", "1", 1, body("bad", "a")), ("b", "1", 0, body("good", "b")), ("c", "1", 1, body("fine", "c")))
    script = Script()
    done = refreshed(store, version, script)
    # The most used executor is first in the file, whenever it ran.
    assert requests(version) == [strip_version(body("good", "b")), strip_version(body("fine", "c"))]
    assert script.rounds == [[body("bad", "a"), body("fine", "c")], [body("good", "b")]]
    assert done.records == 2


def test_when_all_fail_each_is_named(version: Path, fill: Callable[..., Store]) -> None:
    store = fill(("a", "1", 1, body("bad", "a")), ("a", "2", 1, body("bad2", "a")), ("b", "1", 0, body("bad3", "b")))
    done = refreshed(store, version)
    assert (done.what, done.records) == (What.NOTHING, 0)
    assert sorted(one.key.digest for one in done.left_out) == sorted([signature((name,)).digest for name in "aab"])
    assert {one.reason for one in done.left_out} == {"does not run on version 9: INVALID_ARGUMENT: bad"}
    assert not (version / "assets.extra").exists()


def test_a_request_that_was_evicted_meanwhile(
    version: Path, fill: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(("a", "1", 2, body("good", "a")), ("a", "2", 1, body("gone", "a")))
    true = store.sample
    monkeypatch.setattr(store, "sample", lambda key: None if key.owner.version == "1" else true(key))
    monkeypatch.setattr(union, "select", reversed_candidates(union.select))
    done = refreshed(store, version)
    assert done.records == 1
    assert [one.reason for one in done.left_out] == [
        "its request was evicted just now; another request of the same executor is in the file"
    ]


def reversed_candidates(select: Callable[..., union.Selection]) -> Callable[..., union.Selection]:
    """``select`` with version 1's request first, whatever the order of equals."""

    def changed(*arguments: object, **named: object) -> union.Selection:
        found = select(*arguments, **named)
        for record in found.records:
            record.candidates.sort(key=lambda one: one.key.owner.version)
        return found

    return changed


def test_what_the_bound_of_a_file_cuts_is_named_in_full(
    version: Path, fill: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_RECORDS == 1000
    monkeypatch.setattr(contents, "MAX_RECORDS", 1)
    store = fill(("a", "1", 1, body("x", "a")), ("b", "1", 1, body("y", "b")), ("c", "1", 5, body("z", "c")))
    done = refreshed(store, version)
    assert done.records == 1
    assert sorted(one.key.digest for one in done.left_out) == sorted([signature((name,)).digest for name in "ab"])


def test_no_requests_still_load_the_model(version: Path, fill: Callable[..., Store]) -> None:
    script = Script()
    done = refreshed(fill(("w", "1", 1, body("x", "w"))), version, script)
    assert script.rounds == [[]]
    assert [one.reason for one in done.left_out] == ["does not fit: no output w"]


def test_names_that_are_no_versions(version: Path, fill: Callable[..., Store]) -> None:
    for name in ("²", "٣", "9a", "-1"):
        saved_model(version.parent / name)
    (version.parent / "10").touch()
    done = run_job(job(version.parent), fill(("a", "1", 1, body("x", "a"))), trial=Script())
    assert [one.version for one in done] == ["9"]


def test_one_version_that_cannot_be_read_fails_alone(
    version: Path, fill: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = version.parent / "8"
    closed.mkdir()
    saved_model(version.parent / "11")
    # As root no mode bit stops anyone: the system call is made to refuse.
    true = Path.stat

    def refuse(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if closed in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return true(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", refuse)
    done = run_job(job(version.parent), fill(("a", "1", 1, body("x", "a"))), trial=Script())
    assert [(one.version, one.what) for one in done] == [
        ("8", What.FAILED),
        ("9", What.PUBLISHED),
        ("11", What.PUBLISHED),
    ]
    assert done[0].text == f"{closed}/saved_model.pb: Permission denied; no warm-up file was written"


def test_a_base_that_cannot_be_read(version: Path, fill: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(UserError, match=r"/m: Permission denied$"):
        run_job(job(version.parent), fill(("a", "1", 1, body("x", "a"))), trial=Script())


def test_a_model_that_the_store_does_not_know(version: Path, fill: Callable[..., Store]) -> None:
    store = fill(("a", "1", 1, body("x", "a")))
    with pytest.raises(UserError) as caught:
        run_job(job(version.parent, "other"), store, trial=Script())
    assert str(caught.value) == "nothing captured of model other; the store has of TF Serving: m; say --model"
    assert not (version / "assets.extra").exists()


@pytest.mark.parametrize("error", [TrialError("crashed"), ExportError("bad"), OSError(28, "No space left on device")])
def test_an_error_is_one_versions_own(version: Path, fill: Callable[..., Store], error: Exception) -> None:
    def trial(*_: object) -> Trial:
        raise error

    done = run_job(job(version.parent), fill(("a", "1", 1, body("x", "a"))), trial=trial)
    assert [one.what for one in done] == [What.FAILED]


def test_a_model_that_does_not_load_is_not_loaded_in_every_pass(version: Path, fill: Callable[..., Store]) -> None:
    loaded = []

    def trial(*_: object) -> Trial:
        loaded.append(True)
        raise TrialError("crashed while loading")

    store, todo = fill(("a", "1", 1, body("x", "a"))), job(version.parent)

    def at(now: float, how: Callable[..., Trial] = trial) -> What:
        (done,) = run_job(todo, store, trial=how, now=lambda: now)
        return done.what

    assert (at(1000.0), at(1001.0), at(1599.0), len(loaded)) == (*[What.FAILED] * 3, 1)
    assert (at(1600.0), len(loaded)) == (What.FAILED, 2)
    # Another model is another matter.
    (version / "saved_model.pb").write_bytes((version / "saved_model.pb").read_bytes() * 2)
    assert (at(1601.0), len(loaded)) == (What.FAILED, 3)
    assert at(2300.0, Script()) is What.PUBLISHED


def test_a_file_that_cannot_be_written_is_not_made_in_every_pass(version: Path, fill: Callable[..., Store]) -> None:
    """Nor does the history fill with it, which has what was published."""
    store, script, todo = fill(("a", "1", 1, body("x", "a"))), Script(), job(version.parent, history=True)

    def write(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(version))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(todo.place, "write", write)
        for at in (1000.0, 1001.0, 1599.0, 1600.0, 2200.0):
            (done,) = run_job(todo, store, trial=script, now=lambda at=at: at)  # type: ignore[misc]
            assert (done.what, done.text) == (
                What.FAILED,
                f"{version}: Permission denied; no warm-up file was written",
            )
    assert len(script.rounds) == 3
    assert [one.event for one in History(version.parent).events()] == ["publishing", "failed"]
    (done,) = run_job(todo, store, trial=script, now=lambda: 2800.0)
    assert done.what is What.PUBLISHED
    assert [one.event for one in History(version.parent).events()] == ["publishing", "failed", "published"]


def test_without_tensorflow_no_version_is_blamed(version: Path, fill: Callable[..., Store]) -> None:
    def trial(*_: object) -> Trial:
        raise TensorFlowMissing("TensorFlow is not installed")

    with pytest.raises(TensorFlowMissing):
        run_job(job(version.parent), fill(("a", "1", 1, body("x", "a"))), trial=trial)


@pytest.mark.parametrize("mode", [0o755, 0o775, 0o700])
def test_who_may_read_the_model_may_read_the_file(version: Path, fill: Callable[..., Store], mode: int) -> None:
    version.chmod(mode)
    (version / "saved_model.pb").chmod(0o640)
    previous = os.umask(0o077)
    try:
        refreshed(fill(("a", "1", 1, body("x", "a"))), version, Script())
    finally:
        os.umask(previous)
    file = version / WARMUP_PATH
    assert stat.S_IMODE(file.parent.stat().st_mode) == mode
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_folder_that_is_there_keeps_its_mode(version: Path, fill: Callable[..., Store]) -> None:
    (version / "assets.extra").mkdir()
    (version / "assets.extra").chmod(0o711)
    refreshed(fill(("a", "1", 1, body("x", "a"))), version, Script())
    assert stat.S_IMODE((version / "assets.extra").stat().st_mode) == 0o711


def test_what_killed_runs_left_is_removed_once_it_is_old(version: Path, fill: Callable[..., Store]) -> None:
    folder = version / "assets.extra"
    folder.mkdir()
    now = time.time()
    ages = {
        ".tf_serving_warmup_requests.0a.tmp": 7200,
        ".tf_serving_warmup_requests.manifest.json.0b.tmp": 7200,
        ".tf_serving_warmup_requests.0c.tmp": 60,
        "vocabulary.tmp": 7200,
    }
    for name, age in ages.items():
        (folder / name).touch()
        os.utime(folder / name, (now - age, now - age))
    refreshed(fill(("w", "1", 1, body("x", "w"))), version, Script())
    assert sorted(os.listdir(folder)) == [".tf_serving_warmup_requests.0c.tmp", "vocabulary.tmp"]
