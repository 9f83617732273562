"""config/systemd, held against systemd and the program; nothing is started."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from proxy import settings
from replay.refreshing import settings as refreshing
from tests.support.command_words import parse
from tests.test_architecture import ROOT

DIRECTORY = ROOT / "config" / "systemd"
SIDECAR, JOB = "warmtap.service", "warmtap-refresh.service"
#: The next above is `systemd-analyze security`'s MEDIUM, from 2.0 on (tenths of a point: its --threshold).
EXPOSURE = 20


def service(unit: str) -> dict[str, str]:
    """[Service]; of a key that stands twice the last value."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DIRECTORY / unit)
    return dict(parser["Service"])


def sidecar() -> settings.Settings:
    return settings.load(DIRECTORY / "proxy.yaml")


def job() -> refreshing.Settings:
    return refreshing.load(DIRECTORY / "refresh.yaml")


@pytest.mark.parametrize("unit", [SIDECAR, JOB])
def test_it_starts_a_command_that_exists_as_the_instructions_put_it_there(unit: str) -> None:
    program, *words = shlex.split(service(unit)["ExecStart"])
    found = parse(words)
    told = (ROOT / "docs" / "deployment.md").read_text()
    assert f"python3 -m venv {PurePosixPath(program).parents[1]}" in told
    assert f"config/systemd/{Path(found['config']).name} {found['config']}" in told
    assert unit in told


def test_the_job_goes_on() -> None:
    assert "--watch" in shlex.split(service(JOB)["ExecStart"])


def test_they_share_a_user_and_its_store() -> None:
    held, other = service(SIDECAR), service(JOB)
    for key in ("User", "Group", "StateDirectory", "StateDirectoryMode", "WorkingDirectory", "ProtectSystem"):
        assert held[key] == other[key]
    assert (held["StateDirectoryMode"], held["ProtectSystem"]) == ("0700", "strict")
    home = f"/var/lib/{held['StateDirectory']}"
    assert held["WorkingDirectory"] == home
    assert sidecar().capture.store == job().store
    paths = [sidecar().capture.store, sidecar().takeover_socket]
    assert [str(PurePosixPath(path).parent) for path in paths] == [home, home]


def test_the_job_may_write_where_it_has_to() -> None:
    held = service(JOB)
    [model] = job().models
    for path in (model.base, model.staging):
        assert PurePosixPath(path).is_relative_to(held["ReadWritePaths"])
    assert held["Environment"] == f"XDG_CACHE_HOME=/var/cache/{held['CacheDirectory']}"
    # A model server of another user reads what is published.
    assert held["UMask"] == "0022"
    # TensorFlow makes code at run time, and the executor is loaded from the cache.
    assert "MemoryDenyWriteExecute" not in held


def test_connections_may_end_before_it_is_killed() -> None:
    relay = sidecar().relay
    assert float(service(SIDECAR)["TimeoutStopSec"]) > relay.drain_delay + relay.shutdown_timeout
    assert service(SIDECAR)["KillMode"] == "mixed", "the supervisor ends relay and worker, when they have drained"


@pytest.fixture(params=[SIDECAR, JOB])
def unit(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The unit with a program that is there."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing (Debian: systemd)")
    path = tmp_path / str(request.param)
    path.write_text(re.sub(r"/opt/\S+/bin/capture", sys.executable, (DIRECTORY / path.name).read_text()))
    return path


def test_systemd_takes_it(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_finds_little_to_attack(unit: Path) -> None:
    words = ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE}", "--no-pager", str(unit)]
    done = subprocess.run(words, capture_output=True, text=True)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze judges running services only (before 250)")
    assert done.returncode == 0, done.stdout
