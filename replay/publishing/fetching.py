"""Warm-up files of an object store on the local disk, to be read: with the manifests beside them; gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from capture.errors import UserError
from capture.export.manifest import MANIFEST_NAME, MANIFEST_SUFFIX
from capture.export.tfrecord import WARMUP_PATH
from replay.publishing.addresses import Address, parse
from replay.publishing.target import Target, open_address

#: Bytes of all files of one place: a URL of something else is not fetched for nothing.
MAX_BYTES: Final = 2 << 30


@contextmanager
def fetched(url: str) -> Iterator[Path]:
    """A local copy of the file at a URL; of a version its warm-up file, of another prefix its ``.bin`` files. Raises
    UserError."""
    address = parse(url)
    if not address.path:
        raise UserError(f"{url}: names a bucket and no file in it")
    above = PurePosixPath(address.path)
    parent = str(above.parent).strip("/.") if address.scheme != "file" else str(above.parent)
    target = open_address(Address(address.scheme, address.bucket, parent, address.endpoint))
    names, top = _names(target, above.name)
    sizes = {one.path: one.size for name in names if (one := target.find(name)) is not None}
    if not sizes:
        raise UserError(f"{url}: no such file, and no warm-up file below it")
    if sum(sizes.values()) > MAX_BYTES:
        raise UserError(f"{url}: has {sum(sizes.values()) >> 20} MiB; name a warm-up file")
    with tempfile.TemporaryDirectory(prefix="warmtap-") as scratch:
        for name in sizes:
            path = Path(scratch) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            target.get(name, path)
        yield Path(scratch) / top


def _names(target: Target, name: str) -> tuple[list[str], str]:
    """What is to be fetched of a name, and what of it is to be read then."""
    if target.find(name) is not None:
        return [name, name + MANIFEST_SUFFIX, str(PurePosixPath(name).with_name(MANIFEST_NAME))], name
    warmup = f"{name}/{WARMUP_PATH}"
    if target.find(warmup) is not None:
        return [warmup, warmup + MANIFEST_SUFFIX], warmup
    files = [one.path for one in target.files(name) if "/" not in one.path.removeprefix(name + "/")]
    return [path for path in files if path.endswith(".bin") or path == f"{name}/{MANIFEST_NAME}"], name
