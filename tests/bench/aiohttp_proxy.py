"""A reverse proxy as one writes it by hand with aiohttp: whole bodies, connections kept, uvloop.

``python -m tests.bench.aiohttp_proxy LISTEN_PORT UPSTREAM_PORT``
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web

#: RFC 9110 §7.6.1: these belong to one connection.
_HOP_BY_HOP = {"connection", "keep-alive", "te", "transfer-encoding", "upgrade", "content-length", "host"}


def application(upstream: str) -> web.Application:
    """All paths to ``upstream`` (``http://host:port``)."""

    async def forward(request: web.Request) -> web.StreamResponse:
        session = request.app["session"]
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        body = await request.read()
        async with session.request(request.method, upstream + request.raw_path, headers=headers, data=body) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
            return web.Response(status=answer.status, headers=kept, body=await answer.read())

    async def session(app: web.Application):  # type: ignore[no-untyped-def]
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as opened:
            app["session"] = opened
            yield

    app = web.Application(client_max_size=1 << 30)
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", forward)
    return app


def main() -> None:
    listen, upstream = (int(argument) for argument in sys.argv[1:3])
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    web.run_app(application(f"http://127.0.0.1:{upstream}"), host="127.0.0.1", port=listen, access_log=None, print=None)


if __name__ == "__main__":
    main()
