"""``capture host``: a local model server on TensorFlow's own session, for measuring and for trying things out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def host(
    saved_model: Annotated[
        Path, typer.Option("--saved-model", help="The version directory, such as models/ranking/3.", metavar="DIR")
    ],
    model_name: Annotated[
        str, typer.Option(help="The name that clients ask for (default: the directory above).", metavar="NAME")
    ] = "",
    model_version: Annotated[
        int | None, typer.Option(help="The version that clients are told (default: the directory's name).")
    ] = None,
    grpc_listen: Annotated[
        str, typer.Option(help="Serve TF Serving's gRPC here; port 0 takes any.", metavar="HOST:PORT")
    ] = "",
    rest_listen: Annotated[str, typer.Option(help="Serve TF Serving's REST API here.", metavar="HOST:PORT")] = "",
    eas_listen: Annotated[str, typer.Option(help="Serve EAS's HTTP here.", metavar="HOST:PORT")] = "",
    eas_service: Annotated[str, typer.Option(help="The EAS service's name.", metavar="NAME")] = "",
    eas_token: Annotated[
        str, typer.Option(help="Demand this token of EAS clients.", envvar="WARMTAP_EAS_TOKEN", metavar="TOKEN")
    ] = "",
    eas_url: Annotated[str, typer.Option(help="Answer at this path too (a custom URL).", metavar="PATH")] = "",
    stats_listen: Annotated[
        str, typer.Option(help="Serve counters and per-request builds here.", metavar="HOST:PORT")
    ] = "",
    enable_model_warmup: Annotated[
        bool,
        typer.Option(help="Run the version's assets.extra/tf_serving_warmup_requests first (gRPC, REST)."),
    ] = True,
    num_request_iterations_for_warmup: Annotated[
        int, typer.Option(min=0, help="Run each of its records this many times.")
    ] = 1,
    warm_up_data_path: Annotated[
        Path | None, typer.Option(help="The EAS warm-up request (.bin), as in the service's JSON.", metavar="FILE")
    ] = None,
    warm_up_count: Annotated[int, typer.Option(min=0, help="Send it this many times.")] = 5,
) -> None:
    """Serve one SavedModel locally, speaking TF Serving's gRPC and REST and PAI-EAS HTTP by the servers' own rules.

    Applies warm-up files on start as each server does, and counts the graphs that TensorFlow builds.
    """
    # grpc's own lines would stand before ours; they say the same in other words.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Late: this brings grpc and aiohttp, which other commands do without.
    from replay import model_host

    model_host.run(
        model_host.HostOptions(
            version_dir=saved_model,
            model_name=model_name or saved_model.resolve().parent.name,
            model_version=model_host.version_of(saved_model) if model_version is None else model_version,
            grpc_listen=grpc_listen,
            rest_listen=rest_listen,
            eas_listen=eas_listen,
            eas_service=eas_service,
            eas_token=eas_token,
            eas_url=eas_url,
            stats_listen=stats_listen,
            warmup=enable_model_warmup,
            warmup_iterations=num_request_iterations_for_warmup,
            eas_warmup=warm_up_data_path,
            eas_warmup_count=warm_up_count,
        )
    )
