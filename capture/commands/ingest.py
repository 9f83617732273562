"""``capture ingest FILE...``: requests that were recorded elsewhere."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from capture.admission import Admission
from capture.admission_told import learn
from capture.commands.options import DEFAULT_STORE, SharedOption, StoreOption
from capture.commands.scrubbing import ScrubOption, ScrubRuleOption, say_unused, scrub_rules
from capture.commands.tables import printable
from capture.config import Limits, ListenerConfig
from capture.dialects.table import BY_NAME
from capture.errors import UserError
from capture.export.scrub_rules import Rules
from capture.export.tfrecord import masked_crc
from capture.ingest.har import read_har
from capture.ingest.lines import read_line
from capture.ingest.predictions import read_predictions
from capture.ingest.recorded import Recorded, Recorder, Unread
from capture.levels import Levels
from capture.pipeline import Pipeline
from capture.scrubbing import UNSCRUBBED
from capture.store.base import Store, open_store
from capture.store_pace import bounds_of

#: What ``--format`` may say.
FORMATS: Final = ("har", "jsonl", "tfrecord")
_BY_SUFFIX: Final = {".har": "har", ".jsonl": "jsonl", ".ndjson": "jsonl", ".tfrecord": "tfrecord"}
#: Records and bytes after which what was read is written; and seconds between two words of progress.
WRITE_RECORDS: Final = 5000
WRITE_BYTES: Final = 32 << 20
PROGRESS_SECONDS: Final = 5.0
#: As ``capture.refresh_after`` by default.
REFRESH_SECONDS: Final = 86400.0
#: What may become of a request, in the order of the summary.
WORDS: Final = ("proven", "unproven", "refused", "ignored", "undecodable", "oversized", "unread")
#: Name of what was ingested in the store, with the bytes from the start of a file and their SHA-256.
_RUN: Final = "ingest"
_PIECE: Final = 1 << 20


def ingest(
    files: Annotated[
        list[Path], typer.Argument(help="HAR, JSON lines, or TFRecord of PredictionLog.", metavar="FILE...")
    ],
    store: StoreOption = DEFAULT_STORE,
    form: Annotated[
        str,
        typer.Option(
            "--format", help=f"What they are, where it cannot be told: {', '.join(FORMATS)}.", metavar="FORMAT"
        ),
    ] = "",
    dialect: Annotated[
        str, typer.Option(help="How requests are read that do not say it: auto, or a dialect's name.", metavar="NAME")
    ] = "auto",
    service: Annotated[str, typer.Option(help="EAS service, where the path does not tell it.", metavar="NAME")] = "",
    version: Annotated[
        str, typer.Option("--model-version", help="Model version, where nothing else tells it.", metavar="V")
    ] = "",
    level: Annotated[
        str, typer.Option("--level", help="What tells records apart beside names, as capture.level.", metavar="LEVEL")
    ] = "names",
    scrub: ScrubOption = False,
    scrub_rule: ScrubRuleOption = None,
    again: Annotated[bool, typer.Option("--again", help="Count what was ingested before once more.")] = False,
    allow_shared_store: SharedOption = False,
) -> None:
    """Read requests that were recorded elsewhere into a store, as if they had passed.

    A response with success makes a request proven; without a response it is unproven. What a file begins with and was
    ingested before is passed over, so that a log that has grown, or a run that was interrupted, goes on where it ended.

    With --scrub the store gets no value that was recorded; what cannot be scrubbed is counted and not kept.

    Exit code 0: all was read. 1: something could not be read, or not be scrubbed; it is named on standard error, and
    the rest is stored.
    """
    if form and form not in FORMATS:
        raise UserError(f"--format {form}: no such format; one of: {', '.join(FORMATS)}")
    if dialect not in ("auto", *BY_NAME):
        raise UserError(f"--dialect {dialect}: no such dialect; one of: auto, {', '.join(BY_NAME)}")
    try:
        levels = Levels(level)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    rules = scrub_rules(scrub, scrub_rule)
    listener = ListenerConfig("", dialect, service, version)
    opened = open_store(store, create=True, allow_shared=allow_shared_store)
    try:
        job = _Job(opened, listener, again, levels, rules)
        for file in files:
            job.read(file, form)
    finally:
        opened.close()
    if rules is not None:
        say_unused(rules)
    failed = []
    if job.unread:
        failed.append(f"{job.unread} of {job.unread + job.records} requests could not be read; they are named above")
    if job.unscrubbed:
        failed.append(
            f"{job.unscrubbed.total()} requests could not be scrubbed: they are counted, and not kept"
            f" ({next(iter(job.unscrubbed))}); mend it, and ingest them into a new store"
        )
    if failed:
        raise UserError("; ".join(failed))


class _Job:
    """All files of one call."""

    def __init__(
        self, store: Store, listener: ListenerConfig, again: bool, levels: Levels, rules: Rules | None
    ) -> None:
        limits = Limits()
        self._store = store
        self._again = again
        self._counters: Counter[str] = Counter()
        self.records = self.unread = 0
        #: Requests that could not be scrubbed, by what and why.
        self.unscrubbed: Counter[str] = Counter()
        admission = Admission(
            signatures_per_version=limits.signatures_per_version,
            new_signatures_per_hour=limits.new_signatures_per_hour,
            store_bytes=limits.store_bytes,
            held_out_requests=limits.held_out_requests,
            held_out_bytes=limits.held_out_bytes,
            held_out_seconds=limits.held_out_seconds,
            refresh_after=REFRESH_SECONDS,
        )
        admission.load(store.signatures(), store.held_out_index())
        self._admission = admission
        self._bounds = bounds_of(limits, REFRESH_SECONDS) if store.shared else None
        now = time.time()
        self._pipeline = Pipeline(
            run=_RUN,
            name=f"{time.time_ns():x}-{os.getpid():x}",
            listeners=(listener,),
            admission=admission,
            request_bytes=limits.request_bytes,
            open_bytes=limits.open_bytes,
            count=self._count,
            draw=random.random,
            levels=levels,
            scrub=rules,
        )
        self._recorder = Recorder(
            self._pipeline, listener, request_bytes=limits.request_bytes, open_bytes=limits.open_bytes, now=now
        )

    def _count(self, name: str, number: int) -> None:
        self._counters[name] += number

    def read(self, file: Path, form: str) -> None:
        """One file, written to the store as it is read."""
        data = _bytes(file)
        form = form or _kind(file, data)
        begin = 0 if self._again else _ingested(data, self._store.runs())
        if begin:
            part = "it was" if begin == len(data) else f"the first {begin} of {len(data)} bytes were"
            print(f"{file}: {part} ingested before, and passed over", file=sys.stderr)
        said: Counter[str] = Counter()
        digest, hashed, waiting = hashlib.sha256(), 0, 0
        spoke = time.monotonic()
        view, end = memoryview(data), begin
        for end, found in _records(data, form, begin):
            waiting += 1
            if isinstance(found, Unread):
                self._name(file, found)
                said["unread"] += 1
            else:
                said[self._add(file, found)] += 1
            # An archive is one document: it is written whole, or read anew.
            enough = waiting >= WRITE_RECORDS or self._pipeline.batch.payload_bytes >= WRITE_BYTES
            if enough and form != "har":
                digest.update(view[hashed:end])
                hashed, waiting = end, 0
                self._write(end, digest.hexdigest())
            if time.monotonic() - spoke > PROGRESS_SECONDS:
                spoke = time.monotonic()
                print(f"{file}: {said.total()} requests, {100 * end // len(data)} % read", file=sys.stderr)
        if waiting:
            digest.update(view[hashed:end])
            self._write(end, digest.hexdigest())
        told = ", ".join(f"{word} {said[word]}" for word in WORDS if said[word])
        print(f"{file}: requests {said.total()}{told and ': ' + told}")

    def _add(self, file: Path, record: Recorded) -> str:
        added = self._recorder.add(record)
        if not added.readable:
            self._name(file, Unread(record.place, f"{added.outcome}: {added.reason}"))
        else:
            self.records += 1
        return added.outcome

    def _name(self, file: Path, found: Unread) -> None:
        self.unread += 1
        print(f"{file}: {found.place}: {printable(found.why)}", file=sys.stderr)

    def _write(self, size: int, digest: str) -> None:
        """All or nothing, and with it that the file was ingested up to here; in a fleet's store the latter comes last,
        so that who is killed in between reads some of it again."""
        batch = self._pipeline.take()
        for (_, model, outcome, reason), count in batch.refusals.items():
            if outcome == UNSCRUBBED:
                self.unscrubbed[f"{model}: {reason}"] += count
        suffix = f" again {time.time_ns()}" if self._again else ""
        batch.run = f"{_RUN} {size} {digest}{suffix}"
        batch.updated_at = time.time()
        batch.counters = {"requests_observed": 0, **self._counters}
        batch.bounds = self._bounds
        if (told := self._store.apply(batch)) is not None:
            learn(self._admission, told, batch.updated_at)
        self._counters.clear()


def _bytes(file: Path) -> mmap.mmap | bytes:
    """What is in it, without reading it into memory. Raises UserError."""
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    if not size:
        raise UserError(f"{file}: is empty")
    return data


def _kind(file: Path, data: mmap.mmap | bytes) -> str:
    """By its name, by its first bytes. Raises UserError."""
    if found := _BY_SUFFIX.get(file.suffix):
        return found
    if len(data) >= 12 and int.from_bytes(data[8:12], "little") == masked_crc(data[:8]):
        return "tfrecord"
    if data[:_PIECE].lstrip()[:1] == b"{":
        line = data[: data.find(b"\n") if data.find(b"\n") >= 0 else len(data)]
        return "jsonl" if isinstance(read_line(1, line), Recorded) else "har"
    raise UserError(f"{file}: cannot tell what it is; give --format {'|'.join(FORMATS)}")


def _ingested(data: mmap.mmap | bytes, runs: Iterable[str]) -> int:
    """Bytes from the start that were ingested before."""
    known: dict[int, set[str]] = {}
    for run in runs:
        word, _, rest = run.partition(" ")
        length, _, digest = rest.partition(" ")
        if word == _RUN and length.isdigit() and int(length) <= len(data):
            known.setdefault(int(length), set()).add(digest)
    found, at, so_far = 0, 0, hashlib.sha256()
    for size in sorted(known):
        while at < size:
            piece = data[at : min(size, at + _PIECE)]
            so_far.update(piece)
            at += len(piece)
        if so_far.hexdigest() in known[size]:
            found = size
    return found


def _records(data: mmap.mmap | bytes, form: str, begin: int) -> Iterator[tuple[int, Recorded | Unread]]:
    """Each record behind the first ``begin`` bytes, and where it ends."""
    if form == "har":
        for found in () if begin == len(data) else read_har(data[:]):
            yield len(data), found
    elif form == "tfrecord":
        for end, found in read_predictions(data[:]):
            if end > begin:
                yield end, found
    else:
        yield from _lines(data, begin)


def _lines(data: mmap.mmap | bytes, begin: int) -> Iterator[tuple[int, Recorded | Unread]]:
    at, number = 0, 0
    while at < len(data):
        newline = data.find(b"\n", at)
        end = len(data) if newline < 0 else newline + 1
        number += 1
        if end > begin and (found := read_line(number, data[at:end].rstrip(b"\r\n"))) is not None:
            # A last line without an end may be half written: it is read again when the log has grown.
            yield (at if newline < 0 and isinstance(found, Unread) else end), found
        at = end
