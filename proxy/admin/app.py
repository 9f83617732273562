"""The routes. JSON in and out; an error is ``{"error": "one line"}``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from capture.counters import LOSSES
from capture.diagnosis import Facts, ListenerFacts, StoreFacts, diagnose
from capture.store.base import StoreError, open_store, shown_store, store_path
from capture.store.redis_url import without_password
from capture.store.summary import store_facts
from proxy import address
from proxy.admin.auth import Gate
from proxy.admin.metrics import SidecarCollector, registry
from proxy.admin.packing import packed
from proxy.settings import Admin as AdminSettings
from proxy.sidecar import Sidecar

log = logging.getLogger("supervisor")
#: aiohttp's own lines quote what it could not read: a header with a token in it, for one. The answer tells the client.
_SILENT: Final = logging.getLogger("warmtap.admin.http")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False

#: Seconds for which what was read of the store is shown again.
STORE_SECONDS: Final = 5.0
#: Seconds that a reading may take before it is done without.
STORE_PATIENCE: Final = 3.0
#: Seconds that an export may take.
EXPORT_SECONDS: Final = 300.0
#: Bytes of a request's body: nobody sends one.
MAX_BODY: Final = 1024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminServer:
    """Serves one sidecar."""

    def __init__(self, sidecar: Sidecar, gate: Gate) -> None:
        self._sidecar = sidecar
        self._gate = gate
        self._version = installed_version("warmtap")
        self._collector = SidecarCollector(sidecar, self._version)
        self._registry = registry(self._collector)
        self._store = StoreFacts()
        self._store_at = float("-inf")
        self._reading: asyncio.Task[StoreFacts] | None = None
        self._exporting = asyncio.Lock()

    def application(self) -> web.Application:
        """All routes."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._guard])
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/api/v1/status", self._status)
        app.router.add_get("/api/v1/signatures", self._signatures)
        app.router.add_get("/api/v1/export", self._export)
        app.router.add_post("/api/v1/pause", self._pause)
        app.router.add_post("/api/v1/resume", self._resume)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if (refusal := self._gate.check(request)) is not None:
            return refusal
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _error(error.status, error.reason)
        except Exception:  # whatever it is, it must not be a page with a traceback
            log.exception("admin request failed", extra={"fields": {"path": request.path}})
            return _error(500, "failed: see the supervisor's log line")

    async def _store_facts(self) -> StoreFacts:
        """Read in a thread, once for all who ask at a time."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._store_at > STORE_SECONDS:
            if self._reading is None or self._reading.done():
                self._reading = loop.create_task(asyncio.to_thread(store_facts, self._sidecar.settings.capture.store))
            done, _ = await asyncio.wait({self._reading}, timeout=STORE_PATIENCE)
            # A disk that hangs must not take health and metrics with it.
            self._store = self._reading.result() if done else StoreFacts(error="the store does not answer in time")
            # A store that is about to be made is there in a moment.
            self._store_at = loop.time() if not self._store.error else float("-inf")
        return self._store

    # -- routes

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readyz(self, _: web.Request) -> web.Response:
        why = await self._sidecar.unready()
        if why:
            return web.json_response({"status": "not ready", "reasons": why}, status=503)
        return web.json_response({"status": "ready"})

    async def _metrics(self, request: web.Request) -> web.Response:
        collector = self._collector
        collector.store, why = await asyncio.gather(self._store_facts(), self._sidecar.unready())
        collector.ready, collector.turned_away = not why, self._gate.turned_away
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})

    async def _status(self, _: web.Request) -> web.Response:
        sidecar, store = self._sidecar, await self._store_facts()
        counters = sidecar.counters.total()
        listeners, pairs = sidecar.listeners(), sidecar.pairs()
        facts = Facts(
            counters=counters,
            store=store,
            listeners=[ListenerFacts(one.address, one.upstream, one.tls, one.state) for one in listeners],
            workers=[pair.worker for pair in pairs],
            paused=sidecar.paused,
            draining=sidecar.draining,
        )
        why = await sidecar.unready()
        return _json(
            {
                "version": self._version,
                "started_at": sidecar.started_at,
                "ready": not why,
                "reasons": why,
                "paused": sidecar.paused,
                "draining": sidecar.draining,
                "findings": diagnose(facts),
                "listeners": listeners,
                "pairs": pairs,
                "store": {"url": shown_store(sidecar.settings.capture.store), **msgspec.to_builtins(store)},
                "losses": {name: counters[name] for name in LOSSES},
                "counters": counters,
            }
        )

    async def _signatures(self, request: web.Request) -> web.Response:
        model = request.query.get("model")

        def read() -> list[dict[str, Any]]:
            with contextlib.closing(open_store(self._sidecar.settings.capture.store)) as store:
                return [
                    {
                        "signature": row.key.digest,
                        "line": str(row.signature),
                        "family": row.key.owner.family,
                        "model": row.key.owner.model,
                        "version": row.key.owner.version,
                        "proven": row.proven,
                        "unproven": row.unproven,
                        "first_seen": row.first_seen,
                        "last_seen": row.last_seen,
                        "shapes": row.shapes,
                        "senders": row.senders,
                        "sample": None if row.sample_at is None else row.sample_outcome,
                    }
                    for row in store.signatures(model)
                ]

        try:
            return _json({"signatures": await asyncio.to_thread(read)})
        except StoreError as error:
            return _error(503, str(error))

    async def _export(self, request: web.Request) -> web.StreamResponse:
        """``capture export`` in a process of its own, one at a time; the files come as a tar."""
        query = request.query
        if missing := [name for name in ("format", "model") if not query.get(name)]:
            return _error(400, f"missing: {', '.join(missing)}; ?format=tfrecord&model=NAME")
        if unknown := sorted(set(query) - {"format", "model", "model_version", "limit"}):
            return _error(400, f"unknown: {', '.join(unknown)}")
        if any("\0" in value for value in query.values()):
            return _error(400, "a value holds a NUL byte")
        if self._exporting.locked():
            return _error(429, "an export is running")
        async with self._exporting:
            store = self._sidecar.settings.capture.store
            # Beside the store: with a read-only root file system nothing else may be written. A server has no beside.
            beside = None if "://" in store else store_path(store).parent
            try:
                place = tempfile.TemporaryDirectory(prefix=".export-", dir=beside)
            except OSError as error:
                return _error(503, f"nowhere to write ({error.strerror}): set TMPDIR for the sidecar")
            with place as directory:
                status, said = await _run_export(store, Path(directory) / "warmup", query)
                if status:
                    return _error(400 if status in (1, 2) else 500, said)
                response = await _send(request, Path(directory), f"warmup-{query['format']}.tar")
        # Last: who has it whole finds nothing left beside the store, and may ask for the next one.
        with contextlib.suppress(OSError):
            await response.write_eof()
        return response

    async def _pause(self, _: web.Request) -> web.Response:
        self._sidecar.pause()
        return web.json_response({"paused": True})

    async def _resume(self, _: web.Request) -> web.Response:
        self._sidecar.resume()
        return web.json_response({"paused": False})


async def _run_export(store: str, out: Path, query: Any) -> tuple[int, str]:
    """The exit status, and what it said last."""
    # Each value is one word with its option: it cannot be taken for another option.
    words = [f"--{name.replace('_', '-')}={value}" for name, value in query.items()]
    environment = dict(os.environ)
    if "://" in store:
        # Command lines are for all to see.
        store, environment["REDISCLI_AUTH"] = without_password(store)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "capture", "export", f"--store={store}", f"--out={out}", *words),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(EXPORT_SECONDS):
            _, said = await process.communicate()
    except BaseException as error:  # also when the client went away
        process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            return -1, f"the export took longer than {EXPORT_SECONDS:g} s"
        raise
    lines = said.decode(errors="replace").strip().splitlines()
    return process.returncode or 0, lines[-1].removeprefix("capture: error: ") if lines else ""


async def _send(request: web.Request, directory: Path, name: str) -> web.StreamResponse:
    """As a tar, but for the end of the response. A client that does not get it whole sees the connection break."""
    headers = {"Content-Type": "application/x-tar", "Content-Disposition": f'attachment; filename="{name}"'}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    pieces = packed(directory)
    try:
        async with asyncio.timeout(EXPORT_SECONDS):
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                await response.write(piece)
    except (TimeoutError, OSError) as error:
        log.warning("export not sent", extra={"fields": {"error": str(error) or "the client took too long"}})
        if request.transport is not None:
            request.transport.abort()
    return response


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _error(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)


class Admin:
    """The server and who may ask it; the supervisor starts it and tells it to read its token again."""

    def __init__(self, settings: AdminSettings) -> None:
        """Raises SettingsError where the token cannot be used."""
        self.settings = settings
        self._where = address.parse(settings.listen, lowest_port=0)
        self._gate = Gate(settings, self._where.host)

    def reload(self, settings: AdminSettings) -> None:
        """Read the token again. Raises SettingsError, and keeps the old one."""
        self._gate.reload(settings)

    @contextlib.asynccontextmanager
    async def serve(self, sidecar: Sidecar) -> AsyncIterator[None]:
        """Listen while the context lasts. Raises OSError where it cannot."""
        app = AdminServer(sidecar, self._gate).application()
        runner = web.AppRunner(
            app, access_log=None, logger=_SILENT, handle_signals=False, keepalive_timeout=15.0, shutdown_timeout=1.0
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._where.host, self._where.port, reuse_address=True).start()
            log.info("admin listens", extra={"fields": {"listen": str(address.Address(*runner.addresses[0][:2]))}})
            yield
        finally:
            await runner.cleanup()
