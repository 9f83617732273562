"""PAI-EAS's TensorFlow processor over HTTP: the service of ``eas_service.py`` behind its URL and its authorization."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from capture.dialects.base import Unreadable
from capture.dialects.content_coding import IDENTITY, undone
from replay.eas_service import EasService
from replay.servable import Ledger

#: Where services are found unless a custom URL is configured.
PREFIX = "/api/predict/"
#: Requests that run at once (the documented default of rpc.worker_threads).
WORKER_THREADS = 5
MAX_BODY_BYTES = 2**31 - 1


class EasHost:
    """The HTTP side: ``POST /api/predict/<service>[/...]``, or a custom URL."""

    def __init__(self, service: EasService, ledger: Ledger, *, name: str, token: str = "", url: str = "") -> None:
        self._service = service
        self._ledger = ledger
        self._name = name
        self._token = token
        self._url = url
        self._pool = ThreadPoolExecutor(max_workers=WORKER_THREADS, thread_name_prefix="eas")

    def application(self) -> web.Application:
        """The aiohttp application; the caller runs it."""
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_route("*", "/{path:.*}", self._handle)
        return application

    def close(self) -> None:
        """Wait for running requests."""
        self._pool.shutdown()

    async def _handle(self, request: web.Request) -> web.Response:
        if not self._serves(request.path):
            return web.Response(status=404, text=f"no service at {request.path}")
        if request.method != "POST":
            return web.Response(status=405, text="POST a PredictRequest", headers={"Allow": "POST"})
        body = await request.read()
        if self._token and not authorized(self._token, request.headers, request.raw_path, body):
            return web.Response(status=401, text="the Authorization header is missing or wrong")
        coding = request.headers.get("Content-Encoding", IDENTITY)
        status, answer = await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, coding, body)
        kind = "application/octet-stream" if status == 200 else "text/plain"
        return web.Response(status=status, body=answer, content_type=kind)

    def _answer(self, coding: str, sent: bytes) -> tuple[int, bytes]:
        with self._ledger.request("eas") as opened:
            try:
                body = undone(coding, sent, MAX_BODY_BYTES)
            except Unreadable as error:
                opened.code = 400
                return 400, str(error).encode()
            opened.code, answer = self._service.answer(body)
            return opened.code, answer

    def _serves(self, path: str) -> bool:
        if self._url and path == self._url:
            return True
        root = PREFIX + self._name
        return path == root or path.startswith(root + "/")


def authorized(token: str, headers: Mapping[str, str], target: str, body: bytes) -> bool:
    """Whether the Authorization header is the bare token, or the SDKs' signature of this very request: HMAC-SHA1 over
    method, MD5 of the body, content type, date and path with query."""
    given = headers.get("Authorization", "")
    if hmac.compare_digest(given.encode(), token.encode()):
        return True
    if not given.startswith("EAS "):
        return False
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
    kind = headers.get("Content-Type", "application/octet-stream")
    signed = f"POST\n{digest}\n{kind}\n{headers.get('Date', '')}\n{target}"
    expected = base64.b64encode(hmac.new(token.encode(), signed.encode(), hashlib.sha1).digest())
    return hmac.compare_digest(given.removeprefix("EAS ").strip().encode(), expected)
