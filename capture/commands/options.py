"""Options that several commands share, so that each is said once and means the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_STORE = "warmtap.sqlite"
#: Where a sidecar serves health, metrics and API unless told otherwise.
DEFAULT_ADMIN = "127.0.0.1:8590"

StoreOption = Annotated[str, typer.Option("--store", help="The store: a path.", metavar="PATH")]
SharedOption = Annotated[
    bool,
    typer.Option("--allow-shared-store", help="Use a store that others than its owner may read or write."),
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Only this model (EAS: the service).")]
SavedModelOption = Annotated[
    Path | None,
    typer.Option("--saved-model", help="Version directory with saved_model.pb, to fit signatures to.", metavar="DIR"),
]
