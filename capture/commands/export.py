"""``capture export``."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Final

import typer

from capture.commands.model_defs import defs_for, model_defs
from capture.commands.options import (
    DEFAULT_STORE,
    BatchSizesOption,
    DialectOption,
    MetadataOption,
    SavedModelOption,
    SharedOption,
    StoreOption,
)
from capture.commands.scrubbing import ScrubOption, ScrubRuleOption, scrub_rules, scrubbed
from capture.commands.tables import print_table, printable
from capture.dialects.table import EAS
from capture.errors import UserError
from capture.export.base import ExportError, Format, OutFile, Record, Selection
from capture.export.batch import batch_sizes
from capture.export.eas_bin import EasBinFormat
from capture.export.files import PRIVATE_MODE, write_atomically
from capture.export.manifest import MANIFEST_NAME, MANIFEST_SUFFIX, covered_calls, manifest, own_files
from capture.export.samples import read_samples
from capture.export.scrub_rules import Rules
from capture.export.select import select
from capture.export.table import FORMATS
from capture.export.tfrecord import WARMUP_PATH, TFRecordFormat
from capture.levels import short
from capture.signature import SignatureDef
from capture.store.base import Sample, Store, StoredSignature, open_store

#: What runs records on TensorFlow: loaded by its name, as commands are, and only where it is asked for.
EXPANDER: Final = ("replay.expansion", "expand")


def export(
    form: Annotated[str, typer.Option("--format", help=f"One of: {', '.join(FORMATS)}.", metavar="FORMAT")],
    model: Annotated[str, typer.Option("--model", help="The model (EAS: the service).")],
    out: Annotated[
        Path, typer.Option("--out", help="The file to write (mode 0600); for eas-bin a directory.", metavar="PATH")
    ],
    store: StoreOption = DEFAULT_STORE,
    dialect: DialectOption = "",
    wire: Annotated[
        bool, typer.Option("--wire", help="eas-bin: the bytes as clients sent them, compressed where they compress.")
    ] = False,
    model_version: Annotated[
        str | None, typer.Option("--model-version", help="Only what this version served; default: all versions.")
    ] = None,
    saved_model: SavedModelOption = None,
    metadata: MetadataOption = None,
    sizes: BatchSizesOption = "",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Keep only the most used N; what is cut is in the manifest.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is no unchanged export; it stays as PATH.prev.")
    ] = False,
    scrub: ScrubOption = False,
    scrub_rule: ScrubRuleOption = None,
    allow_shared_store: SharedOption = False,
) -> None:
    """Write warm-up files from what was captured, most used first, with a manifest beside them.

    Without --saved-model every proven signature is written; with it, those that this version takes, one for each
    executor key. Nothing is written when anything is wrong.
    """
    if form not in FORMATS:
        raise UserError(f"--format {form}: no such format; one of: {', '.join(FORMATS)}")
    if wire and form != EasBinFormat.name:
        raise UserError(f"--wire: is for eas-bin; a {form} file holds requests as the server reads them")
    wanted = batch_sizes(sizes) if sizes else ()
    if wanted and form != TFRecordFormat.name:
        raise UserError(f"--batch-sizes: is for tfrecord; what the batch of a {form} request is, nothing says")
    if wanted and saved_model is None:
        raise UserError(
            "--batch-sizes: needs --saved-model DIR: the model says which inputs have a batch, and runs them"
        )
    rules = scrub_rules(scrub, scrub_rule)
    if wire and scrub:
        raise UserError("--wire: holds the bytes as clients sent them; leave it out, or --scrub")
    source = open_store(store, allow_shared=allow_shared_store)
    try:
        if out.resolve() == Path(store.removeprefix("sqlite:")).resolve():
            raise UserError(f"--out {out}: is the store itself; name another file")
        run(
            source,
            FORMATS[form],
            model=model,
            dialect=dialect,
            wire=wire,
            version=model_version,
            saved_model=saved_model,
            metadata=metadata,
            sizes=wanted,
            limit=limit,
            out=out,
            force=force,
            rules=rules,
        )
    finally:
        source.close()


def run(
    source: Store,
    form: Format,
    *,
    model: str,
    version: str | None,
    saved_model: Path | None,
    metadata: Path | None = None,
    limit: int | None,
    out: Path,
    sizes: tuple[int, ...] = (),
    force: bool = False,
    dialect: str = "",
    wire: bool = False,
    rules: Rules | None = None,
) -> None:
    """Choose, write, read back. Raises UserError."""
    rows = source.signatures(model)
    families = families_of(rows, form, model, dialect)
    rows = [row for row in rows if families is None or row.key.owner.family in families]
    defs = model_defs(saved_model, metadata, model)
    selection = select(
        rows,
        families=families,
        version=version,
        only_version=version is not None,
        defs=defs,
        limit=limit,
        refuses=form.refuses,
    )
    if not selection.records:
        raise ExportError(_nothing(source, form, model, version, selection))
    if form.max_records is not None and len(selection.records) > form.max_records:
        raise ExportError(
            f"{len(selection.records)} signatures, and {form.name} holds at most {form.max_records}: one more fails the"
            f" load of the model; say --limit {form.max_records} to keep the most used"
            + ("" if defs is not None else ", or --saved-model DIR to merge those that share an executor")
        )
    records = scrubbed(form, read_samples(source, form, selection, defs_for(defs, source, model)), rules)
    if not records:
        raise ExportError(_nothing(source, form, model, version, selection))
    expanded_on = ""
    if sizes and defs is not None and saved_model is not None:
        records, expanded_on = _expanded(records, selection, defs, sizes, saved_model, form, discreet=rules is not None)
    packed = sum(sample.wire_body is not None for _, sample in records)
    if wire:
        records = [(record, as_sent(sample)) for record, sample in records]
    files = form.write(records)
    described = manifest(
        warmtap=installed_version("warmtap"),
        created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        form=form,
        model=model,
        dialect="" if families is None or form.families is None else dialect_of(families),
        version=version,
        fitted=defs is not None,
        selection=selection,
        files=files if form.directory else [OutFile(out.name, files[0].data)],
        calls=covered_calls(selection, rows, form),
        counters=source.counters(),
        proof={"level": "none"},
        scrub_rules=None if rules is None else rules.written,
        note=_packed_note(packed, len(records), wire) if form.name == EasBinFormat.name else expanded_on,
    )
    try:
        if form.directory:
            where = _write_directory(form, out, files, records, described, force)
        else:
            where = _write_file(form, out, files[0], records, described, force)
    except OSError as error:
        raise ExportError(f"{out}: {error.strerror}; nothing was replaced") from None
    _report(selection, out, where)
    if rules is not None:
        ran = f"scrubbed; {expanded_on}, the others were not run" if expanded_on else "scrubbed, and not run"
        print(f"{ran}: capture verify says whether every record runs", file=sys.stderr)
    if defs is None and form.name == "tfrecord":
        print(
            "not fitted to a model version: one record that it refuses fails its load; --saved-model DIR leaves it out",
            file=sys.stderr,
        )


def families_of(rows: list[StoredSignature], form: Format, model: str, dialect: str) -> frozenset[str] | None:
    """Whose records to write; None for all. Raises UserError where one service was captured in several dialects, of
    which only one can be right for its warm-up data."""
    if dialect and form.families is not None and EAS[dialect].family not in form.families:
        raise UserError(f"--dialect {dialect}: {form.name} cannot hold its requests")
    if dialect:
        return frozenset({EAS[dialect].family})
    if form.families is None:
        return None
    found = sorted({row.key.owner.family for row in rows} & form.families)
    if len(found) > 1:
        names = ", ".join(dialect_of(frozenset({family})) for family in found)
        raise UserError(f"service {model} was captured in several dialects ({names}); say which with --dialect")
    return frozenset(found) or form.families


def dialect_of(families: frozenset[str]) -> str:
    """The dialect of an EAS service; "" for others."""
    return next((name for name, dialect in EAS.items() if families == {dialect.family}), "")


def as_sent(sample: Sample) -> Sample:
    """The sample with the client's bytes as its body."""
    return sample if sample.wire_body is None else replace(sample, body=sample.wire_body, wire_body=None)


def _packed_note(packed: int, count: int, wire: bool) -> str:
    if not packed:
        return ""
    kept = "as they were sent" if wire else "unpacked (--wire keeps them as they were sent)"
    return (
        f"clients sent {packed} of these {count} requests compressed, the files hold them {kept}; EAS does not document"
        " whether warm-up data passes the service's decompressor (metadata.rpc.decompressor)"
    )


def _expanded(
    records: list[tuple[Record, Sample]],
    selection: Selection,
    defs: Mapping[str, SignatureDef],
    sizes: tuple[int, ...],
    saved_model: Path,
    form: Format,
    *,
    discreet: bool,
) -> tuple[list[tuple[Record, Sample]], str]:
    """The records with these batch sizes, all that is new of them run on ``saved_model``, and a note for the manifest;
    ``selection`` is brought in line; ``discreet``: no error quotes a value. Raises ExportError where there are too
    many, UserError where they cannot be run."""
    module, function = EXPANDER
    done = getattr(import_module(module), function)(records, defs, sizes, saved_model, discreet=discreet)
    pairs = [(one.record, one.sample) for one in done.variants]
    if form.max_records is not None and len(pairs) > form.max_records:
        raise ExportError(
            f"{len(records)} signatures make {len(pairs)} records with these batch sizes, and {form.name} holds at most"
            f" {form.max_records}; say fewer sizes, or --limit to keep the most used signatures"
        )
    selection.records = [record for record, _ in pairs]
    selection.left_out = sorted([*selection.left_out, *done.left_out], key=lambda one: (-one.hits, one.key.digest))
    if not done.tensorflow:
        return pairs, ""
    return pairs, f"records whose batch was changed ran with TensorFlow {done.tensorflow} (level {done.level})"


def _nothing(source: Store, form: Format, model: str, version: str | None, selection: Selection) -> str:
    known = sorted(
        {
            row.key.owner.model
            for row in source.signatures()
            if form.families is None or row.key.owner.family in form.families
        }
    )
    where = f"model {model}" + (f" version {version}" if version else "")
    if selection.left_out:
        first = selection.left_out[0]
        return (
            f"nothing to export for {where}: {len(selection.left_out)} signatures left out; the first: {first.reason}"
        )
    if known:
        return f"nothing captured for {where}; {form.name} could be written for: {', '.join(known)}"
    return f"nothing captured that {form.name} could hold; `capture ls` and `capture ls --refused` say what was seen"


def _write_file(
    form: Format,
    out: Path,
    file: OutFile,
    records: list[tuple[Record, Sample]],
    described: bytes,
    force: bool,
) -> Path:
    if out.is_dir():
        raise ExportError(f"{out}: is a directory; --format {form.name} writes one file, name it")
    beside = out.with_name(out.name + MANIFEST_SUFFIX)
    foreign = _foreign(out, _listed(beside, form).get(out.name), force)
    mode = _mode(out)
    check = partial(_check_one, form, "", records)
    write_atomically(out, file.data, check=check, mode=mode, keep_previous=foreign)
    write_atomically(beside, described, check=_same(described), mode=mode)
    return beside


def _mode(out: Path) -> int:
    """Private; but where a server will read it with its model, as readable as the model is."""
    model = out.parent.parent / "saved_model.pb"
    if out.parent.name == Path(WARMUP_PATH).parent.name and model.is_file():
        return model.stat().st_mode & 0o666
    return PRIVATE_MODE


def _foreign(path: Path, sha256: str | None, force: bool) -> bool:
    """Whether ``path`` holds something that is not an unchanged export of ours. Raises ExportError without ``force``,
    and for what is no file at all."""
    if not path.exists() and not path.is_symlink():
        return False
    if path.is_symlink() or not path.is_file():
        raise ExportError(f"{path}: is no regular file; name another")
    if sha256 is not None and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return False
    if not force:
        raise ExportError(
            f"{path}: exists, and is no unchanged export of warmtap; name another, or say --force to replace it"
            f" (it stays as {path.name}.prev)"
        )
    return True


def _write_directory(
    form: Format,
    out: Path,
    files: list[OutFile],
    records: list[tuple[Record, Sample]],
    described: bytes,
    force: bool,
) -> Path:
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out}: is a file; --format {form.name} writes a directory, name one")
    out.mkdir(mode=0o700, exist_ok=True)
    beside = out / MANIFEST_NAME
    before = _listed(beside, form)
    foreign = [_foreign(out / file.name, before.get(file.name), force) for file in files]
    for place, file in enumerate(files):
        check = partial(_check_one, form, file.name, records[place : place + 1])
        write_atomically(out / file.name, file.data, check=check, keep_previous=foreign[place])
    write_atomically(beside, described, check=_same(described))
    # What an earlier export left here is not part of this one; what was changed since is not ours any more.
    for name in before.keys() - {file.name for file in files}:
        path = out / name
        if path.is_file() and not path.is_symlink() and hashlib.sha256(path.read_bytes()).hexdigest() == before[name]:
            path.unlink()
    return beside


def _check_one(form: Format, name: str, records: list[tuple[Record, Sample]], data: bytes) -> None:
    form.check([OutFile(name, data)], records)


def _same(described: bytes) -> partial[None]:
    return partial(_compare, described)


def _compare(described: bytes, data: bytes) -> None:
    if data != described:
        raise ExportError("the manifest does not read back as written")


def _listed(path: Path, form: Format) -> dict[str, str]:
    """SHA-256 by name of the files of an earlier export; empty where there was none. Raises ExportError for a manifest
    that is not ours."""
    try:
        described = path.read_bytes()
    except FileNotFoundError:
        return {}
    files = own_files(described, form.name)
    if files is None:
        raise ExportError(f"{path}: is no {form.name} manifest of warmtap; choose another place or remove it")
    return files


def _line(record: Record) -> str:
    return str(record.signature) + ("" if record.batch is None else f" batch {record.batch}")


def _report(selection: Selection, out: Path, beside: Path) -> None:
    print_table(
        ("SIGNATURE", "HITS", "LINE"),
        ((short(record.key.digest), str(record.hits), printable(_line(record))) for record in selection.records),
        right=frozenset({"HITS"}),
    )
    print(f"{len(selection.records)} records in {out}; manifest {beside}", file=sys.stderr)
    for one in selection.left_out:
        print(f"left out {short(one.key.digest)} ({one.hits} hits): {printable(one.reason)}", file=sys.stderr)
