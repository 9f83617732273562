"""The records of any warm-up file, directory or store as they are sent to one server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from capture.errors import UserError
from capture.export.entries import Contents, Entry, as_sent
from capture.export.read import is_store, read_any
from capture.export.select import select
from capture.signature import WireSignature
from capture.store.base import Sample, open_store
from replay.addressing import Elsewhere, Unsendable
from replay.client import Outgoing


@dataclass(frozen=True, slots=True)
class Record:
    """One record. ``place`` says where it is; ``outgoing`` is None where it cannot be sent; ``fault`` says why."""

    number: int
    place: str
    identity: str
    line: str
    outgoing: Outgoing | None
    fault: str = ""
    #: It is for a server of another protocol.
    elsewhere: bool = False


def read_records(
    name: str,
    address: Callable[[Entry], Outgoing],
    *,
    form: str = "",
    model: str | None = None,
    dialect: str = "",
    unproven: bool = False,
    allow_shared: bool = False,
) -> list[Record]:
    """The records. Of a store: each signature once, most used first, if it was seen to succeed or ``unproven`` is said.
    ``address`` makes of each what is sent, or raises Unsendable. Raises UserError where the file is broken, or none of
    its records is for this server."""
    if is_store(name, form):
        contents = _of_store(name, model, unproven, allow_shared)
    else:
        contents = read_any(name, form=form, model=model, dialect=dialect)
        if contents.broken:
            raise UserError(f"{name}: {contents.broken}")
    records = [_record(entry, address) for entry in contents.entries]
    if records and all(record.outgoing is None for record in records):
        first, more = records[0], f" (and {len(records) - 1} more)" if len(records) > 1 else ""
        raise UserError(f"{name}: no record can be sent: {first.place} {first.fault}{more}")
    return records


def _record(entry: Entry, address: Callable[[Entry], Outgoing]) -> Record:
    line = "" if entry.signature is None else str(entry.signature)
    try:
        return Record(entry.number, entry.place, entry.identity, line, address(entry))
    except Unsendable as error:
        elsewhere = isinstance(error, Elsewhere)
        return Record(entry.number, entry.place, entry.identity, line, None, str(error), elsewhere)


def _of_store(name: str, model: str | None, unproven: bool, allow_shared: bool) -> Contents:
    store = open_store(name, allow_shared=allow_shared)
    try:
        contents = Contents("store")
        for record in select(store.signatures(model), families=None, unproven=unproven).records:
            sample = store.sample(record.key)
            if sample is not None:
                contents.entries.append(_entry(len(contents.entries) + 1, record.signature, sample))
        return contents
    finally:
        store.close()


def _entry(number: int, signature: WireSignature, sample: Sample) -> Entry:
    place = f"signature {signature.digest[:15]}"
    entry = Entry(number, place, signature.family, sample.size, signature.digest, signature)
    entry.request = as_sent(signature, sample.body, sample.wire_body, sample.path, sample.headers)
    return entry
