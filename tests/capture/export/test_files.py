from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from capture.export.base import ExportError
from capture.export.files import write_atomically


def refuse(data: bytes) -> None:
    raise ExportError("no")


def test_a_file_appears_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "f"
    seen = []
    write_atomically(path, b"data", check=seen.append)
    assert (path.read_bytes(), seen) == (b"data", [b"data"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["f"]


def test_another_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "f", b"", check=lambda _: None, mode=0o644)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o644


def test_a_failed_check_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(ExportError):
        write_atomically(path, b"new", check=refuse, keep_previous=True)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_the_previous_file_is_kept_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for data in (b"1", b"2", b"3"):
        write_atomically(path, data, check=lambda _: None, keep_previous=True)
    assert (path.read_bytes(), (tmp_path / "f.prev").read_bytes()) == (b"3", b"2")
    assert sorted(os.listdir(tmp_path)) == ["f", "f.prev"]


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "f", b"", check=lambda _: None)


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "f", b"", check=lambda _: None)
    assert os.listdir(tmp_path) == ["f"]
