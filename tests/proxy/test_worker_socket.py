"""Several pairs wait for workers at one socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.worker_socket import WorkerSocket


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "worker.sock")


@pytest.fixture
def workers() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def connect(path: str, stack: contextlib.ExitStack) -> socket.socket:
    """A worker, as far as that goes."""
    link = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    link.connect(path)
    return link


async def test_each_pair_gets_a_worker_of_its_own(path: str, workers: contextlib.ExitStack) -> None:
    """With one wait for the socket in place of the other, all but one pair would never get one."""
    place = WorkerSocket(path)
    place.listen()
    async with asyncio.timeout(20), asyncio.TaskGroup() as pairs:
        waiting = [pairs.create_task(place.next()) for _ in range(3)]
        await asyncio.sleep(0)  # all of them wait before the first worker comes
        links = [connect(path, workers) for _ in waiting]
    for number, task in enumerate(waiting):
        workers.enter_context(task.result())
        place.hand_over(task.result(), number, {"tap": links[number].fileno()})
    pairs_told = set()
    for link in links:
        message, fds, _, _ = socket.recv_fds(link, 4096, 16)
        pairs_told.add(message)
        for fd in fds:
            workers.enter_context(socket.socket(fileno=fd))
    assert len(pairs_told) == len(waiting)
    place.close()


async def test_a_pair_that_waits_no_longer_leaves_the_next_worker_to_the_others(
    path: str, workers: contextlib.ExitStack
) -> None:
    place = WorkerSocket(path)
    place.listen()
    for gone in range(2):
        waiting = [asyncio.ensure_future(place.next()) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[gone].cancel()
        await asyncio.sleep(0)
        connect(path, workers)
        async with asyncio.timeout(20):
            workers.enter_context(await waiting[1 - gone])
        assert waiting[gone].cancelled()
    place.close()
