"""A pass of refresh, killed before every system call that changes the disk, and on a disk that is full from any of them
on: what the model server would find then."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capture.export.manifest import MANIFEST_SUFFIX
from capture.export.tfrecord import WARMUP_PATH, read_records
from capture.store.base import Batch, open_store
from replay.refreshing.job import BAD, RETRY_SECONDS, What, run_job
from replay.refreshing.local import LocalPlace
from replay.refreshing.place import Version
from replay.refreshing.present import Standing, read_standing
from replay.trial import Request, Trial, Tried
from tests.support.refresh_killed import Steps, killed_at
from tests.support.refreshing import body, job, saved_model
from tests.support.stores import add, filled, signature

pytestmark = pytest.mark.server
#: More than any pass has.
MANY = 200


def fill(path: Path, outputs: str) -> Path:
    batch = Batch("run")
    for name in outputs:
        add(batch, signature((name,)), body=body("good", name))
    filled(path, batch).close()
    return path


def work(base: Path, store: Path, *, staging: Path | None = None, in_place: bool = False) -> Callable[[Steps], None]:
    def one_pass(steps: Steps) -> None:
        def trial(_: Path, __: str, requests: list[Request]) -> Trial:
            steps.begin()
            return Trial("executor", "0", [Tried("") for _ in requests])

        done = run_job(job(base, staging=staging, in_place=in_place), open_store(str(store)), trial=trial)
        assert not [one for one in done if one.what in BAD], done

    return one_pass


def standing(directory: Path) -> Standing:
    """What stands there, by warmtap's own reading; raises where it is a half."""
    place = LocalPlace(directory.parent)
    return read_standing("there", *place.read(Version(directory.name, False)))


def manifest(directory: Path) -> Path:
    return directory / (WARMUP_PATH + MANIFEST_SUFFIX)


def test_a_new_file_is_there_with_its_manifest_or_not_at_all(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", "a")
    steps = 0
    for step in range(MANY):
        version = saved_model(tmp_path / str(step) / "m" / "9")
        if not killed_at(step, work(version.parent, store)):
            break
        steps += 1
        if (version / WARMUP_PATH).exists():
            assert [one.ours for one in standing(version).records] == [True], step
        else:
            assert not killed_at(MANY, work(version.parent, store)), step
            assert [one.ours for one in standing(version).records] == [True], step
    # mkdir, chmod, open and fsync of the folder's folder; open, fchmod, fsync, replace and fsync of two files at least.
    assert 14 <= steps < MANY


def test_a_file_that_is_brought_up_to_date_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    template = saved_model(tmp_path / "template" / "9")
    assert not killed_at(MANY, work(template.parent, fill(tmp_path / "first", "a")))
    old = (template / WARMUP_PATH).read_bytes()
    store = fill(tmp_path / "store", "ac")
    seen = set()
    for step in range(MANY):
        version = tmp_path / str(step) / "m" / "9"
        shutil.copytree(template, version)
        ended = not killed_at(step, work(version.parent, store, in_place=True))
        now = (version / WARMUP_PATH).read_bytes()
        seen.add(now == old)
        # Whatever manifest is beside it: no record of warmtap's own is taken for one that was made by hand.
        assert all(one.ours for one in standing(version).records), step
        assert len(list(read_records(now))) == (1 if now == old else 2), step
        if now != old:
            assert (version / f"{WARMUP_PATH}.prev").read_bytes() == old
        # The next pass ends it, whatever was left.
        assert not killed_at(MANY, work(version.parent, store, in_place=True)), step
        assert len(list(read_records((version / WARMUP_PATH).read_bytes()))) == 2, step
        assert all(one.ours for one in standing(version).records), step
        if ended:
            break
    assert seen == {True, False}
    assert step > 14


def test_a_staged_version_is_served_with_its_file_or_not_yet(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", "a")
    for step in range(MANY):
        staging = tmp_path / str(step) / "staged"
        saved_model(staging / "9")
        base = tmp_path / str(step) / "m"
        base.mkdir()
        ended = not killed_at(step, work(base, store, staging=staging))
        if (base / "9").exists():
            assert [one.ours for one in standing(base / "9").records] == [True], step
            assert manifest(base / "9").exists()
            assert not (staging / "9").exists()
        else:
            assert (staging / "9" / "saved_model.pb").exists()
            assert not killed_at(MANY, work(base, store, staging=staging)), step
            assert [one.ours for one in standing(base / "9").records] == [True], step
        if ended:
            break
    assert step > 14


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = saved_model(tmp_path / "template" / "9")
    assert not killed_at(MANY, work(template.parent, fill(tmp_path / "first", "a")))
    old = (template / WARMUP_PATH).read_bytes()
    store = open_store(str(fill(tmp_path / "store", "ac")))
    calls = 0
    true = {name: getattr(os, name) for name in ("open", "fsync", "replace", "link")}

    def full(name: str, last: int) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += trying
            if trying and calls > last:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
            return true[name](*arguments, **named)

        return call

    trying = False
    texts = set()
    for step in range(MANY):
        version = tmp_path / str(step) / "m" / "9"
        shutil.copytree(template, version)
        calls = 0

        def trial(_: Path, __: str, requests: list[Request]) -> Trial:
            nonlocal trying
            trying = True
            return Trial("executor", "0", [Tried("") for _ in requests])

        with monkeypatch.context() as patched:
            for name in true:
                patched.setattr(os, name, full(name, step))
            todo = job(version.parent, in_place=True, history=True)
            (done,) = run_job(todo, store, trial=trial)
            trying = False
        now = (version / WARMUP_PATH).read_bytes()
        assert list(version.rglob("*.tmp")) == [], step
        assert len(list(read_records(now))) == (1 if now == old else 2), step
        if done.what is What.PUBLISHED:
            break
        assert done.what is What.FAILED
        assert "No space left on device" in done.text
        texts.add("its warm-up file is written" in done.text)
        assert ("its warm-up file is written" in done.text) <= (now != old)
        # And once there is room again, the next pass that tries ends it.
        (done,) = run_job(todo, store, trial=trial, now=lambda: time.time() + RETRY_SECONDS)
        trying = False
        assert done.what in (What.PUBLISHED, What.UNCHANGED), step
        assert len(list(read_records((version / WARMUP_PATH).read_bytes()))) == 2
    assert step > 10
    assert texts == {True, False}
    store.close()
