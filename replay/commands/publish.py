"""``capture publish``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from capture.commands.tables import printable
from capture.errors import UserError
from replay.publishing.addresses import parse
from replay.publishing.eas import DATA_PATH, Export, read_export, read_service, upload, write_service
from replay.publishing.json_text import load


def publish(
    path: Annotated[
        Path, typer.Argument(help="What capture export --format eas-bin or eas-txt wrote.", metavar="PATH")
    ],
    to: Annotated[str, typer.Option("--to", help="Where it goes: oss://BUCKET/PATH.", metavar="URL")],
    service_json: Annotated[
        Path | None,
        typer.Option(
            "--service-json", help="The service's JSON: gets warm_up_data_path, the rest stays.", metavar="FILE"
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--warm-up-count", min=1, help="metadata.rpc.warm_up_count; default: as it is.")
    ] = None,
) -> None:
    """Bring the warm-up data of an EAS service to OSS, and name it in the service's JSON.

    EAS documents one file for a service: the most used signature's is named, the others lie beside it for the gate.
    Files of earlier exports stay. Killed at any point, the JSON names a file that is there.
    """
    export = read_export(path)
    address = parse(to)
    if count is not None and service_json is None:
        raise UserError("--warm-up-count: stands in the service's JSON; name it with --service-json")
    if service_json is not None:
        if address.scheme != "oss":
            raise UserError(f"--to {to}: EAS reads {DATA_PATH} from OSS; say oss://BUCKET/PATH")
        # Before anything is uploaded.
        _warn(export, service_json)
    url, written = upload(export, address)
    print(f"{len(export.files)} files at {address}, {written} of them or their manifest written", file=sys.stderr)
    if service_json is None:
        print(f'"{DATA_PATH}": "{url}"')
    elif write_service(service_json, url, count):
        print(f"{service_json}: {DATA_PATH} is {url} now; deploy it")
    else:
        print(f"{service_json}: names {url} already")
    _tell_the_rest(export, path)


def _warn(export: Export, service_json: Path) -> None:
    name = load(read_service(service_json)).get("name")
    if name != export.service:
        print(
            printable(
                f"warning: {service_json} is of service {name}, and the export of {export.service}: is it a group?"
            ),
            file=sys.stderr,
        )


def _tell_the_rest(export: Export, path: Path) -> None:
    if export.share is not None:
        print(f"it covers {export.share:.1%} of the calls that were seen")
    if len(export.files) == 1:
        return
    print(f"{len(export.files) - 1} signatures are not in that file, and build on their first request:")
    for line in export.lines[1:]:
        print(f"  {printable(line)}")
    print(
        "to have them warm before traffic, too: capture replay"
        f" {path} --target http://HOST:PORT --model {printable(export.service)} --gate PORT (docs/replay.md)"
    )
