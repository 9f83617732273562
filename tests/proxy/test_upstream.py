"""Names of model servers: looked up off the path, and again after ``resolve_interval``."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from proxy.address import Address
from proxy.upstream import Upstream

pytestmark = pytest.mark.server


class Server(asyncio.Protocol):
    """Says where it is, and closes."""

    def __init__(self, where: str) -> None:
        self._where = where

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self._where.encode())
        transport.close()


class Client(asyncio.Protocol):
    """What it was told."""

    def __init__(self) -> None:
        self.told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.told.set_result(data.decode())


@pytest.mark.parametrize(("interval", "found"), [(0.0, "127.0.0.2"), (3600.0, "127.0.0.1")])
async def test_a_name_that_moves_is_followed_after_the_interval(
    interval: float, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No name service can be made to answer so here: the loop's look-up is a stand-in, the connections are real."""
    loop = asyncio.get_running_loop()
    first = await loop.create_server(lambda: Server("127.0.0.1"), "127.0.0.1", 0)
    port = first.sockets[0].getsockname()[1]
    second = await loop.create_server(lambda: Server("127.0.0.2"), "127.0.0.2", port)
    answers, looked_up = ["127.0.0.1"], asyncio.Event()
    real = loop.getaddrinfo

    async def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != "model.example":
            return await real(host, *arguments, **options)
        looked_up.set()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers[-1], port))]

    monkeypatch.setattr(loop, "getaddrinfo", look_up)
    upstream = Upstream(Address("model.example", port), resolve_interval=interval)

    async def ask() -> str:
        client = Client()
        await upstream.connect(loop, lambda: client)
        return await client.told

    async with first, second:
        assert await ask() == "127.0.0.1"
        answers.append("127.0.0.2")
        looked_up.clear()
        # Nobody waits for the second look: this one still goes where the name was.
        assert await ask() == "127.0.0.1"
        if not interval:
            await looked_up.wait()
            await asyncio.sleep(0)
        assert await ask() == found
