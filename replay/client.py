"""Sending stored requests to a running server, byte for byte, over the protocol that they were captured from."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from replay.credentials import Credential

#: A PredictRequest may be as large as a protobuf message can be. A channel of its own for each sender: what one learned
#: of a server that was down (gRPC waits longer each time) is no matter of the next.
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]
#: Of a server's own words about a failure.
MAX_ERROR_CHARS = 200
BODY_TYPE = "application/octet-stream"
#: The server, or what stands in front of it, is not there (yet); another answer is about the request.
_NOT_THERE = frozenset({502, 503, 504})


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as it goes out. ``path`` is that of the gRPC method, or of the URL as it is sent, with its query."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of one request. ``error`` is empty on success; ``seconds`` is the wall time that the caller saw;
    ``unavailable``: the server was not there, so nothing is said of the request."""

    error: str
    seconds: float
    unavailable: bool = False


class Sender(Protocol):
    """Sends requests to one server; several may be on their way."""

    async def send(self, request: Outgoing) -> Sent:
        """One request; waits for its answer."""

    async def close(self) -> None:
        """Give the connections back."""


class GrpcSender:
    """Unary gRPC calls."""

    def __init__(self, target: str, timeout: float, credential: Credential | None = None) -> None:
        """``target`` is ``host:port``, ``timeout`` seconds for each call."""
        # Late: HTTP needs no gRPC, which is no dependency of the sidecar.
        import grpc

        self._error: type[Exception] = grpc.RpcError
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self._timeout = timeout
        self._credential = credential
        self._methods: dict[str, Any] = {}

    async def send(self, request: Outgoing) -> Sent:
        method = self._methods.get(request.path)
        if method is None:
            method = self._channel.unary_unary(request.path, request_serializer=bytes, response_deserializer=bytes)
            self._methods[request.path] = method
        headers = {} if self._credential is None else self._credential.headers(request.path, request.body, "")
        metadata = [(name.lower(), value) for name, value in headers.items()]
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def wake(_: Any) -> None:
            # On gRPC's thread. A loop that is closed waits for nothing.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

        start = time.perf_counter()
        call = method.future(request.body, timeout=self._timeout, metadata=metadata)
        call.add_done_callback(wake)
        try:
            await done.wait()
        finally:
            call.cancel()
        seconds = time.perf_counter() - start
        error = call.exception()
        if error is None:
            return Sent("", seconds)
        if not isinstance(error, self._error):
            raise error
        code = call.code().name
        text = f"{code}: {call.details()}"
        return Sent(_hidden(text, self._credential), seconds, code == "UNAVAILABLE")

    async def close(self) -> None:
        self._channel.close()


class HttpSender:
    """POSTs over HTTP/1.1, on kept connections."""

    def __init__(self, target: str, timeout: float, credential: Credential | None = None) -> None:
        """``target`` is ``host:port``, ``timeout`` seconds for each call."""
        self._base = f"http://{target}"
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._credential = credential
        self._session: aiohttp.ClientSession | None = None

    async def send(self, request: Outgoing) -> Sent:
        if self._session is None:
            # No limit: how many are on their way is the caller's business. What is answered is not unpacked.
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, auto_decompress=False)
        headers = {"Content-Type": BODY_TYPE, **request.headers}
        if self._credential is not None:
            headers |= self._credential.headers(request.path, request.body, headers["Content-Type"])
        # Encoded: a signature holds for the very bytes of the path.
        url = URL(self._base + request.path, encoded=True)
        start = time.perf_counter()
        try:
            async with self._session.post(url, data=request.body, headers=headers, allow_redirects=False) as response:
                answer = await response.read()
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            text = f"{type(error).__name__}: {error}"
            down = not isinstance(error, TimeoutError)
            return Sent(_hidden(text, self._credential), time.perf_counter() - start, down)
        seconds = time.perf_counter() - start
        if 200 <= response.status < 300:
            return Sent("", seconds)
        text = f"HTTP {response.status}: {answer[:MAX_ERROR_CHARS].decode('utf-8', 'replace')}"
        return Sent(_hidden(text, self._credential), seconds, response.status in _NOT_THERE)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def _hidden(text: str, credential: Credential | None) -> str:
    """An error on one line, without what a server may have repeated of a credential."""
    text = " ".join(text.split())
    return text if credential is None else credential.hide(text)


class _Blocking:
    """A sender for callers without a loop, one request at a time, all to one path."""

    def __init__(self, sender: Sender, path: str) -> None:
        self._sender = sender
        self._path = path
        self._runner = asyncio.Runner()

    def send(self, body: bytes) -> Sent:
        """One request; waits for its answer."""
        return self._runner.run(self._sender.send(Outgoing(self._path, body)))

    def close(self) -> None:
        """Give the connection back."""
        self._runner.run(self._sender.close())
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class TFServingSender(_Blocking):
    """PredictRequest bodies over gRPC."""

    def __init__(self, target: str, timeout: float) -> None:
        """``target`` is ``host:port``, ``timeout`` seconds for each call."""
        super().__init__(GrpcSender(target, timeout), grpc_path("Predict"))


class EasSender(_Blocking):
    """EAS request bodies over HTTP, on one kept connection."""

    def __init__(self, target: str, service: str, timeout: float) -> None:
        """``target`` is ``host:port``, ``timeout`` seconds for each call."""
        super().__init__(HttpSender(target, timeout), eas_path(service))


def grpc_path(method: str) -> str:
    """Of one of TF Serving's methods."""
    service = "SessionService" if method == "SessionRun" else "PredictionService"
    return f"/tensorflow.serving.{service}/{method}"


def eas_path(service: str) -> str:
    """Where a service answers unless it has a URL of its own."""
    return f"/api/predict/{quote(service, safe='')}"
