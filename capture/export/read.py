"""Reading any warm-up file, or a store: what kind it is, and what is in it."""

from __future__ import annotations

import struct
from importlib import import_module
from pathlib import Path
from typing import Final

import msgspec

from capture.dialects.base import Unreadable
from capture.dialects.table import EAS, stored_route
from capture.errors import UserError
from capture.export.entries import STORE, Contents, Entry, Severity
from capture.export.manifest import MANIFEST_NAME, MANIFEST_SUFFIX
from capture.export.read_requests import read_eas_bin, read_eas_txt, read_jsonl
from capture.export.read_tfrecord import read_tfrecord
from capture.export.tfrecord import WARMUP_PATH, masked_crc
from capture.levels import short
from capture.store.base import SERVERS, Store, open_store

#: What ``--format`` may say.
KINDS: Final = ("tfrecord", "eas-bin", "eas-txt", "jsonl", STORE)
#: Where files are fetched from first (docs/publish.md), by a module that is loaded only then.
URLS: Final = frozenset({"file", "s3", "oss", "gs"})
FETCHER: Final = ("replay.publishing.fetching", "fetched")
_BY_SUFFIX: Final = {".txt": "eas-txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".bin": "eas-bin"}
_SQLITE: Final = b"SQLite format 3\0"


def read_any(
    name: str, *, form: str = "", model: str | None = None, dialect: str = "", allow_shared: bool = False
) -> Contents:
    """What is in this file, directory or store, of one model if given. ``form`` says what it is; empty: found out.
    ``dialect`` says what kind of EAS service requests are for; empty: what a manifest says, or the TensorFlow
    processor. Raises UserError where it is not there, or is a store that cannot be opened; what is wrong inside a file
    is in the result."""
    if form and form not in KINDS:
        raise UserError(f"--format {form}: no such format; one of: {', '.join(KINDS)}")
    if is_store(name, form):
        return _read_store(name, model, allow_shared)
    if name.partition("://")[0].lower() in URLS and "://" in name:
        module, function = FETCHER
        with getattr(import_module(module), function)(name) as path:
            return _read_file(path, form, model, dialect)
    return _read_file(Path(name), form, model, dialect)


def _read_file(path: Path, form: str, model: str | None, dialect: str) -> Contents:
    if path.is_dir():
        if (path / WARMUP_PATH).is_file() and form in ("", "tfrecord"):
            path = path / WARMUP_PATH
        else:
            return _only(_read_directory(path, form, dialect), model)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    form = form or _kind(path, data, dialect)
    if form == "eas-bin":
        told = _described(path.parent / MANIFEST_NAME)
        contents = read_eas_bin([(path.name, data)], told.model, dialect or told.known_dialect)
    elif form == "eas-txt":
        told = _described(path.with_name(path.name + MANIFEST_SUFFIX))
        contents = read_eas_txt(data, told.model, dialect or told.known_dialect)
    else:
        contents = {"tfrecord": read_tfrecord, "jsonl": read_jsonl}[form](data)
    return _only(contents, model)


def is_store(name: str, form: str = "") -> bool:
    """Whether this is, or is said to be, a store. False where it cannot be opened."""
    if form == STORE or name.startswith(("sqlite:", *(f"{scheme}://" for scheme in SERVERS))):
        return True
    if form:
        return False
    try:
        with open(name, "rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False


def _kind(path: Path, data: bytes, dialect: str) -> str:
    """By the name, by the manifest beside it, by the first bytes; where nothing else tells, a dialect means a body, and
    no dialect TFRecord."""
    if found := _BY_SUFFIX.get(path.suffix):
        return found
    found = _described(path.with_name(path.name + MANIFEST_SUFFIX)).format
    if found in KINDS and found != STORE:
        return found
    if len(data) >= 12 and struct.unpack_from("<I", data, 8)[0] == masked_crc(data[:8]):
        return "tfrecord"
    if data[:1] == b"{" and b'"warmtap_jsonl"' in data.partition(b"\n")[0]:
        return "jsonl"
    if dialect:
        return "eas-bin"
    route = stored_route("eas", "")
    try:
        if route is not None and data:
            route.dialect.read(route, data)
            return "eas-bin"
    except Unreadable:
        pass
    return "tfrecord"


class _Described(msgspec.Struct):
    format: str = ""
    model: str = ""
    dialect: str | None = None

    @property
    def known_dialect(self) -> str:
        """The dialect; "" where none is told, or one of a newer warmtap."""
        return self.dialect if self.dialect in EAS else ""


def _described(manifest: Path) -> _Described:
    """What a manifest says; nothing where there is none that can be read."""
    try:
        return msgspec.json.decode(manifest.read_bytes(), type=_Described)
    except (OSError, msgspec.MsgspecError):
        return _Described()


def _read_directory(path: Path, form: str, dialect: str) -> Contents:
    files = sorted(path.glob("*.bin"))
    if form not in ("", "eas-bin") or not files:
        what = WARMUP_PATH if form == "tfrecord" else ".bin files"
        if (path / "saved_model.pb").exists():
            raise UserError(f"{path}: this model version has no warm-up file ({WARMUP_PATH})")
        raise UserError(f"{path}: is a directory without {what}; name a file")
    try:
        read = [(file.name, file.read_bytes()) for file in files]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    told = _described(path / MANIFEST_NAME)
    return read_eas_bin(read, told.model, dialect or told.known_dialect)


def _only(contents: Contents, model: str | None) -> Contents:
    """Leave out records of other models; those that name none stay."""
    if model is not None:
        contents.entries = [
            one for one in contents.entries if one.signature is None or one.signature.model in ("", model)
        ]
    return contents


def _read_store(name: str, model: str | None, allow_shared: bool) -> Contents:
    store = open_store(name, allow_shared=allow_shared)
    try:
        return read_store(store, model)
    finally:
        store.close()


def read_store(store: Store, model: str | None = None) -> Contents:
    """Every signature of every model version as an entry, most used first."""
    contents = Contents(STORE)
    for number, row in enumerate(store.signatures(model), 1):
        owner, digest = row.key.owner, row.key.digest
        entry = Entry(number, f"signature {short(digest)} of {owner}", owner.family, row.sample_size, digest)
        entry.signature, entry.shapes, entry.version = row.signature, row.sample_shapes, owner.version
        entry.hits, entry.outcome = row.hits, row.sample_outcome
        contents.entries.append(entry)
        if row.evicted or row.sample_at is None:
            why = "evicted: the store was full of signatures that are used more" if row.evicted else "none was kept"
            entry.remark(Severity.WARNING, f"no request of it is stored ({why}), so it cannot be exported")
        elif row.sample_outcome != "proven":
            entry.remark(Severity.WARNING, "was never seen to succeed (unproven), so it is not exported")
    if not contents.entries:
        contents.remark(Severity.WARNING, "no signature was captured; `capture ls --refused` says what was seen")
    return contents
