"""What verify's verdict means for the file of a version that is served: by script, and once on real TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.export.tfrecord import WARMUP_PATH
from capture.store.base import Batch, Store
from replay.executor.api import ExecutorError
from replay.refreshing.draft import Draft, Wanted
from replay.refreshing.job import What, run_job
from replay.refreshing.judgement import Judged
from tests.replay.test_refresh import refresh
from tests.replay.test_signature_matrix import tfserving
from tests.replay.test_verify import fill as fill_held_out
from tests.support.refreshing import Script, body, job, saved_model
from tests.support.stores import NOW, add, filled, signature
from tests.support.tf_models import private_copy
from tests.support.tf_requests import write_warmup

PROVED = Judged("proved", 0)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """Served, with the warm-up file of one signature."""
    found = saved_model(tmp_path / "m" / "2", {name: f"{name}:0" for name in "ab"})
    source = filled(tmp_path / "before", captured("a"))
    run_job(job(found.parent), source, trial=Script())
    source.close()
    return found


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Store]:
    found = filled(tmp_path / "store", captured("ab"))
    yield found
    found.close()


def captured(outputs: str) -> Batch:
    batch = Batch("run")
    for name in outputs:
        add(batch, signature((name,)), body=body("x", name))
    return batch


class Verify:
    """Says of the new file, and of the one that is there, what it was told."""

    def __init__(self, new: Judged, old: Judged, standing: bytes) -> None:
        self._said = {False: new, True: old}
        self._standing = standing
        self.asked: list[bool] = []

    def __call__(self, source: Store, found: Draft, data: bytes) -> Judged:
        self.asked.append(data == self._standing)
        return self._said[self.asked[-1]]


@pytest.mark.parametrize(
    ("new", "old", "what", "said"),
    [
        (PROVED, None, What.PUBLISHED, "; verify: proved"),
        (Judged("self-check", 0), None, What.PUBLISHED, "; verify: self-check"),
        (Judged("failed", None, broken=True, reason="no load"), None, What.HELD, "; verify: failed: no load"),
        (
            Judged("failed", 1, reason="one"),
            Judged("failed", 1, reason="one"),
            What.PUBLISHED,
            "; verify: failed, as with the file that it replaces: one",
        ),
        (Judged("failed", 2, reason="x"), Judged("failed", None, broken=True), What.PUBLISHED, "it replaces: x"),
        (Judged("failed", None, reason="x"), Judged("failed", None), What.PUBLISHED, "it replaces: x"),
        (
            Judged("failed", 2, reason="two"),
            PROVED,
            What.HELD,
            "; verify: 2 graphs are built behind it, 0 behind the file that is there",
        ),
    ],
)
def test_the_file_of_a_served_version_is_replaced_where_the_new_one_is_not_worse(
    version: Path, source: Store, new: Judged, old: Judged | None, what: What, said: str
) -> None:
    file = version / WARMUP_PATH
    before = file.read_bytes()
    verify = Verify(new, old or PROVED, before)
    (done,) = run_job(job(version.parent, in_place=True), source, trial=Script(), judge=verify, now=lambda: NOW + 60)
    assert done.what is what
    assert done.text.endswith(said)
    assert verify.asked == ([False] if old is None else [False, True])
    assert (file.read_bytes() == before) == (what is What.HELD)
    assert file.with_name(file.name + ".prev").exists() == (what is What.PUBLISHED)


def test_a_file_that_cannot_be_judged_is_not_judged_in_every_pass(version: Path, source: Store) -> None:
    asked = []

    def verify(source: Store, found: Draft, data: bytes) -> Judged:
        asked.append(data)
        raise ExecutorError("the process ended")

    todo, before = job(version.parent, in_place=True), (version / WARMUP_PATH).read_bytes()
    for _ in range(2):
        (done,) = run_job(todo, source, trial=Script(), judge=verify, now=lambda: NOW + 60)
        assert (done.what, done.text) == (What.FAILED, "the process ended")
    assert len(asked) == 1
    assert (version / WARMUP_PATH).read_bytes() == before


def test_what_replaces_nothing_that_is_served_is_not_judged(tmp_path: Path, source: Store, version: Path) -> None:
    verify = Verify(PROVED, PROVED, b"")
    fresh = saved_model(tmp_path / "n" / "3", {"a": "a:0", "b": "b:0"})
    (done,) = run_job(job(fresh.parent), source, trial=Script(), judge=verify)
    assert done.what is What.PUBLISHED
    todo = job(version.parent, in_place=True, wanted=Wanted(unverified=True))
    run_job(todo, source, trial=Script(), judge=verify)
    assert verify.asked == []


@pytest.mark.server
def test_on_real_tensorflow(edge: Path, tmp_path: Path) -> None:
    model = private_copy(edge, tmp_path, version=2)
    write_warmup(model, b"")
    kept, held = tfserving(["sum"]), tfserving(["sum"], rows=3)
    store = fill_held_out(tmp_path / "store", "tfserving", [kept], [held])
    done = refresh(model.parent, store, "--in-place")
    assert done.returncode == 0, done.stderr
    assert "; verify: proved" in done.stdout
