"""``capture replay``."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Annotated

import typer

from capture.commands.options import DialectOption, SharedOption
from capture.commands.tables import printable
from capture.errors import UserError
from capture.export.read import KINDS as FORMATS
from capture.logline import LineFormatter
from replay import credentials
from replay.addressing import Target, outgoing, read_target
from replay.client import GrpcSender, HttpSender, Sender
from replay.gate import Gate, GateOptions, Prepare, serve
from replay.listen_option import listen_at
from replay.player import Pace, Player
from replay.records import Record, read_records
from replay.report import document, print_report

#: Exit codes: every request was answered well; one was not; nothing usable was given.
DONE, FAILED, UNUSABLE = 0, 1, 2
#: How often each record is sent; in a gate once to build, and once more after all others.
COUNT, GATE_COUNT = 1, 2
_ON_FAILURE = ("ready", "fail")


def replay(
    file: Annotated[str, typer.Argument(help="A warm-up file, a directory of .bin files, or a store.", metavar="FILE")],
    target: Annotated[
        str, typer.Option("--target", help="grpc://host:port, or http://host:port[/path] for REST and EAS.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="Only this model's records (EAS: the service), and those without one.")
    ] = None,
    send_as: Annotated[
        str, typer.Option("--as", help="The model's (EAS: the service's) name at the target.", metavar="NAME")
    ] = "",
    keep_version: Annotated[
        bool, typer.Option("--keep-version", help="Leave the version that a request names; otherwise it is cut.")
    ] = False,
    auth: Annotated[
        str,
        typer.Option(
            "--auth",
            help=f"{credentials.FORM}; KIND: {', '.join(credentials.KINDS)}. Never the secret.",
            metavar="AUTH",
        ),
    ] = "",
    count: Annotated[
        int | None, typer.Option(min=1, help=f"Send each record this often (default {COUNT}, gate {GATE_COUNT}).")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Requests on their way at once.")] = 1,
    rate: Annotated[float, typer.Option(min=0, help="At most so many requests a second; 0: no bound.")] = 0.0,
    loop: Annotated[bool, typer.Option("--loop", help="Begin again until --duration is over.")] = False,
    duration: Annotated[float, typer.Option(min=0, help="Begin no request after so many seconds; 0: no bound.")] = 0.0,
    request_timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that one request may take.")] = 60.0,
    unproven: Annotated[
        bool, typer.Option("--unproven", help="Of a store, also requests that were never seen to succeed.")
    ] = False,
    gate: Annotated[
        str,
        typer.Option(
            "--gate", help="Serve http://127.0.0.1:PORT/readyz: 200 once the server is warm.", metavar="[HOST:]PORT"
        ),
    ] = "",
    gate_on_failure: Annotated[
        str,
        typer.Option(
            help="Gate: ready or fail when a record fails or it is late. Default ready: one bad record must not keep a"
            " service down.",
            metavar="ready|fail",
        ),
    ] = _ON_FAILURE[0],
    timeout: Annotated[float, typer.Option(min=0.001, help="Gate: seconds until ready, from each start.")] = 600.0,
    status: Annotated[
        str,
        typer.Option(help="Gate: warm only when this answers 200 (TF Serving: a version AVAILABLE).", metavar="URL"),
    ] = "",
    form: Annotated[
        str,
        typer.Option("--format", help=f"What FILE is, where that cannot be told: {', '.join(FORMATS)}."),
    ] = "",
    dialect: DialectOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    allow_shared_store: SharedOption = False,
) -> None:
    """Send every record of a warm-up file or a store to a running server, as it was captured, and say what came of it.

    With --gate: wait for a server that starts, send it all records, only then say ready; again whenever it restarts.

    Exit code 0: every request was answered well. 1: one was not, or the gate failed. 2: nothing usable was given.
    """
    # grpc's own lines would stand before ours; they say the same in other words.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        if gate_on_failure not in _ON_FAILURE:
            raise UserError(f"--gate-on-failure {gate_on_failure}: say ready or fail")
        if loop and not duration:
            raise UserError("--loop: say for how many seconds, with --duration")
        if gate and loop:
            raise UserError("--loop: a gate sends each record --count times")
        at = read_target(target)
        if at.scheme == "grpc":
            # Where it is missing that is said now, not when the server comes.
            import_module("grpc")
            if auth.startswith("eas-"):
                raise UserError("--auth: EAS's tokens are for http targets; gRPC takes bearer")
        address = partial(outgoing, target=at, model=model or "", send_as=send_as, keep_version=keep_version)

        def prepare() -> tuple[list[Record], Callable[[], Sender]]:
            credential = credentials.read_credential(auth) if auth else None
            records = read_records(
                file,
                address,
                form=form,
                model=model,
                dialect=dialect,
                unproven=unproven,
                allow_shared=allow_shared_store,
            )
            sender = GrpcSender if at.scheme == "grpc" else HttpSender
            return records, partial(sender, at.address, request_timeout, credential)

        pace = Pace(count or (GATE_COUNT if gate else COUNT), concurrency, rate, duration, loop)
        if gate:
            options = GateOptions(
                str(at), at.host, at.port, pace, status, timeout, strict=gate_on_failure == _ON_FAILURE[1]
            )
            passed = _gate(gate, options, prepare)
        else:
            passed = _once(at, pace, prepare, as_json)
    except UserError as error:
        print(f"capture: error: {printable(str(error))}", file=sys.stderr)
        raise typer.Exit(UNUSABLE) from None
    raise typer.Exit(DONE if passed else FAILED)


def _once(at: Target, pace: Pace, prepare: Prepare, as_json: bool) -> bool:
    records, connect = prepare()
    player = Player(records, pace)

    async def play() -> None:
        sender = connect()
        try:
            await player.play(sender)
        finally:
            await sender.close()

    asyncio.run(play())
    print_report(str(at), player, as_json=as_json)
    return not document(str(at), player)["failed"]


def _gate(listen: str, options: GateOptions, prepare: Prepare) -> bool:
    host, port = listen_at("--gate", listen)
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("gate"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    return asyncio.run(serve(Gate(options, prepare), host, port))
