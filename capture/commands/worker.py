"""``capture worker``: the capture worker in a container of its own, joined to the sidecar by a Unix socket.

One message of a SOCK_SEQPACKET connection hands over a tap: JSON, ``{"protocol": 1, "fds": ["tap", "counters",
"config"], "pair": 0}``, with the descriptors in that order (SCM_RIGHTS). Descriptors of other names are closed. The
connection stays open for as long as the tap is read; when it breaks, what has arrived is written, and a new one made.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import socket
from typing import Annotated, Final

import msgspec
import typer

from capture.config import LOWEST_MEMORY_BYTES
from capture.errors import UserError
from capture.restarting import restarted
from capture.worker import DONE, MEMORY_SHARE, OUT_OF_MEMORY, Handed, begin_log, prepare, say, work
from capture.worker_memory import resident_bytes

#: The version of the message.
PROTOCOL: Final = 1
#: Bytes of the message, and descriptors that come with it.
MAX_MESSAGE: Final = 4096
MAX_FDS: Final = 16
#: Seconds between attempts to get a tap: doubling up to the limit, and from the start again after one that was read.
BACKOFF_FIRST: Final = 0.1
BACKOFF_LIMIT: Final = 5.0


class Handover(msgspec.Struct, frozen=True):
    """The message. Unknown keys are ignored: a newer sidecar may say more."""

    protocol: int
    fds: list[str]
    pair: int = 0


class NoTap(Exception):
    """What was received is no tap. The text says why."""


def worker(
    connect: Annotated[
        str, typer.Option("--connect", help="The sidecar's capture.worker_socket.", metavar="unix:/PATH")
    ],
    store: Annotated[
        str, typer.Option("--store", help="The store, in place of the one in the sidecar's settings.", metavar="STORE")
    ] = "",
    memory_bytes: Annotated[
        int,
        typer.Option(
            "--memory-bytes",
            min=0,
            help="Address space of the worker; it ends when 80 % are resident. 0: what the container allows.",
        ),
    ] = 0,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Run it in a child that is started anew whatever ends it: the container, and its pod, stay ready.",
        ),
    ] = False,
) -> None:
    """Run the capture worker of a sidecar in a container of its own, with limits of its own. Until SIGTERM.

    Exit codes: 0 after SIGTERM, 1 wrong usage, 3 memory ran out.
    """
    scheme, _, path = connect.partition(":")
    if scheme != "unix" or not path:
        raise UserError(f"--connect {connect}: give unix:/PATH, the sidecar's capture.worker_socket")
    if 0 < memory_bytes < LOWEST_MEMORY_BYTES:
        raise UserError(f"--memory-bytes {memory_bytes}: give 0 (no limit) or {LOWEST_MEMORY_BYTES} and more")

    def run() -> int:
        return _keep(path, store, memory_bytes, prepare())

    begin_log()
    raise typer.Exit(restarted(run) if restart else run())


def _keep(path: str, store: str, memory_bytes: int, told: int) -> int:
    """Connect, work, again and again until ``told`` can be read. The exit code."""
    wait = BACKOFF_FIRST
    said = ""
    while not _readable(told, 0):
        status = -1
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
                link.connect(path)
                if _wait(link, told):
                    handed = _receive(link)
                    say(logging.INFO, "connected", sidecar=path, pair=handed.pair)
                    said = ""
                    status = work(handed, store=store, memory_bytes=memory_bytes, stop=[told, link.fileno()])
                    # What a worker held is in cycles, and with it descriptors: the next one may come at once.
                    gc.collect()
        except (OSError, NoTap) as error:
            # Once for each reason: a sidecar may be away for hours.
            reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            if reason != said:
                said = reason
                say(logging.WARNING, "waiting for the sidecar", sidecar=path, reason=reason)
        if status == OUT_OF_MEMORY or (memory_bytes and resident_bytes() > MEMORY_SHARE * memory_bytes):
            return OUT_OF_MEMORY
        if status == DONE:
            wait = BACKOFF_FIRST
        elif not _readable(told, wait):
            wait = min(2 * wait, BACKOFF_LIMIT)
    return DONE


def _readable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


def _wait(link: socket.socket, told: int) -> bool:
    """Until the sidecar has a tap to hand over, however long; False when it is time to end."""
    poll = select.poll()
    for fd in (link.fileno(), told):
        poll.register(fd, select.POLLIN)
    return told not in {fd for fd, _ in poll.poll()}


def _receive(link: socket.socket) -> Handed:
    """The descriptors of the message. Raises NoTap and OSError; then none is open."""
    message, fds, _, _ = socket.recv_fds(link, MAX_MESSAGE, MAX_FDS)
    named: dict[str, int] = {}
    try:
        if not message:
            raise NoTap("it closed the connection")
        try:
            handover = msgspec.json.decode(message, type=Handover)
        except msgspec.MsgspecError as error:
            raise NoTap(f"it sent no tap: {error}") from None
        if handover.protocol != PROTOCOL:
            raise NoTap(f"it speaks protocol {handover.protocol}, this worker {PROTOCOL}: run one version of both")
        if len(handover.fds) != len(fds):
            raise NoTap(f"it named {len(handover.fds)} descriptors and sent {len(fds)}")
        named = dict(zip(handover.fds, fds, strict=True))
        known = {name: named[name] for name in ("tap", "counters", "config", "state", "status") if name in named}
        if len(known.keys() - {"state", "status"}) != 3:
            raise NoTap(f"it sent no tap, but: {', '.join(handover.fds) or 'nothing'}")
        handed = Handed(pair=handover.pair, **known)
    except NoTap:
        for fd in fds:
            os.close(fd)
        raise
    for fd in set(fds) - set(known.values()):
        os.close(fd)
    return handed
