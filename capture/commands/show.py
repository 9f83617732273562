"""``capture show SIGNATURE``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated

import typer

from capture.commands.model_defs import told_defs
from capture.commands.options import DEFAULT_STORE, ModelOption, SavedModelOption, SharedOption, StoreOption
from capture.commands.tables import ago, printable
from capture.differences import nearest
from capture.errors import UserError
from capture.levels import matches, split
from capture.savedmodel import read_saved_model
from capture.signature import DIGEST_VERSION, Misfit, SignatureDef, executor_key
from capture.store.base import StoredSignature, open_store


def show(
    signature: Annotated[str, typer.Argument(help="A signature's digest, or any unique beginning of it.")],
    store: StoreOption = DEFAULT_STORE,
    model: ModelOption = None,
    saved_model: SavedModelOption = None,
    allow_shared_store: SharedOption = False,
) -> None:
    """Show one signature: who sends it, how it differs from its nearest neighbour, what it fits."""
    source = open_store(store, allow_shared=allow_shared_store)
    try:
        rows = source.signatures(model)
        found = _find(rows, signature)
        first = found[0]
        told = [] if saved_model is not None else told_defs(source, first.key.owner.model)
    finally:
        source.close()
    others = {row.signature for row in rows if row.key.owner[:2] == first.key.owner[:2]} - {first.signature}
    print(printable(str(first.signature)))
    print(f"  digest     {split(first.key.digest)[0]}")
    neighbour = nearest(first.signature, others)
    if neighbour is not None:
        other, differences = neighbour
        print(f"  nearest    {other.digest[:15]}: {printable('; '.join(differences))}")
    if saved_model is not None:
        _executor(first, read_saved_model(saved_model).signatures, str(saved_model), "")
    elif told and told[0].owner.family == first.key.owner.family:
        where = f"version {told[0].owner.version}"
        _executor(first, told[0].signatures, where, f" on {where}, as the model server told")
    now = time.time()
    for row in found:
        _version(row, now)


def _executor(row: StoredSignature, defs: Mapping[str, SignatureDef], where: str, told: str) -> None:
    try:
        print(f"  executor   {printable(str(executor_key(row.signature, defs)))}{told}")
    except Misfit as misfit:
        print(f"  executor   does not fit {where}: {printable(str(misfit))}")


def _find(rows: list[StoredSignature], wanted: str) -> list[StoredSignature]:
    """All versions' rows, and those of all its classes, of the one signature that begins with ``wanted``."""
    digests = {row.key.digest for row in rows}
    names = {name for name in digests if matches(name, wanted, DIGEST_VERSION)}
    if not names:
        raise UserError(f"no signature begins with {wanted!r}; `capture ls` lists them")
    if len({split(name)[0] for name in names}) > 1:
        raise UserError(
            f"{len(names)} signatures begin with {wanted!r}: {', '.join(sorted(names)[:4])}; give more of it"
        )
    return [row for row in rows if row.key.digest in names]


def _version(row: StoredSignature, now: float) -> None:
    print(f"  version    {printable(str(row.key.owner))} ({row.key.owner.family})")
    if level := split(row.key.digest)[1]:
        print(f"    class    {level}: what its level tells apart")
    print(f"    hits     {row.hits} ({row.proven} proven, {row.unproven} unproven) in {row.hours} hours with traffic")
    print(f"    seen     first {ago(now - row.first_seen)} ago, last {ago(now - row.last_seen)} ago")
    if row.evicted:
        print("    sample   evicted: the store was full of signatures that are used more")
    elif row.sample_at is None:
        print("    sample   none")
    else:
        print(f"    sample   {row.sample_size} bytes, {row.sample_outcome}, {ago(now - row.sample_at)} old")
        print(f"             {printable(row.sample_shapes)}")
    for title, counts in (("shapes", row.shapes), ("senders", row.senders)):
        for name, count in sorted(counts.items(), key=lambda item: -item[1]):
            print(f"    {title:8} {count:>8}  {printable(name)}")
