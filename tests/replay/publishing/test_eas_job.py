"""The refresh job of an EAS service: what it publishes, when it does not, and what is run first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from capture.errors import UserError
from capture.export.scrub_rules import Rules
from capture.export.table import FORMATS
from capture.settings_errors import SettingsError
from capture.store.base import Batch, Store
from replay.publishing.addresses import parse
from replay.publishing.target import Target, open_target
from replay.refreshing.eas import EasJob, run_eas_job
from replay.refreshing.history import History
from replay.refreshing.job import Outcome, What
from replay.refreshing.lock import FileLock
from replay.refreshing.settings import from_data
from replay.trial import Request, Trial, Tried
from tests.replay.test_signature_matrix import eas
from tests.replay.test_verify import fill
from tests.support.processes import capture
from tests.support.stores import NOW, add, filled, signature

pytestmark = pytest.mark.server


def store(path: Path, **hits: int) -> Store:
    """Signatures of service ``rank`` by output; negative: calls that were not seen to succeed."""
    batch = Batch("run")
    for output, count in hits.items():
        one = signature((output,), family="eas", model="rank")
        add(batch, one, proven=max(count, 0), unproven=max(-count, 0))
    return filled(path, batch)


def run(job: EasJob, source: Store, failing: bytes = b"\0none") -> Outcome:
    def trial(_: Path, family: str, requests: list[Request]) -> Trial:
        assert family == "eas"
        return Trial(
            "executor", "2.21", [Tried("INVALID_ARGUMENT: no" if failing in one.body else "") for one in requests]
        )

    (outcome,) = run_eas_job(job, source, trial=trial, now=lambda: NOW)
    source.close()
    return outcome


@pytest.fixture
def service(tmp_path: Path) -> Path:
    path = tmp_path / "service.json"
    path.write_text('{"name": "rank"}\n')
    return path


@pytest.fixture
def oss(url: Callable[[str], str]) -> Target:
    return open_target(url("oss"))


def named(service: Path, oss: Target) -> bytes | None:
    url = json.loads(service.read_text())["warm_up_data_path"]
    assert url.startswith(oss.url + "/")
    return oss.read(url.removeprefix(oss.url + "/"))


def test_only_what_changed_is_published(oss: Target, service: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    history = History(tmp_path / "state")
    job = EasJob("rank", parse(oss.url), service_json=service, count=2, history=history)
    first = run(job, store(tmp_path / "1", a=6, b=4))
    assert (first.what, first.records) == (What.PUBLISHED, 2)
    assert first.text.endswith("the file that is named covers 60.0% of the calls, the gate is for the others")
    body = named(service, oss)
    assert json.loads(service.read_text())["metadata"] == {"rpc": {"warm_up_count": 2}}
    before = oss.files("")
    # Nearly as often, and then more often, but not by far: nothing takes turns.
    assert run(job, store(tmp_path / "2", a=6, b=7)).what is What.UNCHANGED
    assert oss.files("") == before
    # Somebody's JSON that lost the path gets it again.
    service.write_text('{"name": "rank"}\n')
    assert run(job, store(tmp_path / "3", a=6, b=7)).what is What.PUBLISHED
    assert named(service, oss) == body
    overtaken = run(job, store(tmp_path / "4", a=6, b=70))
    assert overtaken.what is What.PUBLISHED
    assert named(service, oss) != body
    assert run(job, store(tmp_path / "5", a=6, b=70, c=1)).records == 3
    # What running services may name is there still.
    assert {one.path for one in before} <= {one.path for one in oss.files("")}
    assert [one.event for one in history.events()] == ["uploaded"] * 4


def test_what_users_sent_goes_once_it_is_to_be_scrubbed(oss: Target, service: Path, tmp_path: Path) -> None:
    """Without rules of its own, too: numbers become zero."""
    job = EasJob("rank", parse(oss.url), service_json=service)
    run(job, store(tmp_path / "1", a=6))
    real = named(service, oss)
    job.rules = Rules()
    assert run(job, store(tmp_path / "2", a=6)).what is What.PUBLISHED
    assert named(service, oss) not in (real, None)
    assert [one for one in oss.files("") if oss.read(one.path) == real] == []
    assert run(job, store(tmp_path / "3", a=6)).what is What.UNCHANGED
    job.rules = None
    assert run(job, store(tmp_path / "4", a=6)).what is What.PUBLISHED
    assert named(service, oss) == real


def test_nothing_is_uploaded_by_a_job_that_another_one_replaced(oss: Target, service: Path, tmp_path: Path) -> None:
    class Lost(FileLock):
        def holds(self) -> bool:
            return False

    job = EasJob("rank", parse(oss.url), service_json=service, locks=[Lost(tmp_path / "lock")])
    with pytest.raises(UserError, match="another job has taken the lock meanwhile; nothing was published"):
        run(job, store(tmp_path / "1", a=6))
    assert oss.files("") == []


def test_what_does_not_run_is_left_out_and_what_does_may_be_unproven(
    oss: Target, service: Path, tmp_path: Path
) -> None:
    job = EasJob("rank", parse(oss.url), service_json=service, saved_model=tmp_path)
    outcome = run(job, store(tmp_path / "1", good=-5, bad=9), b"bad")
    assert (outcome.what, outcome.records) == (What.PUBLISHED, 1)
    assert [one.reason for one in outcome.left_out] == [f"does not run on {tmp_path}: INVALID_ARGUMENT: no"]
    manifest = json.loads(oss.read("manifest.json") or b"")
    assert manifest["proof"]["level"] == "executor"
    assert [one["outcome"] for one in manifest["records"]] == ["unproven"]


def test_without_a_model_only_what_succeeded_is_published(oss: Target, tmp_path: Path) -> None:
    job = EasJob("rank", parse(oss.url))
    outcome = run(job, store(tmp_path / "1", a=-5))
    assert (outcome.what, outcome.records) == (What.NOTHING, 0)
    assert oss.files("") == []
    with pytest.raises(UserError, match="nothing captured of service other"):
        run(EasJob("other", parse(oss.url)), store(tmp_path / "2", a=1))


def test_a_service_that_cannot_be_run(oss: Target, tmp_path: Path) -> None:
    batch = Batch("run")
    add(batch, signature((), family="eas-string", model="rank"), body=b"text")
    job = EasJob("rank", parse(oss.url), "eas-txt", saved_model=tmp_path)
    with pytest.raises(UserError, match="only requests of the TensorFlow processor can be run; leave saved_model out"):
        run(job, filled(tmp_path / "1", batch))


def test_by_the_command_on_real_tensorflow(edge: Path, oss: Target, service: Path, tmp_path: Path) -> None:
    fill(tmp_path / "store", "eas", [eas(["sum"]), eas([]), eas(["gone"])], [])
    settings = {
        "store": str(tmp_path / "store"),
        "services": [
            {
                "service": "edge",
                "to": oss.url,
                "service_json": str(service),
                "state": str(tmp_path / "state"),
                "saved_model": str(edge),
            }
        ],
    }
    (tmp_path / "refresh.yaml").write_text(yaml.safe_dump(settings))
    done = capture("refresh", "--config", str(tmp_path / "refresh.yaml"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"edge service: 2 signatures at {oss.url}; {service} names {oss.url}/001-")
    assert f"does not run on {edge}: " in done.stdout
    assert named(service, oss) is not None
    told = capture("refresh", "--config", str(tmp_path / "refresh.yaml"), "--history")
    assert "edge uploaded: 2 signatures" in told.stdout


SERVICE = {"service": "rank", "to": "oss://b/w", "state": "s"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "models: nothing to do: name at least one, or one of services"),
        ({"services": [SERVICE, SERVICE]}, "services[1]: 'rank' is already services[0]'s"),
        (
            {"services": [{**SERVICE, "to": "s3://b/w", "service_json": "x"}]},
            "services[0].to: EAS reads warm_up_data_path from OSS; say oss://BUCKET/PATH",
        ),
        (
            {"services": [{**SERVICE, "warm_up_count": 2}]},
            "services[0].warm_up_count: stands in the service's JSON; say service_json",
        ),
        ({"services": [{**SERVICE, "to": "oss://k:s@b/w"}]}, "services[0].to: oss://...@b: credentials do not belong"),
        ({"services": [{**SERVICE, "dialect": "eas"}]}, "services[0].dialect: 'eas' is not known; known are "),
        ({"services": [{**SERVICE, "scrub_rules": ["rank:x=zero"]}]}, "services[0].scrub_rules: are for scrub: true"),
    ],
)
def test_settings_that_cannot_be(data: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_data(data)
    assert str(caught.value).startswith(said)


def test_a_text_service(oss: Target, tmp_path: Path) -> None:
    batch = Batch("run")
    add(batch, signature((), family="eas-string", model="rank"), body=b"one request")
    job = EasJob("rank", parse(oss.url), FORMATS["eas-txt"].name)
    assert run(job, filled(tmp_path / "1", batch)).records == 1
    assert oss.read("warmup.txt") == b"one request\n"
    batch = Batch("run")
    add(batch, signature((), family="eas-string", model="rank"), body=b"another of the same")
    assert run(job, filled(tmp_path / "2", batch)).what is What.UNCHANGED
