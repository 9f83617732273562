"""``capture ls``."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import msgspec
import typer

from capture.commands.options import DEFAULT_STORE, ModelOption, SharedOption, StoreOption
from capture.commands.tables import ago, print_table, printable
from capture.export.manifest import losses
from capture.levels import short, split
from capture.store.base import Store, StoredSignature, open_store

#: Model versions that are named where many have SignatureDefs.
MOST_TOLD = 8


def ls(
    store: StoreOption = DEFAULT_STORE,
    model: ModelOption = None,
    refused: Annotated[
        bool, typer.Option("--refused", help="What was not captured instead: refusals and requests that are no calls.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    allow_shared_store: SharedOption = False,
) -> None:
    """List what was captured, most used first."""
    source = open_store(store, allow_shared=allow_shared_store)
    try:
        if refused:
            _refused(source, as_json)
        else:
            _signatures(source, model, as_json)
    finally:
        source.close()


def _signatures(source: Store, model: str | None, as_json: bool) -> None:
    rows = source.signatures(model)
    if as_json:
        listed = [
            {
                "signature": row.key.digest,
                "shapes": row.sample_shapes,
                "family": row.key.owner.family,
                "model": row.key.owner.model,
                "version": row.key.owner.version,
                "hits": row.hits,
                "proven": row.proven,
                "unproven": row.unproven,
                "first_seen": row.first_seen,
                "last_seen": row.last_seen,
                "sample": None if row.sample_at is None else row.sample_outcome,
                "line": str(row.signature),
            }
            for row in rows
        ]
        described = [
            {"model": one.owner.model, "version": one.owner.version, "fetched_at": one.fetched_at}
            for one in source.metadata(model)
        ]
        document = {"signatures": listed, "signature_defs": described, "counters": source.counters()}
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    now = time.time()
    print_table(
        ("SIGNATURE", "MODEL", "HITS", "SAMPLE", "SEEN", "LINE"),
        (
            (
                short(row.key.digest),
                printable(str(row.key.owner)),
                str(row.hits),
                _sample(row.evicted, row.sample_outcome),
                f"{ago(now - row.last_seen)} ago",
                printable(str(row.signature) + _class(row)),
            )
            for row in rows
        ),
        right=frozenset({"HITS"}),
    )
    _summary(source, len(rows))
    told = [printable(str(one.owner)) for one in source.metadata(model)]
    if told:
        more = f" and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
        print(f"SignatureDefs told by the model server: {', '.join(told[:MOST_TOLD])}{more}", file=sys.stderr)


def _class(row: StoredSignature) -> str:
    """What a level tells it apart by, as its sample shows it."""
    return f"  [{row.sample_shapes}]" if split(row.key.digest)[1] and row.sample_shapes else ""


def _sample(evicted: bool, outcome: str) -> str:
    return "evicted" if evicted else outcome or "none"


def _summary(source: Store, count: int) -> None:
    counters = source.counters()
    missed = {name: value for name, value in losses(counters).items() if value}
    print(
        f"{count} signatures; {counters.get('requests_observed', 0)} requests observed,"
        f" {counters.get('requests_refused', 0)} refused, {counters.get('requests_ignored', 0)} no model calls"
        " (capture ls --refused)",
        file=sys.stderr,
    )
    if missed:
        print(f"not seen: {', '.join(f'{name} {value}' for name, value in missed.items())}", file=sys.stderr)


def _refused(source: Store, as_json: bool) -> None:
    refusals, ignored = source.refusals(), source.ignored()
    if as_json:
        document = {
            "refusals": [
                dict(zip(("family", "model", "outcome", "reason", "count"), row, strict=True)) for row in refusals
            ],
            "ignored": [{"what": what, "count": count} for what, count in ignored],
        }
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    rows = [(str(count), outcome, printable(model), reason) for _, model, outcome, reason, count in refusals]
    rows += [(str(count), "no call", "", printable(what)) for what, count in ignored]
    print_table(("COUNT", "OUTCOME", "MODEL", "WHAT"), rows, right=frozenset({"COUNT"}))
