"""Every settings file in config/ is one that the program reads, for the kind of deployment that it stands in."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy import address, settings
from replay.refreshing import settings as refreshing
from tests.test_architecture import ROOT

JOBS = sorted((ROOT / "config").rglob("refresh.yaml"))
#: A CronJob of that name, no settings.
JOBS.remove(ROOT / "config" / "k8s" / "refresh.yaml")
FILES = sorted([ROOT / "config" / "example.yaml", *(ROOT / "config").rglob("proxy.yaml")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "config")))
def test_the_program_reads_it(path: Path) -> None:
    found = settings.load(path)
    assert len({one.name for one in found.listeners}) == len(found.listeners)
    assert f"config/{path.relative_to(ROOT / 'config')}" in (ROOT / "docs" / "deployment.md").read_text()


@pytest.mark.parametrize("path", JOBS, ids=lambda path: str(path.relative_to(ROOT / "config")))
def test_the_job_reads_it(path: Path) -> None:
    found = refreshing.load(path)
    beside = settings.load(path.with_name("proxy.yaml"))
    assert found.store == beside.capture.store
    assert all(model.staging for model in found.models), "versions would be seen before their files"


def test_there_is_one_for_each_kind_of_deployment() -> None:
    kinds = {path.relative_to(ROOT / "config").parts[0] for path in FILES}
    assert kinds == {"example.yaml", "compose", "eas", "k8s", "systemd"}


def test_an_instance_of_eas_is_entered_through_the_sidecar() -> None:
    [listener] = settings.load(ROOT / "config" / "eas" / "proxy.yaml").listeners
    assert address.parse(listener.listen).host == "0.0.0.0"
    assert address.parse(listener.upstream).loopback
    assert listener.dialect.startswith("eas-")
    assert listener.service
    assert listener.version, "EAS tells no version: without one all is stored under unknown"
