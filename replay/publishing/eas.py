"""Warm-up data of a PAI-EAS service: uploaded to OSS, and named in the service's JSON.

Sources: help.aliyun.com document 264606: ``warm_up_data_path`` at the top of the JSON is an OSS path of one file;
``metadata.rpc.warm_up_count`` is how often each request is sent, 5 where it is not said. Parameters below ``metadata``
are written as objects or with dots ("rpc.keepalive"): a file that has them with dots gets them so.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from capture.errors import UserError
from capture.export.files import write_atomically
from capture.export.manifest import MANIFEST_NAME, MANIFEST_SUFFIX, own_files
from replay.publishing.addresses import Address
from replay.publishing.json_text import JsonText, load, with_value
from replay.publishing.target import open_address

FORMS: Final = ("eas-bin", "eas-txt")
DATA_PATH: Final = "warm_up_data_path"
_COUNT: Final = "warm_up_count"


class _Record(msgspec.Struct):
    signature: str
    line: str
    hits: int


class _Coverage(msgspec.Struct):
    share: float | None = None


class _Manifest(msgspec.Struct):
    format: str
    model: str
    records: list[_Record]
    coverage: _Coverage


@dataclass(frozen=True, slots=True)
class Export:
    """An export of ``capture export``: its files, the one to be named first, each with its bytes; and its manifest's.
    ``share`` of the calls that were seen is covered by the first file, None where nothing was counted; ``lines`` are
    the signatures, most used first."""

    form: str
    service: str
    files: tuple[tuple[str, bytes], ...]
    manifest: tuple[str, bytes]
    share: float | None
    lines: tuple[str, ...]


def read_export(path: Path) -> Export:
    """Read an eas-bin directory or an eas-txt file. Raises UserError: no manifest beside it, another format, files that
    are not what the manifest says."""
    beside = path / MANIFEST_NAME if path.is_dir() else path.with_name(path.name + MANIFEST_SUFFIX)
    try:
        described = beside.read_bytes()
    except OSError as error:
        raise UserError(f"{beside}: {error.strerror}; give what `capture export --format eas-bin` wrote") from None
    try:
        told = msgspec.json.decode(described, type=_Manifest)
    except msgspec.MsgspecError:
        raise UserError(
            f"{beside}: is no manifest of warmtap; give what `capture export --format eas-bin` wrote"
        ) from None
    if told.format not in FORMS:
        raise UserError(f"{path}: is {told.format}, which EAS does not read; export it as {' or '.join(FORMS)}")
    files = []
    for name, sha256 in (own_files(described) or {}).items():
        file = path / name if path.is_dir() else path
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; export it again") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise UserError(f"{file}: is not what its manifest says; export it again")
        files.append((file.name, data))
    if not files:
        raise UserError(f"{beside}: names no file; export it again")
    lines = tuple(signature_line(one.line, one.hits) for one in told.records)
    return Export(told.format, told.model, tuple(files), (beside.name, described), told.coverage.share, lines)


def signature_line(line: str, hits: int) -> str:
    """A signature as people are told of it."""
    return f"{line} ({hits} hits)"


def upload(export: Export, to: Address) -> tuple[str, int]:
    """Bring all files there, the first one and the manifest last; those that are there already are left. The URL of the
    first file, and how many were written. Files of earlier exports stay: a service that runs may name one. Raises
    UserError."""
    target = open_address(to)
    written = 0
    for name, data in [*export.files[1:], export.files[0], export.manifest]:
        found = target.find(name)
        if found is None or found.size != len(data) or target.read(name) != data:
            target.write(name, data)
            written += 1
    return str(to.below(export.files[0][0])), written


def service_text(text: str, url: str, count: int | None) -> str:
    """A service's JSON that names its warm-up data; ``count`` None leaves the count as it is. Raises JsonText."""
    text = with_value(text, (DATA_PATH,), url)
    return text if count is None else with_value(text, _count_keys(load(text)), count)


def _count_keys(service: dict[str, Any]) -> tuple[str, ...]:
    metadata = service.get("metadata", {})
    if not isinstance(metadata, dict):
        raise JsonText("metadata is no object in it")
    dotted = f"rpc.{_COUNT}"
    nested = metadata.get("rpc")
    if isinstance(nested, dict) and _COUNT in nested:
        return ("metadata", "rpc", _COUNT)
    if dotted in metadata or (nested is None and any(key.startswith("rpc.") for key in metadata)):
        return ("metadata", dotted)
    return ("metadata", "rpc", _COUNT)


def read_service(path: Path) -> str:
    """A service's JSON. Raises UserError."""
    try:
        text = path.read_bytes().decode()
        load(text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8") from None
    except JsonText as error:
        raise UserError(f"{path}: {error}") from None
    return text


def write_service(path: Path, url: str, count: int | None) -> bool:
    """Name the warm-up data in a service's JSON file, which appears whole, with the mode that it has. False where it
    says so already. Raises UserError, OSError."""
    path = path.resolve()
    before = read_service(path)
    try:
        after = service_text(before, url, count)
    except JsonText as error:
        raise UserError(f"{path}: {error}; nothing was changed") from None
    if after == before:
        return False

    def check(data: bytes) -> None:
        if data != after.encode():
            raise UserError(f"{path}: does not read back as written; nothing was changed")

    write_atomically(path, after.encode(), check=check, mode=stat.S_IMODE(path.stat().st_mode))
    return True
