"""Options that several commands share, so that each is said once and means the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capture.dialects.table import EAS
from capture.errors import UserError

DEFAULT_STORE = "warmtap.sqlite"
#: Where a sidecar serves health, metrics and API unless told otherwise.
DEFAULT_ADMIN = "127.0.0.1:8590"

StoreOption = Annotated[
    str, typer.Option("--store", help="The store: a path, or a URL such as redis://HOST.", metavar="STORE")
]
SharedOption = Annotated[
    bool,
    typer.Option("--allow-shared-store", help="Use a store that others than its owner may read or write."),
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Only this model (EAS: the service).")]


def _dialect(name: str) -> str:
    if name and name not in EAS:
        raise UserError(f"--dialect {name}: no dialect of EAS; one of: {', '.join(EAS)}")
    return name


DialectOption = Annotated[
    str,
    typer.Option(
        "--dialect", callback=_dialect, help=f"EAS: what kind of service it is: {', '.join(EAS)}.", metavar="DIALECT"
    ),
]
MetadataOption = Annotated[
    Path | None,
    typer.Option(
        "--metadata",
        help="Instead of --saved-model: what the server answered to GET /v1/models/MODEL/metadata, in a file.",
        metavar="FILE",
    ),
]
SavedModelOption = Annotated[
    Path | None,
    typer.Option("--saved-model", help="Version directory with saved_model.pb, to fit signatures to.", metavar="DIR"),
]
BatchSizesOption = Annotated[
    str,
    typer.Option(
        "--batch-sizes",
        help="Write each record with these batch sizes, such as 1,8,32, by repeating its rows; each is run first.",
        metavar="N,N",
    ),
]
