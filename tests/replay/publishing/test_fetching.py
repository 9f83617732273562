"""Warm-up files are read from URLs as from the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from capture.errors import UserError
from capture.export.base import Record
from capture.export.read import read_any
from capture.export.table import FORMATS
from capture.export.tfrecord import WARMUP_PATH
from replay.publishing import fetching
from replay.publishing.target import open_target
from tests.replay.publishing.conftest import KINDS
from tests.support.processes import capture
from tests.support.stores import body_of, key_of, sample, signature

pytestmark = pytest.mark.server


def tfrecord() -> bytes:
    one = signature(("a",))
    record = Record(key_of(one), one, 1, "proven", "")
    return FORMATS["tfrecord"].write([(record, sample(body_of(one)))])[0].data


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_and_a_version(kind: str, url: Callable[[str], str]) -> None:
    target = open_target(url(kind))
    address = url(kind) if kind == "file" else target.url
    target.write(f"8/{WARMUP_PATH}", tfrecord())
    target.write("8/variables/variables.data", b"is not fetched")
    for name in (f"{address}/8", f"{address}/8/{WARMUP_PATH}"):
        contents = read_any(name)
        assert (contents.form, [one.signature for one in contents.entries]) == ("tfrecord", [signature(("a",))])


def test_a_directory_of_bodies(url: Callable[[str], str]) -> None:
    target = open_target(url("s3"))
    one = signature(("a",), family="eas", model="rank")
    target.write("w/001-a.bin", body_of(one))
    target.write("w/deep/002-b.bin", body_of(one))
    contents = read_any(f"{target.url}/w")
    assert (contents.form, len(contents.entries)) == ("eas-bin", 1)


def test_what_is_not_there_or_too_large(url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    target = open_target(url("s3"))
    with pytest.raises(UserError, match="/gone: no such file, and no warm-up file below it"):
        read_any(f"{target.url}/gone")
    with pytest.raises(UserError, match="s3://models: names a bucket and no file in it"):
        read_any("s3://models")
    target.write("a.bin", b"12345")
    monkeypatch.setattr(fetching, "MAX_BYTES", 4)
    with pytest.raises(UserError, match=r"/a\.bin: has 0 MiB; name a warm-up file"):
        read_any(f"{target.url}/a.bin")


def test_by_the_command(url: Callable[[str], str], tmp_path: Path) -> None:
    target = open_target(url("s3"))
    target.write("warmup", tfrecord())
    (tmp_path / "warmup").write_bytes(tfrecord())
    done = capture("diff", f"{target.url}/warmup", str(tmp_path / "warmup"))
    assert (done.returncode, done.stderr) == (0, "")
