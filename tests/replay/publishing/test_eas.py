"""Warm-up data of an EAS service: what goes to OSS, and what its JSON says then."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from capture.errors import UserError
from capture.store.base import Batch
from replay.commands.publish import publish
from replay.publishing import eas, object_target
from replay.publishing.addresses import parse
from replay.publishing.eas import read_export, service_text, upload, write_service
from replay.publishing.target import open_target
from tests.support.processes import capture
from tests.support.stores import add, filled, signature

pytestmark = pytest.mark.server

SERVICE = """{
  "name": "rank",
  "model_path": "oss://models/rank.tar.gz", "processor": "tensorflow_cpu_2.3",
  "metadata": {
    "instance": 2,
    "rpc": {"keepalive": 5000}
  }
}
"""


@pytest.fixture(scope="module")
def an_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three signatures of service ``rank``; the first has 6 of 10 calls."""
    place = tmp_path_factory.mktemp("export")
    batch = Batch("run")
    for output, hits in (("a", 6), ("b", 3), ("c", 1)):
        add(batch, signature((output,), family="eas", model="rank"), proven=hits)
    filled(place / "store", batch).close()
    arguments = ("--format", "eas-bin", "--model", "rank", "--store", str(place / "store"), "--out", str(place / "out"))
    done = capture("export", *arguments)
    assert done.returncode == 0, done.stderr
    return place / "out"


@pytest.fixture
def exported(an_export: Path, tmp_path: Path) -> Path:
    shutil.copytree(an_export, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def service(tmp_path: Path) -> Path:
    path = tmp_path / "service.json"
    path.write_text(SERVICE)
    path.chmod(0o640)
    return path


def test_the_command(
    exported: Path, service: Path, url: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    place = url("oss")
    arguments = ("publish", str(exported), "--to", place, "--service-json", str(service), "--warm-up-count", "3")
    done = capture(*arguments)
    assert done.returncode == 0, done.stderr
    first = next(exported.glob("001-*.bin"))
    assert service.read_text() == SERVICE.replace(
        '{"keepalive": 5000}\n  }\n',
        f'{{"keepalive": 5000, "warm_up_count": 3}}\n  }},\n  "warm_up_data_path": "{place}/{first.name}"\n',
    )
    assert stat.S_IMODE(service.stat().st_mode) == 0o640
    target = open_target(place)
    assert {one.path for one in target.files("")} == {path.name for path in exported.iterdir()}
    assert target.read(first.name) == first.read_bytes()
    lines = done.stdout.splitlines()
    assert lines[0] == f"{service}: warm_up_data_path is {place}/{first.name} now; deploy it"
    assert lines[1] == "it covers 60.0% of the calls that were seen"
    assert lines[2] == "2 signatures are not in that file, and build on their first request:"
    assert [line.rpartition(" (")[2] for line in lines[3:5]] == ["3 hits)", "1 hits)"]
    assert f"capture replay {exported} --target http://HOST:PORT --model rank --gate PORT" in lines[5]
    publish(exported, place, service, 3)
    again = capsys.readouterr()
    assert again.out.splitlines()[0] == f"{service}: names {place}/{first.name} already"
    assert f"3 files at {place}, 0 of them or their manifest written" in again.err


def test_a_text_service_has_one_file(tmp_path: Path, url: Callable[[str], str]) -> None:
    text = tmp_path / "warmup.txt"
    text.write_text("one\ntwo\n")
    manifest = {
        "manifest_version": 1,
        "warmtap": "0",
        "format": "eas-txt",
        "model": "search",
        "records": [{"signature": "w1-0", "line": "predict search", "hits": 2}],
        "coverage": {"share": None},
        "files": [{"name": "warmup.txt", "sha256": eas.hashlib.sha256(text.read_bytes()).hexdigest()}],
    }
    (tmp_path / "warmup.txt.manifest.json").write_text(json.dumps(manifest))
    place = parse(url("oss"))
    assert upload(read_export(text), place) == (f"{place}/warmup.txt", 2)
    assert open_target(str(place)).read("warmup.txt") == b"one\ntwo\n"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("{}", '{"rpc": {"warm_up_count": 3}}'),
        ('{"rpc.keepalive": 1}', '{"rpc.keepalive": 1, "rpc.warm_up_count": 3}'),
        ('{"rpc.warm_up_count": 5}', '{"rpc.warm_up_count": 3}'),
        ('{"rpc.keepalive": 1, "rpc": {}}', '{"rpc.keepalive": 1, "rpc": {"warm_up_count": 3}}'),
        ('{"rpc": {"warm_up_count": 5}, "rpc.batching": true}', '{"rpc": {"warm_up_count": 3}, "rpc.batching": true}'),
    ],
)
def test_the_count_is_written_as_the_file_writes_such_things(metadata: str, expected: str) -> None:
    text = '{"warm_up_data_path": "x", "metadata": %s}'
    assert service_text(text % metadata, "x", 3) == text % expected


@pytest.mark.parametrize("step", range(5))
def test_killed_at_any_step_the_json_names_a_file_that_is_there(
    step: int, exported: Path, service: Path, url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end without a clearing-up, before each write: three files, the manifest, the JSON."""
    place = parse(url("oss"))
    target = open_target(str(place))
    writes = 0

    class Killed(BaseException):
        pass

    def published() -> None:
        address, _ = upload(read_export(exported), place)
        write_service(service, address, None)

    def until(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            nonlocal writes
            writes += 1
            if writes > step:
                raise Killed
            return function(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(object_target.ObjectTarget, "write", until(object_target.ObjectTarget.write))
        patch.setattr(eas, "write_atomically", until(eas.write_atomically))
        with pytest.raises(Killed):
            published()
    assert service.read_text() == SERVICE
    published()
    named = json.loads(service.read_text())["warm_up_data_path"]
    assert target.read(named.rpartition("/")[2]) == next(exported.glob("001-*.bin")).read_bytes()


def test_what_cannot_be_published(exported: Path, service: Path, tmp_path: Path, url: Callable[[str], str]) -> None:
    place = url("oss")

    def said(path: Path, to: str = place) -> str:
        with pytest.raises(UserError) as caught:
            publish(path, to, service)
        return str(caught.value)

    assert said(tmp_path).endswith("No such file or directory; give what `capture export --format eas-bin` wrote")
    assert said(exported, "s3://b/x") == "--to s3://b/x: EAS reads warm_up_data_path from OSS; say oss://BUCKET/PATH"
    service.write_text("{")
    assert said(exported).startswith(f"{service}: is no JSON document")
    service.write_text('{"name": "rank", "metadata": []}')
    next(exported.glob("002-*.bin")).write_bytes(b"another")
    assert said(exported).endswith(".bin: is not what its manifest says; export it again")
    assert open_target(place).files("") == []


def test_another_services_json_is_warned_of(
    exported: Path, service: Path, url: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    service.write_text('{"name": "other"}')
    publish(exported, url("oss"), service)
    told = f"warning: {service} is of service other, and the export of rank: is it a group?"
    assert told in capsys.readouterr().err
    assert "warm_up_data_path" in service.read_text()


def test_a_tfrecord_is_not_for_eas(tmp_path: Path) -> None:
    described = {
        "manifest_version": 1,
        "warmtap": "0",
        "format": "tfrecord",
        "model": "m",
        "records": [],
        "coverage": {},
    }
    (tmp_path / "file.manifest.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="is tfrecord, which EAS does not read; export it as eas-bin or eas-txt"):
        read_export(tmp_path / "file")
