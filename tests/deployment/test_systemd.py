"""config/systemd, held against systemd and the program; nothing is started."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxy import settings
from tests.support.command_words import parse
from tests.test_architecture import ROOT

UNIT = ROOT / "config" / "systemd" / "warmtap.service"
#: The next above is `systemd-analyze security`'s MEDIUM, from 2.0 on (tenths of a point: its --threshold).
EXPOSURE = 20


def service() -> dict[str, str]:
    """[Service]; of a key that stands twice the last value."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return dict(parser["Service"])


def found() -> settings.Settings:
    return settings.load(ROOT / "config" / "systemd" / "proxy.yaml")


def test_it_starts_a_command_that_exists() -> None:
    program, *words = shlex.split(service()["ExecStart"])
    assert program == "/opt/warmtap/bin/capture"
    # What the instructions put there.
    told = (ROOT / "docs" / "deployment.md").read_text()
    assert f"config/systemd/{Path(parse(words)['config']).name} {parse(words)['config']}" in told
    assert "python3 -m venv /opt/warmtap" in told


def test_it_writes_into_its_state_directory_alone() -> None:
    held = service()
    home = f"/var/lib/{held['StateDirectory']}"
    assert held["WorkingDirectory"] == home
    assert (held["StateDirectoryMode"], held["UMask"], held["ProtectSystem"]) == ("0700", "0077", "strict")
    paths = [found().capture.store, found().takeover_socket]
    assert [str(Path(path).parent) for path in paths] == [home, home]


def test_connections_may_end_before_it_is_killed() -> None:
    relay = found().relay
    assert float(service()["TimeoutStopSec"]) > relay.drain_delay + relay.shutdown_timeout
    assert service()["KillMode"] == "mixed", "the supervisor ends relay and worker, when they have drained"


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is there."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing (Debian: systemd)")
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace("/opt/warmtap/bin/capture", sys.executable))
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
