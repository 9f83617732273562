"""``capture proxy``: run the sidecar."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from capture.counters import Counters
from capture.logline import LineFormatter
from capture.store.base import store_path
from proxy import address
from proxy.configs import relay_config, worker_config
from proxy.logs import LineSink, SinkHandler
from proxy.settings import DEFAULT_STORE, Capture, Listener, Settings, SettingsError, check, load
from proxy.supervisor import WORKER_COMMAND, Supervisor, bind

#: Seconds that the last log lines may take.
FLUSH_SECONDS = 0.5


def proxy(
    listen: Annotated[
        list[str] | None,
        typer.Option(help="host:port to accept clients on; repeat it together with --upstream. Port 0: any free port."),
    ] = None,
    upstream: Annotated[
        list[str] | None, typer.Option(help="host:port or unix:/path of the model server behind the same --listen.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file (YAML); stands alone.")] = None,
    store: Annotated[
        str | None, typer.Option(help=f"SQLite store of what is captured. Default: {DEFAULT_STORE} in this directory.")
    ] = None,
) -> None:
    """Relay production traffic and learn the signatures that clients use. Stop it with SIGTERM or Ctrl-C."""
    try:
        settings = read_settings(listen or [], upstream or [], config, store)
    except SettingsError as error:
        fail(str(error), 2)
    if (missing := missing_directory(settings.capture.store)) is not None:
        fail(f"store {settings.capture.store}: no directory {missing}; create it, or name another place", 2)
    raise typer.Exit(run(settings))


def missing_directory(store: str) -> Path | None:
    """The directory that the store would lie in, if there is none: most likely a typing error. Whatever else is wrong
    with a store costs the capture, and never the relay."""
    if "://" in store:
        return None
    directory = store_path(store).parent
    try:
        return None if directory.is_dir() else directory
    except OSError:
        return None


def read_settings(listen: list[str], upstream: list[str], config: Path | None, store: str | None) -> Settings:
    """Settings from the command line or a file. Raises SettingsError."""
    if config is not None:
        if listen or upstream or store:
            raise SettingsError("--config stands alone: put --listen, --upstream and --store into the file")
        return load(config)
    if not listen:
        raise SettingsError("nothing to do: give --listen and --upstream, or --config FILE.yaml")
    if len(listen) != len(upstream):
        raise SettingsError(f"{len(listen)} --listen and {len(upstream)} --upstream: each --listen needs one")
    pairs = zip(listen, upstream, strict=True)
    settings = Settings(
        listeners=tuple(Listener(listen=one, upstream=other) for one, other in pairs),
        capture=Capture(store=store or DEFAULT_STORE),
    )
    check(settings)
    return settings


def run(settings: Settings, worker_command: tuple[str, ...] = WORKER_COMMAND) -> int:
    """The composition root: bind, then supervise until a signal. The exit status."""
    sockets: list[socket.socket] = []
    for listener in settings.listeners:
        try:
            sockets.append(bind(address.parse(listener.listen, lowest_port=0)))
        except OSError as error:
            for sock in sockets:
                sock.close()
            fail(f"cannot listen on {listener.listen}: {error.strerror or error}", 1)
    sink = LineSink()
    handler = SinkHandler(sink)
    handler.setFormatter(LineFormatter("supervisor"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    supervisor = Supervisor(
        sockets=sockets,
        upstreams=[str(address.parse(listener.upstream)) for listener in settings.listeners],
        relay=relay_config(settings),
        worker=worker_config(settings, secrets.token_hex(8)),
        counters=Counters.create(),
        sink=sink,
        worker_command=worker_command,
    )
    status = asyncio.run(supervisor.run())
    sink.flush(FLUSH_SECONDS)
    for sock in sockets:
        sock.close()
    return status


def fail(message: str, status: int) -> NoReturn:
    """One line for the user's mistake, no traceback."""
    print(f"capture proxy: {message}", file=sys.stderr)
    raise typer.Exit(status)


if __name__ == "__main__":
    typer.run(proxy)
