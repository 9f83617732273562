"""``capture coverage``."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import typer

from capture.commands.model_defs import told_defs
from capture.commands.options import DEFAULT_STORE, DialectOption, SavedModelOption, SharedOption, StoreOption
from capture.commands.tables import ago, print_table, printable
from capture.coverage import Coverage, Missing, calls_of, coverage
from capture.coverage_metrics import failed, judged
from capture.errors import UserError
from capture.export.entries import Contents, Severity
from capture.export.manifest import MANIFEST_NAME, MANIFEST_SUFFIX, own_files
from capture.export.read import read_any
from capture.export.table import FORMATS
from capture.export.tfrecord import WARMUP_PATH
from capture.forward import BLOCK_HOURS, CONDITION, Bound, bound, hold_out
from capture.savedmodel import read_saved_model
from capture.signature import ExecutorKey, SignatureDef, WireSignature
from capture.store.base import Store, StoredSignature, open_store
from capture.textfile import check_textfile, write_textfile

#: Exit codes: at least the share that was asked for; less; nothing usable to judge.
COVERED, NOT_COVERED, UNUSABLE = 0, 1, 2


class File(NamedTuple):
    """A warm-up file: the signatures of the records that a server loads, and the time up to which it could know of
    traffic, in seconds since the epoch, and where that time is from."""

    signatures: list[WireSignature]
    form: str
    since: float
    since_from: str


class Found(NamedTuple):
    """Everything that the command says. ``keys`` says what was compared."""

    model: str
    file: File
    keys: str
    coverage: Coverage
    bound: Bound


def coverage_command(
    warmup: Annotated[str, typer.Option("--warmup", help="The warm-up file, or a version directory.", metavar="FILE")],
    store: StoreOption = DEFAULT_STORE,
    model: Annotated[
        str | None, typer.Option("--model", help="Whose calls (EAS: the service); default: the only one there.")
    ] = None,
    model_version: Annotated[
        str | None, typer.Option("--model-version", help="Only calls that this version answered.", metavar="V")
    ] = None,
    saved_model: SavedModelOption = None,
    dialect: DialectOption = "",
    least: Annotated[
        float, typer.Option("--least", min=0, max=1, help="Exit with 1 below this share of calls; 1: any key missing.")
    ] = 1.0,
    block_hours: Annotated[
        int, typer.Option("--block-hours", min=1, help="Hours that count as one trial of the bound for each client.")
    ] = BLOCK_HOURS,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    prometheus: Annotated[
        Path | None,
        typer.Option(
            "--prometheus", help="Write metrics of this run too, for the node exporter: DIR/NAME.prom.", metavar="FILE"
        ),
    ] = None,
    allow_shared_store: SharedOption = False,
) -> None:
    """Say what share of production's calls a warm-up file covers, what is missing, explained, and a bound on what it
    will miss, from the traffic that came after it.

    Exit code 0: at least --least is covered. 1: less. 2: nothing usable to judge.
    """
    try:
        if prometheus is not None:
            check_textfile(prometheus)
        try:
            source = open_store(store, allow_shared=allow_shared_store)
            try:
                found = _judge(source, store, warmup, model, model_version, saved_model, dialect, block_hours)
            finally:
                source.close()
        except UserError:
            if prometheus is not None:
                write_textfile(prometheus, failed(warmup, time.time()))
            raise
        if prometheus is not None:
            judgement = found.coverage, found.bound, least, found.file.since
            write_textfile(prometheus, judged(warmup, found.model, model_version or "", *judgement, time.time()))
    except UserError as error:
        typer.echo(f"capture: error: {printable(str(error))}", err=True)
        raise typer.Exit(UNUSABLE) from None
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(document(found, least)), indent=2).decode())
    else:
        _print(found, least)
    raise typer.Exit(COVERED if found.coverage.reaches(least) else NOT_COVERED)


def _judge(
    source: Store,
    name: str,
    warmup: str,
    model: str | None,
    version: str | None,
    saved_model: Path | None,
    dialect: str,
    block_hours: int,
) -> Found:
    """Raises UserError."""
    file = _read(warmup, dialect)
    families = FORMATS[file.form].families
    rows = [row for row in source.signatures() if families is None or row.key.owner.family in families]
    model = model or _only_model(rows, file, name)
    rows = [row for row in rows if row.key.owner.model == model and version in (None, row.key.owner.version)]
    if not rows:
        where = model if version is None else f"{model} version {version}"
        raise UserError(
            f"store {name}: nothing captured of model {where} that {file.form} could hold; see `capture ls`"
        )
    defs, keys = _defs(source, model, version, saved_model or _model_of(Path(warmup)))
    # A body of EAS does not name its service, and that of a record is the store's.
    recorded = [replace(one, model=model) if not one.model else one for one in file.signatures]
    found = coverage(rows, [one for one in recorded if one.model == model], defs)
    if not found.calls:
        first = found.excluded[0]
        raise UserError(
            f"{saved_model or keys}: takes none of the {first.hits} calls of {first.signature}: {first.reason}"
        )
    since_hour = int(file.since // 3600)
    calls, excluded = calls_of(source.blocks(model, since_hour + 1), rows, found)
    held = hold_out(calls, file.since, time.time(), block_hours)
    return Found(model, file, keys, found, bound(held, source.counted(held.since_hour), excluded))


def _model_of(warmup: Path) -> Path | None:
    """The version directory whose own warm-up file this is."""
    directory = warmup if warmup.is_dir() else warmup.parent.parent
    own = directory / WARMUP_PATH
    there = warmup in (directory, own) and own.is_file() and (directory / "saved_model.pb").is_file()
    return directory if there else None


def _defs(
    source: Store, model: str, version: str | None, saved_model: Path | None
) -> tuple[Mapping[str, SignatureDef] | None, str]:
    """The SignatureDefs to compare by, None where nobody tells them, and what that is in words: of the directory, or
    what the model server said of this version, or of the highest. Raises UserError."""
    if saved_model is not None:
        return read_saved_model(saved_model).signatures, f"executor keys on {saved_model}"
    for told in told_defs(source, model):
        if version in (None, told.owner.version):
            return told.signatures, f"executor keys on {told.owner}, as the model server told its SignatureDefs"
    return None, "wire signatures (the model is not known: say --saved-model DIR to compare executor keys)"


def _read(name: str, dialect: str) -> File:
    """Raises UserError where the file cannot be read, or a server would not load it."""
    contents = read_any(name, dialect=dialect)
    if contents.form not in FORMATS:
        raise UserError(f"{name}: is a {contents.form}, no warm-up file")
    if contents.broken:
        raise UserError(f"{name}: {contents.broken}; `capture inspect` says more")
    for severity, place, text in contents.all_remarks():
        if severity is Severity.ERROR:
            raise UserError(f"{name}: {place + ': ' if place else ''}{text}; `capture inspect` says more")
    return File(_loaded(contents), contents.form, *_since(Path(name), contents.form))


def _loaded(contents: Contents) -> list[WireSignature]:
    """Of the records, those that the server loads: of several EAS files the first."""
    loads = FORMATS[contents.form].loads
    entries = contents.entries if loads is None or contents.form != "eas-bin" else contents.entries[:loads]
    return [entry.signature for entry in entries if entry.signature is not None]


class _Created(msgspec.Struct):
    created_at: str


def _since(path: Path, form: str) -> tuple[float, str]:
    """When the file was made: by its manifest if that lists these bytes, else by its own time."""
    if path.is_dir():
        path = path / WARMUP_PATH if (path / WARMUP_PATH).is_file() else min(path.glob("*.bin"))
    data = path.read_bytes()
    for beside in (path.with_name(path.name + MANIFEST_SUFFIX), path.with_name(MANIFEST_NAME)):
        try:
            described = beside.read_bytes()
        except OSError:
            continue
        if (own_files(described, form) or {}).get(path.name) == hashlib.sha256(data).hexdigest():
            created = msgspec.json.decode(described, type=_Created).created_at
            try:
                return datetime.fromisoformat(created).timestamp(), "manifest"
            except ValueError:
                raise UserError(f"{beside}: created_at is {created!r}, no time") from None
    return path.stat().st_mtime, "file time"


def _only_model(rows: list[StoredSignature], file: File, store: str) -> str:
    """The model that the records name, or the only one in the store."""
    named = sorted({one.model for one in file.signatures if one.model})
    known = named or sorted({row.key.owner.model for row in rows})
    if len(known) == 1:
        return known[0]
    if not known:
        raise UserError(f"store {store}: nothing captured that {file.form} could hold; `capture ls` says what was seen")
    what = "the file names" if named else f"store {store} holds"
    raise UserError(f"{what} {len(known)} models ({', '.join(known)}); choose one with --model")


def document(found: Found, least: float) -> dict[str, Any]:
    """The same as plain data."""
    result, held = found.coverage, found.bound.held
    return {
        "model": found.model,
        "compared": found.keys,
        "least": least,
        "covered": result.reaches(least),
        "share": result.share,
        "calls": result.calls,
        "calls_covered": result.calls_covered,
        "keys": result.keys_covered + len(result.missing),
        "keys_covered": result.keys_covered,
        "missing": [
            {
                "executor_key": {"feeds": one.key.feeds, "fetches": one.key.fetches}
                if isinstance(one.key, ExecutorKey)
                else None,
                "signatures": [signature.digest for signature in one.signatures],
                "line": str(one.signatures[0]),
                "hits": one.hits,
                "senders": dict(one.senders),
                "first_seen": one.first_seen,
                "explained": one.explained,
            }
            for one in result.missing
        ],
        "excluded": [
            {"signature": one.signature.digest, "line": str(one.signature), "hits": one.hits, "reason": one.reason}
            for one in result.excluded
        ],
        "useless_records": [{"line": str(one.signature), "reason": one.reason} for one in result.useless],
        "bound": {
            "share": found.bound.total,
            "condition": CONDITION,
            "missed_blocks_upper": held.upper,
            "lost_share": found.bound.lost,
            "excluded_share": found.bound.excluded,
            "blocks": held.blocks,
            "missed_blocks": held.missed,
            "recent_blocks": held.recent_blocks,
            "recent_missed_blocks": held.recent_missed,
            "block_hours": held.block_hours,
            "since": found.file.since,
            "since_from": found.file.since_from,
            "from": held.since_hour * 3600,
            "to": held.until_hour * 3600,
            "calls": held.calls,
            "calls_missed": held.calls_missed,
        },
    }


#: Senders that a table names.
_SENDERS: Final = 3


def _print(found: Found, least: float) -> None:
    result = found.coverage
    now = time.time()
    if result.missing:
        print_table(
            ("HITS", "FIRST SEEN", "SENDERS", "MISSING", "EXPLAINED"),
            ((str(one.hits), f"{ago(now - one.first_seen)} ago", _senders(one), _line(one), one.explained)
             for one in result.missing),
            right=frozenset({"HITS"}),
        )  # fmt: skip
    for excluded in result.excluded:
        print(f"excluded: {printable(str(excluded.signature))}: {excluded.hits} calls: {printable(excluded.reason)}")
    for useless in result.useless:
        print(f"useless: record {printable(str(useless.signature))}: {printable(useless.reason)}")
    keys = result.keys_covered + len(result.missing)
    verdict = "covered" if result.reaches(least) else "not covered"
    print(
        f"{verdict}: {result.calls_covered} of {result.calls} calls of {printable(found.model)}"
        f" ({percent(result.share)}), {result.keys_covered} of {keys} keys; compared by {found.keys}"
    )
    print(sentence(found.bound, found.file))


def _senders(one: Missing) -> str:
    shown = [f"{printable(name)} ({count})" for name, count in one.senders.most_common(_SENDERS)]
    return ", ".join(shown) + (f", {len(one.senders) - _SENDERS} more" if len(one.senders) > _SENDERS else "")


def _line(one: Missing) -> str:
    more = f" and {len(one.signatures) - 1} more" if len(one.signatures) > 1 else ""
    return printable(f"{one.signatures[0].digest[:15]} {one.signatures[0]}{more}")


def percent(share: float) -> str:
    """Rounded so that 100 % is said of everything only, and 0 % of nothing."""
    if 0 < share < 1:
        return f"{min(max(100 * share, 0.0001), 99.9999):.4g} %"
    return f"{100 * share:.0f} %"


def sentence(found: Bound, file: File) -> str:
    """The bound with its conditions on one line."""
    held = found.held
    stamp = datetime.fromtimestamp(held.since_hour * 3600, UTC).strftime("%Y-%m-%d %H:00Z")
    if not held.blocks:
        return (
            f"bound: none yet (100 %): no block of {held.block_hours} h has passed since {stamp}, the first whole hour"
            f" after the file (as of its {file.since_from}); wait, or say --block-hours"
        )
    return (
        f"bound: at most {percent(found.total)} of calls miss, {CONDITION} (each client and {held.block_hours} h"
        f" weighing the same; 95 %, Clopper-Pearson): {held.missed} of {held.blocks} blocks missed since {stamp}"
        f" (file as of its {file.since_from}), at most {percent(held.upper)}; lost or unreadable"
        f" {percent(found.lost)} and excluded {percent(found.excluded)} counted in full"
    )
