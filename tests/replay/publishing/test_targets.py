"""One suite for every kind of place, each on a real server; and what is said when something is wrong."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from capture.errors import UserError
from replay.publishing.target import Target, open_target
from tests.replay.publishing.conftest import KINDS
from tests.support.processes import ROOT

pytestmark = pytest.mark.server


@pytest.fixture(params=KINDS)
def target(request: pytest.FixtureRequest, url: Callable[[str], str]) -> Target:
    return open_target(url(request.param))


def test_small_files_are_written_found_and_removed(target: Target) -> None:
    assert target.read("m/1/a") is None
    assert target.find("m/1/a") is None
    target.write("m/1/a", b"one")
    target.write("m/1/a", b"other")
    assert target.read("m/1/a") == b"other"
    found = target.find("m/1/a")
    assert found is not None
    assert (found.path, found.size) == ("m/1/a", 5)
    assert found.tag
    # A directory is no file.
    assert target.find("m/1") is None
    target.remove("m/1/a")
    target.remove("m/1/a")
    assert target.find("m/1/a") is None
    assert target.children("m") == []


def test_directories_and_files_are_listed_by_name(target: Target) -> None:
    for path in ("m/1/saved_model.pb", "m/10/variables/v", "m/10/saved_model.pb", "m/1x/y", "mm/2/z", "m/top"):
        target.write(path, path.encode())
    assert target.children("m") == ["1", "10", "1x"]
    assert target.children("m/1") == []
    assert target.children("nothing") == []
    assert [(one.path, one.size) for one in target.files("m/10")] == [
        ("m/10/saved_model.pb", 19),
        ("m/10/variables/v", 16),
    ]
    assert [one.path for one in target.files("m/1")] == ["m/1/saved_model.pb"]
    assert target.files("nothing") == []
    assert target.files("m/10") == target.files("m/10")


def test_files_go_there_within_and_back(target: Target, tmp_path: Path) -> None:
    # Above the size from which clients send and fetch in parts (ossfs: 10 MiB, s3fs fetches 50 MiB at a time).
    data = os.urandom(1 << 20) * 11
    (tmp_path / "sent").write_bytes(data)
    put = target.put("m/1/variables/data", tmp_path / "sent")
    assert put == target.find("m/1/variables/data")
    copied = target.copy("m/1/variables/data", "n/2/variables/data")
    assert (copied.path, copied.size) == ("n/2/variables/data", len(data))
    target.get("n/2/variables/data", tmp_path / "back")
    assert hashlib.sha256((tmp_path / "back").read_bytes()).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("kind", ["s3", "oss", "gs"])
def test_a_bucket_that_is_not_there_is_named(kind: str, url: Callable[[str], str], tmp_path: Path) -> None:
    url(kind)
    gone = open_target(f"{kind}://no-such-bucket/m")
    (tmp_path / "file").write_bytes(b"x")
    for ask in (
        lambda: gone.children("1"),
        lambda: gone.files("1"),
        lambda: gone.write("1/a", b""),
        lambda: gone.put("1/a", tmp_path / "file"),
    ):
        with pytest.raises(UserError) as caught:
            ask()
        assert str(caught.value) == f"{kind}://no-such-bucket/m: no bucket no-such-bucket; create it, or name another"


@pytest.mark.parametrize(
    ("kind", "variables", "text"),
    [
        ("s3", ("AWS_ACCESS_KEY_ID",), "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"),
        ("oss", ("OSS_ACCESS_KEY_ID",), "no credentials; set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET"),
        ("oss", ("OSS_ENDPOINT",), "no endpoint; set OSS_ENDPOINT, such as https://oss-cn-hangzhou.aliyuncs.com"),
    ],
)
def test_credentials_that_are_not_there(
    kind: str, variables: tuple[str, ...], text: str, url: Callable[[str], str], environment: pytest.MonkeyPatch
) -> None:
    place = url(kind)
    for name in variables:
        environment.delenv(name)
    with pytest.raises(UserError) as caught:
        open_target(place).files("")
    assert str(caught.value) == f"{place}: {text}"


def test_a_client_that_is_not_installed(url: Callable[[str], str], environment: pytest.MonkeyPatch) -> None:
    place = url("s3")
    environment.setitem(sys.modules, "s3fs", None)  # type: ignore[arg-type]
    with pytest.raises(UserError) as caught:
        open_target(place)
    assert str(caught.value) == f"{place}: needs s3fs, which is not installed: pip install 'warmtap[s3]'"


def test_no_secret_is_in_what_is_printed(url: Callable[[str], str]) -> None:
    """Everything that the clients log, at the lowest level, and the error of a store that is not there."""
    code = (
        "import logging, os, sys\n"
        "logging.basicConfig(level=logging.DEBUG)\n"
        "from replay.publishing.target import open_target\n"
        "for kind in ('s3', 'oss'):\n"
        "    target = open_target(kind + '://models/secrets')\n"
        "    target.write('a', b'b')\n"
        "    try:\n"
        "        open_target(kind + '://no-such-bucket/m').write('a', b'b')\n"
        "    except Exception as error:\n"
        "        print(error)\n"
    )
    url("s3")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("no bucket no-such-bucket") == 2
    assert done.stderr.count("DEBUG") > 10, "nothing was logged, so nothing is shown"
    for secret in ("s3-secret", "oss-secret"):
        assert secret not in done.stdout + done.stderr
