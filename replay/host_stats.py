"""The side door of the model host: TensorFlow's counters as TF Serving exports them, and what each request cost."""

from __future__ import annotations

import re

from aiohttp import web

from replay.executor.api import COUNTERS, Executor
from replay.servable import Ledger
from replay.watching import METRICS_PATH

_MANGLED = re.compile(r"[^A-Za-z0-9_]")


def prometheus(executor: Executor) -> str:
    """The counters in TF Serving's text format (util/prometheus_exporter.cc): a name's odd characters become colons.
    A counter that cannot be read (level ``runs``) is absent."""
    lines = []
    for name in COUNTERS:
        value = executor.counter(name)
        if value is not None:
            mangled = _MANGLED.sub(":", name)
            lines += [f"# TYPE {mangled} counter", f"{mangled}{{}} {value}"]
    return "\n".join(lines) + "\n" if lines else ""


def application(executor: Executor, ledger: Ledger) -> web.Application:
    """``GET /monitoring/prometheus/metrics`` (text) and ``GET /stats`` (JSON, see Ledger.snapshot)."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=prometheus(executor))

    async def stats(_: web.Request) -> web.Response:
        return web.json_response(ledger.snapshot() | {"level": executor.level})

    app = web.Application()
    app.router.add_get(METRICS_PATH, metrics)
    app.router.add_get("/stats", stats)
    return app
