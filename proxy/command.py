"""``capture proxy``: run the sidecar."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer

from capture.counters import Counters
from capture.logline import LineFormatter
from capture.settings_errors import SettingsError
from capture.store.base import shown_store, store_path
from proxy import address
from proxy.admin.app import Admin
from proxy.configs import check_certificates
from proxy.listening import Listening
from proxy.logs import LineSink, SinkHandler
from proxy.settings import Listener, Settings, check, load
from proxy.settings_capture import DEFAULT_STORE, Capture
from proxy.supervisor import Supervisor
from proxy.takeover import Predecessor, TakeOverError
from proxy.worker_keeper import WORKER_COMMAND
from proxy.worker_socket import WorkerSocket

log = logging.getLogger("supervisor")

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
    sink: Annotated[
        list[str] | None,
        typer.Option(help="host:port to point a traffic mirror at: answered 200, captured as unproven. Repeatable."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file (YAML); stands alone.")] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help=f"Where what is captured goes: a path, or a URL such as redis://HOST. Default: {DEFAULT_STORE} here.",
            metavar="STORE",
        ),
    ] = None,
    allow_shared_store: Annotated[
        bool, typer.Option("--allow-shared-store", help="Use a store that others than its owner may read or write.")
    ] = False,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Replace the sidecar that runs with the same takeover_socket: its listeners stay open throughout.",
        ),
    ] = False,
) -> None:
    """Relay production traffic and learn the signatures that clients use. Stop it with SIGTERM or Ctrl-C.

    SIGHUP reads the settings again, SIGUSR1 pauses the capture, SIGUSR2 resumes it.
    """
    try:
        settings = read_settings(listen or [], upstream or [], config, store, allow_shared_store, sink or [])
    except SettingsError as error:
        fail(str(error), 2)
    if (missing := missing_directory(settings.capture.store)) is not None:
        fail(f"store {settings.capture.store}: no directory {missing}; create it, or name another place", 2)
    load_again = None if config is None else partial(load, config)
    raise typer.Exit(run(settings, load=load_again, take_over=take_over))


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


def shown(settings: Settings) -> Settings:
    """Settings for eyes and logs: without the password that the store's URL may hold."""
    capture = msgspec.structs.replace(settings.capture, store=shown_store(settings.capture.store))
    return msgspec.structs.replace(settings, capture=capture)


def read_settings(
    listen: list[str],
    upstream: list[str],
    config: Path | None,
    store: str | None,
    allow_shared_store: bool = False,
    sink: Sequence[str] = (),
) -> Settings:
    """Settings from the command line or a file. Raises SettingsError."""
    if config is not None:
        if listen or upstream or sink or store is not None or allow_shared_store:
            raise SettingsError("--config stands alone: put the other options into the file")
        return load(config)
    if store == "":
        raise SettingsError("--store is empty: name a file, or leave it out")
    if not listen and not sink:
        raise SettingsError("nothing to do: give --listen and --upstream, --sink, or --config FILE.yaml")
    if len(listen) != len(upstream):
        raise SettingsError(f"{len(listen)} --listen and {len(upstream)} --upstream: each --listen needs one")
    pairs = zip(listen, upstream, strict=True)
    settings = Settings(
        listeners=(
            *(Listener(listen=one, upstream=other) for one, other in pairs),
            *(Listener(listen=one, mode="sink") for one in sink),
        ),
        capture=Capture(store=DEFAULT_STORE if store is None else store, allow_shared_store=allow_shared_store),
    )
    check(settings)
    return settings


def run(
    settings: Settings,
    worker_command: tuple[str, ...] = WORKER_COMMAND,
    *,
    load: Callable[[], Settings] | None = None,
    take_over: bool = False,
) -> int:
    """The composition root: bind or take over, then supervise until a signal. The exit status."""
    try:
        check_certificates(settings)
        admin = Admin(settings.admin) if settings.admin.listen else None
    except SettingsError as error:
        fail(str(error), 2)
    predecessor: Predecessor | None = None
    if take_over:
        if not settings.takeover_socket:
            fail("--take-over needs takeover_socket in the settings: the one of the sidecar to be replaced", 2)
        try:
            predecessor = Predecessor.meet(settings.takeover_socket)
        except TakeOverError as error:
            fail(str(error), 1)
    listening: list[Listening] = []
    for listener in settings.listeners:
        where = address.parse(listener.listen, lowest_port=0)
        found = None if predecessor is None else predecessor.listening(where)
        try:
            listening.append(found or Listening.bind(where, int(listener.socket_mode, 8)))
        except OSError as error:
            for one in listening:
                one.close(remove=True)
            fail(f"cannot listen on {listener.listen}: {error.strerror or error}", 1)
    if predecessor is not None:
        predecessor.close_rest()
    elsewhere: WorkerSocket | None = None
    if path := settings.capture.worker_socket:
        elsewhere = WorkerSocket(path)
        try:
            if predecessor is None:
                elsewhere.listen()
        except OSError as error:
            fail(f"cannot listen on capture.worker_socket {path}: {error.strerror or error}", 1)
    sink = LineSink()
    handler = SinkHandler(sink)
    handler.setFormatter(LineFormatter("supervisor"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    effective = msgspec.json.encode(shown(settings)).decode()
    log.debug("effective settings", extra={"fields": {"settings": effective}})
    supervisor = Supervisor(
        settings,
        listening=listening,
        counters=Counters.create(settings.workers),
        sink=sink,
        run=secrets.token_hex(8),
        load=load,
        predecessor=predecessor,
        elsewhere=elsewhere,
        admin=admin,
        worker_command=worker_command,
    )
    status = asyncio.run(supervisor.run())
    if elsewhere is not None:
        elsewhere.close()
    sink.flush(FLUSH_SECONDS)
    return status


def fail(message: str, status: int) -> NoReturn:
    """One line for the user's mistake, no traceback."""
    print(f"capture proxy: {message}", file=sys.stderr)
    raise typer.Exit(status)


if __name__ == "__main__":
    typer.run(proxy)
