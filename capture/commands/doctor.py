"""``capture doctor``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from capture.commands.tables import print_table, printable
from capture.doctor import examine, recommended_level
from capture.errors import UserError
from capture.graph import read_graph
from capture.savedmodel import SavedModelError, read_saved_model

#: Exit codes.
NOTHING, ACTION, UNUSABLE = 0, 1, 2


def doctor(
    saved_model: Annotated[
        Path, typer.Option("--saved-model", help="Version directory with saved_model.pb.", metavar="DIR")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Say what of a model a warm-up by names does not cover, or would change, and which settings help.

    Reads saved_model.pb without TensorFlow. Exit codes: 0 nothing to do (notes at most), 1 something needs action, 2
    the model cannot be read or has no signature.
    """
    try:
        model = read_saved_model(saved_model)
        signatures = {name: one for name, one in model.signatures.items() if not name.startswith("__")}
        if not signatures:
            raise SavedModelError(f"{saved_model}: no signature to serve; save the model with signatures")
        graph = read_graph(saved_model)
    except UserError as error:
        print(f"capture: error: {printable(str(error))}", file=sys.stderr)
        raise typer.Exit(UNUSABLE) from None
    findings = examine(graph, signatures)
    level = recommended_level(findings)
    if as_json:
        document = {"saved_model": str(saved_model), "tensorflow": model.tensorflow_version, "nodes": graph.count,
                    "signatures": sorted(signatures), "level": level, "findings": findings}  # fmt: skip
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    else:
        rows = [
            (one.severity, one.kind, ", ".join(one.signatures),
             one.text + (f" ({', '.join(f'{op} x{count}' for op, count in one.ops.items())})" if one.ops else ""))
            for one in findings
        ]  # fmt: skip
        if rows:
            print_table(("SEVERITY", "KIND", "SIGNATURES", "WHAT"), [[printable(cell) for cell in row] for row in rows])
        else:
            print("nothing found: one request for each set of names is all that this model needs")
        if level != "names":
            print(printable(f"recommended: capture.levels: {{MODEL: {json.dumps(level)}}} in the sidecar's settings"))
        print(f"{len(signatures)} signatures, {graph.count} nodes, {len(findings)} findings", file=sys.stderr)
    raise typer.Exit(ACTION if any(one.severity == "action" for one in findings) else NOTHING)
