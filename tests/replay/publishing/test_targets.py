"""One suite for every kind of place, each on a real server; and what is said when something is wrong."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ossfs.base
import ossfs.core
import pytest

from capture.errors import UserError
from replay.publishing import object_target
from replay.publishing.object_target import ObjectTarget
from replay.publishing.target import Target, open_target
from tests.replay.publishing.conftest import KINDS
from tests.support.object_stores import FORBIDDEN
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


def test_files_go_there_within_and_back(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A service has no home.
    (tmp_path / "no-directory").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "no-directory"))
    # ossfs hands over to oss2's parts from 100 MiB on, which oss2 makes from 10 MiB on.
    monkeypatch.setattr(ossfs.core, "SIMPLE_TRANSFER_THRESHOLD", 1 << 20)
    monkeypatch.setattr(object_target, "OSS_PARTS_BYTES", 1 << 20)
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


@pytest.mark.parametrize("kind", ["s3", "oss"])
def test_what_is_not_allowed(kind: str, url: Callable[[str], str], tmp_path: Path) -> None:
    url(kind)
    target = open_target(f"{kind}://{FORBIDDEN}/m")
    (tmp_path / "file").write_bytes(b"x")
    for doing, ask in {
        "list it": lambda: target.files("1"),
        "look at 1/a": lambda: target.find("1/a"),
        "read 1/a": lambda: target.read("1/a"),
        "write 1/a": lambda: target.put("1/a", tmp_path / "file"),
        "list it ": lambda: target.children(),
        "remove 1/a": lambda: target.remove("1/a"),
    }.items():
        with pytest.raises(UserError) as caught:
            ask()
        # What a HEAD answers says no code.
        said = str(caught.value).replace(" (AccessDenied)", "")
        assert said.startswith(
            f"{kind}://{FORBIDDEN}/m: access denied: cannot {doing.strip()}; let the credentials in the env"
        )
        assert said.endswith(f" read, write, list and delete in {kind}://{FORBIDDEN}")


def test_a_store_that_is_not_there(url: Callable[[str], str], environment: pytest.MonkeyPatch) -> None:
    """S3's client would try again for a quarter of a minute."""
    place = url("oss")
    environment.setenv("OSS_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UserError) as caught:
        open_target(place).read("a")
    text = f"{place}: the store cannot be reached to read a; is the endpoint right, and the network up?"
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_ENDPOINT_URL_S3", "nonsense", "ValueError"),
        ("AWS_DEFAULT_REGION", "not a region", "InvalidRegionError"),
        ("AWS_PROFILE", "nobody", "ProfileNotFound"),
    ],
)
def test_settings_that_the_client_does_not_take(
    url: Callable[[str], str], environment: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    address = url("s3")
    environment.setenv(name, value)
    with pytest.raises(UserError) as error:
        open_target(address).files("")
    assert str(error.value) == (
        f"{address}: cannot list it: the client does not take its settings ({said}); are endpoint, region and profile"
        " in the environment right?"
    )


def test_what_arrives_otherwise_is_an_error(s3: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's call is replaced by one that sends something else: no server here loses a byte."""
    assert isinstance(s3, ObjectTarget)
    (tmp_path / "file").write_bytes(b"12345678")
    for sent, said in (
        (b"1234567", "has 7 bytes and not 8 after it was written"),
        (b"1234567x", "does not read back as"),
    ):
        monkeypatch.setattr(s3._fs, "put_file", lambda _, key, sent=sent: s3._fs.pipe_file(key, sent))
        with pytest.raises(UserError, match=said):
            s3.put("a", tmp_path / "file")


def test_a_tag_that_is_no_md5_is_no_error(s3: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of objects that a key service encrypts: what is there is read and compared."""
    (tmp_path / "file").write_bytes(b"12345678" * 300_000)
    monkeypatch.setattr(object_target, "_md5", lambda _: "0" * 32)
    assert s3.put("a", tmp_path / "file").size == 2_400_000


def test_the_size_from_which_ossfs_goes_in_parts() -> None:
    assert ossfs.base.SIMPLE_TRANSFER_THRESHOLD == object_target.OSS_PARTS_BYTES


def test_what_changes_while_it_is_read_is_an_error(s3: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(s3, ObjectTarget)
    s3.write("a", b"before")
    get = s3._fs.get_file

    def meanwhile(key: str, path: str) -> None:
        get(key, path)
        s3.write("a", b"behind")

    monkeypatch.setattr(s3._fs, "get_file", meanwhile)
    with pytest.raises(UserError, match="/a: changed while it was read; try again"):
        s3.get("a", tmp_path / "got")


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
