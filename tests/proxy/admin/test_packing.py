"""An export goes out in pieces."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from proxy.admin.packing import PIECE, packed


def test_every_file_is_there_and_no_piece_is_large(tmp_path: Path) -> None:
    files = {"a": b"", "b/1": b"x" * 512, "b/2": bytes(range(256)) * 5000, "manifest.json": b"{}"}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    pieces = list(packed(tmp_path))
    assert max(map(len, pieces)) <= PIECE < len(files["b/2"])
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        found = {}
        for entry in tar.getmembers():
            file = tar.extractfile(entry)
            assert file is not None
            found[entry.name] = file.read()
            assert entry.mode == 0o600
    assert found == files


def test_a_name_that_is_longer_than_a_tar_of_old_holds(tmp_path: Path) -> None:
    (tmp_path / ("n" * 200)).write_bytes(b"x")
    with tarfile.open(fileobj=io.BytesIO(b"".join(packed(tmp_path)))) as tar:
        assert tar.getnames() == ["n" * 200]
