"""A local model server: one version of one model on TensorFlow's own session, behind the servers' own protocols.

It exists to be measured: what TF Serving or EAS would build, it builds, and it counts. It is no replacement for either:
no batching, no version policy.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from capture.errors import UserError
from replay import eas_service, host_eas, host_stats, host_warmup
from replay.executor.session import open_executor
from replay.host_grpc import GrpcHost
from replay.host_rest import RestHost
from replay.servable import Ledger, Servable

#: Seconds that running requests get after SIGTERM.
GRACE = 5.0


class HostError(UserError):
    """The host cannot start; one line."""


@dataclass(frozen=True, slots=True)
class HostOptions:
    """What the host serves and where. Addresses are ``host:port``, port 0 for any, empty for "not at all"."""

    version_dir: Path
    model_name: str
    model_version: int
    grpc_listen: str = ""
    rest_listen: str = ""
    eas_listen: str = ""
    eas_service: str = ""
    eas_token: str = ""
    #: A custom URL path at which the service answers too.
    eas_url: str = ""
    stats_listen: str = ""
    #: TF Serving's --enable_model_warmup and --num_request_iterations_for_warmup.
    warmup: bool = True
    warmup_iterations: int = 1
    #: EAS's warm_up_data_path and metadata.rpc.warm_up_count.
    eas_warmup: Path | None = None
    eas_warmup_count: int = 5


def version_of(version_dir: Path) -> int:
    """The version that a directory's name stands for, as the servers' file-system source reads it. Raises HostError."""
    name = version_dir.resolve().name
    if not name.isascii() or not name.isdigit():
        raise HostError(f"{version_dir}: the directory's name is no version number; say --model-version")
    return int(name)


def run(options: HostOptions) -> None:
    """Load, warm up, serve until SIGTERM or SIGINT. Raises HostError or ExecutorError before it is ready.

    Once up, one line goes to standard output: ``ready grpc=HOST:PORT rest=HOST:PORT eas=HOST:PORT stats=HOST:PORT
    builds=N level=LEVEL``, ``-`` for what is not there. ``builds`` are those of the warm-up.
    """
    if not options.grpc_listen and not options.rest_listen and not options.eas_listen:
        raise HostError("nothing to serve: say --grpc-listen, --rest-listen or --eas-listen")
    if options.eas_listen and not options.eas_service:
        raise HostError("--eas-listen needs --eas-service")
    # Before the model is loaded: that may take minutes.
    for option, address in (
        ("--grpc-listen", options.grpc_listen),
        ("--rest-listen", options.rest_listen),
        ("--eas-listen", options.eas_listen),
        ("--stats-listen", options.stats_listen),
    ):
        if address:
            _checked(option, address)
    executor = open_executor(options.version_dir)
    try:
        if executor.note:
            print(f"note: {executor.note}", file=sys.stderr, flush=True)
        servable = Servable(options.model_name, options.model_version, executor)
        service = eas_service.EasService(servable)
        ledger = Ledger(executor.builds, time.perf_counter)
        # Before any port is bound, as in the servers, and outside the loop: SIGTERM ends a long warm-up at once.
        _warm_up(options, servable, service)
        ledger.ready()
        asyncio.run(_serve(options, servable, service, ledger))
    finally:
        executor.close()


async def _serve(options: HostOptions, servable: Servable, service: eas_service.EasService, ledger: Ledger) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runners: list[web.AppRunner] = []
    grpc_host = GrpcHost(servable, ledger) if options.grpc_listen else None
    eas_host = host_eas.EasHost(service, ledger, name=options.eas_service, token=options.eas_token, url=options.eas_url)
    rest_host = RestHost(servable, ledger)
    try:
        bound = {"grpc": "-", "rest": "-", "eas": "-", "stats": "-"}
        if grpc_host is not None:
            bound["grpc"] = grpc_host.start(options.grpc_listen)
        if options.rest_listen:
            bound["rest"] = await _listen(rest_host.application(), "--rest-listen", options.rest_listen, runners)
        if options.eas_listen:
            bound["eas"] = await _listen(eas_host.application(), "--eas-listen", options.eas_listen, runners)
        if options.stats_listen:
            bound["stats"] = await _listen(
                host_stats.application(servable.executor, ledger), "--stats-listen", options.stats_listen, runners
            )
        builds = "-" if ledger.builds_at_ready is None else ledger.builds_at_ready
        places = " ".join(f"{name}={address}" for name, address in bound.items())
        print(f"ready {places} builds={builds} level={servable.executor.level}", flush=True)
        await stop.wait()
    except OSError as error:
        raise HostError(f"cannot listen: {error}") from None
    finally:
        if grpc_host is not None:
            await loop.run_in_executor(None, grpc_host.stop, GRACE)
        for runner in runners:
            await runner.cleanup()
        eas_host.close()
        rest_host.close()


def _warm_up(options: HostOptions, servable: Servable, service: eas_service.EasService) -> None:
    try:
        if (options.grpc_listen or options.rest_listen) and options.warmup:
            host_warmup.warm_up(servable, options.version_dir, options.warmup_iterations)
        if options.eas_listen and options.eas_warmup is not None:
            eas_service.warm_up(service, options.eas_warmup, options.eas_warmup_count)
    except host_warmup.WarmupError as error:
        raise HostError(f"warm-up failed: {error}") from None


def _checked(option: str, text: str) -> tuple[str, int]:
    """Host and port of an address, an IPv6 one in brackets. Raises HostError: grpc takes any number for a port."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    malformed = not host or "/" in host or (":" in host and not bracketed)
    if malformed or not port.isascii() or not port.isdigit():
        raise HostError(f"{option} {text}: no address; write host:port, for example 127.0.0.1:8500")
    if len(port) > 5 or int(port) > 65535:
        raise HostError(f"{option} {text}: port {port} is not between 0 and 65535")
    return host, int(port)


async def _listen(application: web.Application, option: str, address: str, runners: list[web.AppRunner]) -> str:
    host, port = _checked(option, address)
    # What a Content-Encoding means is for each host to know.
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=GRACE, auto_decompress=False)
    runners.append(runner)
    await runner.setup()
    await web.TCPSite(runner, host.strip("[]"), port).start()
    return f"{host}:{runner.addresses[0][1]}"
