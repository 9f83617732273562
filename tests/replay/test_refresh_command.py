"""``capture refresh`` as a process: settings, repetition, what it says. Without TensorFlow: ``unverified``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from capture.errors import UserError
from capture.export.manifest import MANIFEST_SUFFIX
from capture.export.tfrecord import WARMUP_PATH
from capture.store.base import Batch
from replay.commands.refresh import refresh
from replay.refreshing.jobs import jobs_of
from replay.refreshing.lock import FileLock, held
from replay.refreshing.metrics import PREFIX, ROWS
from replay.refreshing.passes import run_pass, watch
from replay.refreshing.settings import from_data
from tests.support.processes import Process, capture
from tests.support.refreshing import body, saved_model
from tests.support.stores import add, filled, signature

pytestmark = pytest.mark.server


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Of two models, ``m`` with a staging directory and ``n``; of each, versions 2 and 3 were called."""
    batch = Batch("run")
    for model in ("m", "n"):
        for version in ("2", "3"):
            add(batch, signature(("a",), model=model), version=version, body=body("x", "a"))
            add(batch, signature(("gone",), model=model), version=version, body=body("x", "gone"))
    filled(tmp_path / "store", batch).close()
    for model in ("m", "n"):
        saved_model(tmp_path / model / "2")
    (tmp_path / "m" / "staged").mkdir()
    path = tmp_path / "refresh.yaml"
    models = [
        {"model": "m", "base": str(tmp_path / "m"), "staging": str(tmp_path / "m" / "staged"), "unverified": True},
        {"model": "n", "base": str(tmp_path / "n"), "unverified": True},
    ]
    told = {"prometheus": str(tmp_path / "refresh.prom"), "interval": 0.1}
    path.write_text(yaml.safe_dump({"store": str(tmp_path / "store"), "models": models, **told}))
    return path


def test_several_models_and_what_was_published(settings: Path, tmp_path: Path) -> None:
    done = capture("refresh", "--config", str(settings), "--check")
    assert (done.returncode, done.stdout) == (0, f"{settings}: ok, 2 models\n")
    done = capture("refresh", "--config", str(settings))
    assert (done.returncode, done.stderr) == (0, "")
    said = [line for line in done.stdout.splitlines() if not line.startswith("  ")]
    assert said == [f"{model} version 2: 1 records, as they are: none was run" for model in "mn"]
    described = json.loads((tmp_path / "m" / "2" / (WARMUP_PATH + MANIFEST_SUFFIX)).read_bytes())
    assert described["proof"]["level"] == "none"
    done = capture("refresh", "--config", str(settings), "--history")
    lines = [line.partition(" ")[2] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert lines == [
        f"{model}/2 {event}: 1 added, 0 removed" for model in "mn" for event in ("publishing", "published")
    ]
    assert "  + Predict m/serving_default (x) -> (a)" in done.stdout.splitlines()
    assert "does not fit: no output gone" in done.stdout


def test_metrics_for_the_node_exporter(settings: Path, tmp_path: Path) -> None:
    file = tmp_path / "refresh.prom"

    def values() -> dict[str, dict[tuple[str, ...], float]]:
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(file.read_text()):
            for one in family.samples:
                found.setdefault(one.name, {})[tuple(one.labels.values())] = one.value
        return found

    (tmp_path / "n" / "3").mkdir()
    (tmp_path / "n" / "3" / "saved_model.pb").write_bytes(b"\xff" * 100)
    assert capture("refresh", "--config", str(settings)).returncode == 1
    found = values()
    assert found.keys() == {row.name for row in ROWS}
    assert found[f"{PREFIX}success"] == {("m",): 1, ("n",): 0}
    assert found[f"{PREFIX}failed_versions"] == {("m",): 0, ("n",): 1}
    assert found[f"{PREFIX}records"] == {("m", "2"): 1, ("n", "2"): 1}
    assert found[f"{PREFIX}left_out"] == {("m", "2"): 1, ("n", "2"): 1}
    assert found[f"{PREFIX}published_timestamp_seconds"].keys() == {("m", "2"), ("n", "2")}
    assert file.stat().st_mode & 0o777 == 0o644
    # A pass that could not even begin does not leave the success before it standing.
    (tmp_path / "store").unlink()
    assert capture("refresh", "--config", str(settings)).returncode == 1
    assert values()[f"{PREFIX}success"] == {("m",): 0, ("n",): 0}


def test_it_goes_on_until_it_is_told_to_stop(settings: Path, tmp_path: Path) -> None:
    with Process("capture", "refresh", "--config", str(settings), "--watch") as job:
        job.wait_for(r"event=watching models=2 interval=0\.1$")
        job.wait_for(r"event=published model=n version=2 records=1 left_out=1 msg=")
        # A version of which a canary was called already.
        saved_model(tmp_path / "elsewhere" / "3").rename(tmp_path / "m" / "staged" / "3")
        job.wait_for(r"event=promoted model=m version=3 records=1 left_out=1 msg=")
        assert (tmp_path / "m" / "3" / WARMUP_PATH).exists()
        (tmp_path / "store").rename(tmp_path / "away")
        job.wait_for(r"event=failed model=- version=- .*msg=\".*store")
        (tmp_path / "away").rename(tmp_path / "store")
        saved_model(tmp_path / "elsewhere" / "3").rename(tmp_path / "n" / "3")
        job.wait_for(r"event=published model=n version=3 ")
        assert job.stop() == 0
        assert "event=stopped" in job.lines[-1]
    # Whatever was passed over, again and again, was not worth a line.
    assert sum("event=passed" in line or "event=unchanged" in line for line in job.lines) <= 4


def test_where_another_job_works_nothing_is_done_and_that_is_no_failure(settings: Path, tmp_path: Path) -> None:
    (tmp_path / "m" / ".warmtap").mkdir()
    with held([FileLock(tmp_path / "m" / ".warmtap" / "lock")]):
        done = capture("refresh", "--config", str(settings))
    assert done.returncode == 0
    assert done.stdout.startswith("m model: process ")
    assert not (tmp_path / "m" / "2" / WARMUP_PATH).exists()
    assert (tmp_path / "n" / "2" / WARMUP_PATH).exists()


def test_the_state_is_where_the_settings_say(settings: Path, tmp_path: Path) -> None:
    told = yaml.safe_load(settings.read_text())
    told["models"][0]["state"] = str(tmp_path / "state")
    done = run_pass(from_data(told), jobs_of(from_data(told)), alone=False)
    assert [one.version for one in done] == ["2", "2"]
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"lock", "history.jsonl"}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()} == {0o600}
    assert not (tmp_path / "m" / ".warmtap").exists()


def test_the_settings_reach_the_job(tmp_path: Path) -> None:
    model = {
        "model": "m",
        "base": str(tmp_path),
        "scrub": True,
        "scrub_rules": ["m:x=zero"],
        "batch_sizes": [8, 1],
        "retire_after": 3.0,
        "record_timeout": 5.0,
        "in_place": True,
        "promote_cold": "never",
    }
    (job,) = jobs_of(from_data({"models": [model]}))
    assert job.wanted.written_rules == ("m:x=zero",)
    assert (job.wanted.sizes, job.wanted.retire_after, job.record_timeout) == ((1, 8), 3.0, 5.0)
    assert (job.in_place, job.promote_cold) == (True, "never")


@pytest.mark.parametrize("name", ["history.jsonl", "ages.json"])
def test_a_disk_that_fails_one_model_ends_neither_the_others_nor_the_watch(
    settings: Path, tmp_path: Path, name: str
) -> None:
    told = yaml.safe_load(settings.read_text())
    told["models"][0]["retire_after"] = 1e8
    jobs = jobs_of(from_data(told))
    # A directory where a file is to be: what a disk says that fails.
    (tmp_path / "m" / ".warmtap" / name).mkdir(parents=True)
    passes = []

    def rest(_: float) -> None:
        passes.append(True)
        if len(passes) == 2:
            raise SystemExit

    lines: list[str] = []
    with pytest.raises(SystemExit):
        lines += watch(from_data(told), jobs, 10.0, rest)
    failed = [line for line in lines if "event=failed model=m " in line]
    assert len(failed) == 1
    assert "Is a directory" in failed[0]
    assert any("event=published model=n version=2" in line for line in lines)


def test_jobs_that_began_together_do_not_stay_together(settings: Path) -> None:
    told = from_data({**yaml.safe_load(settings.read_text()), "jitter": 0.5, "prometheus": ""})
    rests: list[float] = []

    def rest(seconds: float) -> None:
        rests.append(seconds)
        if len(rests) == 20:
            raise SystemExit

    with pytest.raises(SystemExit):
        list(watch(told, jobs_of(told), 10.0, rest))
    assert all(5 <= seconds <= 15 for seconds in rests)
    assert len(set(rests)) == len(rests)


def test_a_store_that_others_may_read(settings: Path, tmp_path: Path) -> None:
    (tmp_path / "store").chmod(0o644)
    told = yaml.safe_load(settings.read_text())
    with pytest.raises(UserError, match="others"):
        run_pass(from_data(told), jobs_of(from_data(told)), alone=False)
    told["allow_shared_store"] = True
    done = run_pass(from_data(told), jobs_of(from_data(told)), alone=False)
    assert len(done) == 2


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({}, "nothing to do: give --saved-model-base DIR, or --config FILE.yaml"),
        ({"config": "x", "in_place": True}, "--config stands alone: put the other options into the file"),
        ({"config": "x", "store": "other"}, "--config stands alone: put the other options into the file"),
        ({"config": "x", "retire_after": 9.0}, "--config stands alone: put the other options into the file"),
        ({"config": "x", "allow_shared_store": True}, "--config stands alone: put the other options into the file"),
        ({"config": "x", "interval": 9.0}, "--interval: is for --watch; say both"),
        ({"config": "x", "history": True}, "--check and --history: say one of them"),
        (
            {"saved_model_base": "tests", "staging": "./tests"},
            "--staging: is the base itself, whose versions the model",
        ),
        (
            {"saved_model_base": "tests", "staging": "tests/5"},
            "--staging: tests/5: the model server takes a number for",
        ),
        ({"config": "none.yaml"}, "none.yaml: No such file or directory"),
        ({"saved_model_base": "none"}, "none: no such directory; give the one that holds the version directories"),
        (
            {"saved_model_base": "tests", "unverified": True, "sizes": "8"},
            "unverified: nothing is run then, so neither batch sizes nor scrub can be had; leave it out",
        ),
        ({"saved_model_base": "tests", "prometheus": "x.txt"}, "--prometheus x.txt: the node exporter reads only"),
    ],
)
def test_wrong_usage_is_one_line(named: dict[str, Any], text: str) -> None:
    paths = {name: Path(value) for name, value in named.items() if name in ("config", "prometheus")}
    with pytest.raises(UserError) as error:
        refresh(**{**named, **paths}, check=True)
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)
    assert not Path("tests/.warmtap").exists()
