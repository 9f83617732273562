"""A bucket of an object store as a place of files, through fsspec: S3, Alibaba OSS, Google Cloud Storage.

An object appears whole or not at all, so nothing is renamed. Listings are never taken from a cache: another job may
have written. Credentials are found by the clients in the environment, and nowhere else.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from capture.errors import UserError
from replay.publishing.addresses import SCHEMES, Address
from replay.publishing.store_errors import CREDENTIALS, no_bucket, told
from replay.publishing.target import Found

_BLOCK: Final = 1 << 20
#: From this size on oss2 sends and fetches in parts (oss2.defaults.multiget_threshold, which ossfs goes by).
OSS_PARTS_BYTES: Final = 100 << 20
#: Tags of content, in the order in which they are looked for; a date tells where nothing else does (ossfs).
_TAGS: Final = ("ETag", "etag", "md5Hash", "LastModified", "mtime")


class ObjectTarget:
    """A bucket, or what is below a path in it."""

    def __init__(self, address: Address) -> None:
        self.url = str(address)
        self._address = address
        self._root = "/".join(part for part in (address.bucket, address.path) if part)
        self._fs = _file_system(address, os.environ)

    def children(self, below: str = "") -> list[str]:
        entries = self._listed(below)
        return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if _is_directory(entry))

    def _listed(self, below: str) -> list[dict[str, Any]]:
        key = self._key(below)
        self._fs.invalidate_cache()
        with self._told("list it"):
            try:
                found: list[dict[str, Any]] = self._fs.ls(key, detail=True)
            except FileNotFoundError as error:
                # A prefix with nothing below it is an empty directory; a bucket that is not there is not.
                if error.__cause__ is not None or error.args == (f"b/{self._address.bucket}/o",):
                    raise
                return []
            if not found:
                self._check_listing(key)
            return found

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """For what needs no key to be there: what is missing then is the bucket."""
        try:
            with told(self._address, doing):
                yield
        except FileNotFoundError:
            raise no_bucket(self._address) from None

    def files(self, below: str) -> list[Found]:
        self._fs.invalidate_cache()
        with self._told("list it"):
            entries: dict[str, dict[str, Any]] = self._fs.find(self._key(below), detail=True)
            if not entries:
                self._check_listing(self._key(below))
        found = [
            _found(name.strip("/").removeprefix(self._root).strip("/"), entry)
            for name, entry in entries.items()
            if entry.get("type") == "file" and not name.endswith("/")
        ]
        return sorted(found, key=lambda one: one.path)

    def find(self, path: str) -> Found | None:
        try:
            with told(self._address, f"look at {path}"):
                self._fs.invalidate_cache()
                entry: dict[str, Any] = self._fs.info(self._key(path))
        except FileNotFoundError:
            with told(self._address, f"look at {path}"):
                self._check_listing(self._key(path))
            return None
        return None if _is_directory(entry) else _found(path, entry)

    def _check_listing(self, key: str) -> None:
        """ossfs takes a listing that is refused for an empty one; what raises here tells them apart."""
        if self._address.scheme == "oss":
            bucket, _, prefix = key.partition("/")
            self._fs._call_oss("list_objects", prefix=prefix, max_keys=1, bucket=bucket)

    def read(self, path: str) -> bytes | None:
        try:
            with told(self._address, f"read {path}"):
                data: bytes = self._fs.cat_file(self._key(path))
        except FileNotFoundError:
            return None
        return data

    def write(self, path: str, data: bytes) -> None:
        with self._told(f"write {path}"):
            self._fs.pipe_file(self._key(path), data)
        if self.read(path) != data:
            raise UserError(f"{self.url}/{path}: does not read back as written; try again")

    def put(self, path: str, source: Path) -> Found:
        size = source.stat().st_size
        with self._told(f"write {path}"):
            self._move(self._fs.put_file, os.fspath(source), self._key(path), size)
        found = self._checked(path, size)
        # Of an object that was sent in one piece the tag is the MD5, unless a key service encrypted it.
        if _is_md5(found.tag) and found.tag != _md5(source):
            self._compare(path, source)
        return found

    def get(self, path: str, destination: Path) -> None:
        before = self._checked(path)
        with told(self._address, f"read {path}"):
            self._move(self._fs.get_file, self._key(path), os.fspath(destination), before.size)
        if destination.stat().st_size != before.size or self._checked(path).tag != before.tag:
            raise UserError(f"{self.url}/{path}: changed while it was read; try again")

    def copy(self, source: str, destination: str) -> Found:
        before = self._checked(source)
        with told(self._address, f"write {destination}"):
            self._fs.cp_file(self._key(source), self._key(destination))
        return self._checked(destination, before.size)

    def remove(self, path: str) -> None:
        try:
            with told(self._address, f"remove {path}"):
                self._fs.rm_file(self._key(path))
        except FileNotFoundError:
            return

    def _move(self, move: Callable[..., object], source: str, destination: str, size: int) -> None:
        """Send or fetch a file. For big ones oss2 notes its parts in the user's home, where a service may have none and
        nothing clears up: they are noted in a directory of their own."""
        if self._address.scheme != "oss" or size < OSS_PARTS_BYTES:
            move(source, destination)
            return
        from oss2.resumable import make_download_store, make_upload_store

        make = make_upload_store if move == self._fs.put_file else make_download_store
        with tempfile.TemporaryDirectory(prefix="warmtap-") as noted:
            move(source, destination, store=make(noted))

    def _key(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _checked(self, path: str, size: int | None = None) -> Found:
        found = self.find(path)
        if found is None:
            raise UserError(f"{self.url}/{path}: is not there; another job may have removed it; try again")
        if size is not None and found.size != size:
            raise UserError(f"{self.url}/{path}: has {found.size} bytes and not {size} after it was written; try again")
        return found

    def _compare(self, path: str, source: Path) -> None:
        with (
            told(self._address, f"read {path}"),
            self._fs.open(self._key(path), "rb") as there,
            source.open("rb") as here,
        ):
            while True:
                sent = here.read(_BLOCK)
                if there.read(len(sent) or 1) != sent:
                    raise UserError(f"{self.url}/{path}: does not read back as {source}; try again")
                if not sent:
                    return


def _file_system(address: Address, environment: Mapping[str, str]) -> Any:
    """fsspec's file system. Raises UserError."""
    scheme = address.scheme
    made: dict[str, Any] = {"skip_instance_cache": True}
    if scheme == "oss":
        made |= _oss(address, environment)
    if scheme == "gs":
        made |= {"token": "anon" if environment.get("STORAGE_EMULATOR_HOST") else "google_default"}
    module, name = {
        "s3": ("s3fs", "S3FileSystem"),
        "oss": ("ossfs", "OSSFileSystem"),
        # The package's own class looks up over gRPC what kind of bucket it is, and waits a minute where it cannot.
        "gs": ("gcsfs.core", "GCSFileSystem"),
    }[scheme]
    try:
        client = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        text = f"{address}: needs {error.name}, which is not installed: pip install 'warmtap[{SCHEMES[scheme]}]'"
        raise UserError(text) from None
    with told(address, "open it"):
        return client(**made)


def _oss(address: Address, environment: Mapping[str, str]) -> dict[str, Any]:
    """What oss2's own credentials provider reads; ossfs reads the endpoint alone."""
    key, secret = environment.get("OSS_ACCESS_KEY_ID"), environment.get("OSS_ACCESS_KEY_SECRET")
    if not key or not secret:
        raise UserError(f"{address}: no credentials; set {CREDENTIALS['oss']}")
    endpoint = f"https://{address.endpoint}" if address.endpoint else environment.get("OSS_ENDPOINT")
    if not endpoint:
        raise UserError(f"{address}: no endpoint; set OSS_ENDPOINT, such as https://oss-cn-hangzhou.aliyuncs.com")
    return {"key": key, "secret": secret, "token": environment.get("OSS_SESSION_TOKEN"), "endpoint": endpoint}


def _is_directory(entry: Mapping[str, Any]) -> bool:
    return entry.get("type") == "directory"


def _found(path: str, entry: Mapping[str, Any]) -> Found:
    tag = next((str(entry[name]) for name in _TAGS if entry.get(name)), "")
    return Found(path, int(entry.get("size") or 0), f"{tag.strip(chr(34))}")


def _is_md5(tag: str) -> bool:
    return len(tag) == 32 and all(letter in "0123456789abcdef" for letter in tag.lower())


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
