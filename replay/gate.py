"""Not ready until warm: sends all records to a server that starts, and only then says ready. Again after each restart.

For servers that read no warm-up file, or one that holds a single signature (EAS documents one).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import aiohttp
from aiohttp import web

from capture.errors import UserError
from replay.client import Sender
from replay.player import Pace, Player
from replay.records import Record
from replay.report import document

_log = logging.getLogger("gate")
#: Failed records that are logged one by one.
MAX_TOLD = 20
#: Times that all is sent again because the server was there for a part of it only.
MAX_PARTLY = 2
#: Seconds to the first new connection after one that ended; doubled while they end at once.
_AGAIN = 0.02
_CHUNK = 1 << 16
#: Seconds that a connection is held.
_LOOK = 5.0
#: Seconds for a connect, and for an answer of the status URL.
_CONNECT = 5.0

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
#: The records, and how a connection to the server is made: both are looked at again for each start of the server.
Prepare = Callable[[], tuple[Sequence[Record], Callable[[], Sender]]]


class State(StrEnum):
    """What the gate says. ``READY`` alone is a 200."""

    WAITING = "waiting"
    WARMING = "warming"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class GateOptions:
    """``host`` and ``port`` are the server's; ``status_url`` is asked too where it is not empty. From the start, and
    from each restart of the server, it may take ``timeout`` seconds until ready. ``strict``: what fails, or is late,
    keeps it unready. ``interval``: seconds between two looks at a server that is not there."""

    target: str
    host: str
    port: int
    pace: Pace
    status_url: str = ""
    timeout: float = 600.0
    strict: bool = False
    interval: float = 0.5


class Gate:
    """The state machine: waiting, warming, ready or failed; back to waiting when the server goes away."""

    def __init__(self, options: GateOptions, prepare: Prepare) -> None:
        """Prepares for the first time. Raises UserError."""
        self._options = options
        self._prepare = prepare
        self._records, self._open = prepare()
        self._player = Player((), options.pace)
        self._turns = 0
        self.state = State.WAITING
        self.reason = f"waiting for {options.target}"

    def application(self) -> web.Application:
        """``/readyz`` for probes, ``/report`` for people."""
        application = web.Application()
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/report", self._report)
        return application

    async def _readyz(self, _: web.Request) -> web.Response:
        ready = self.state is State.READY
        return web.Response(status=200 if ready else 503, text=f"{'ready' if ready else 'not ready'}: {self._text()}\n")

    async def _report(self, _: web.Request) -> web.Response:
        found = {"state": self.state, "reason": self._text(), "starts": self._turns}
        return web.json_response(found | document(self._options.target, self._player))

    def _text(self) -> str:
        if self.state is State.WARMING:
            return f"warming: {self._player.sent} requests sent, {len(self._records)} records"
        return self.reason

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._options.timeout
        while True:
            connection = await _within(deadline, self._accepted())
            if connection is None:
                self._settle(f"the server was not there within {self._options.timeout:g} s")
                connection = await self._accepted()
                deadline = loop.time() + self._options.timeout
            await self._stay(connection, deadline)
            self._player = Player((), self._options.pace)
            self._turn(State.WAITING, f"{self._options.target} went away; waiting for it")
            deadline = loop.time() + self._options.timeout

    async def _stay(self, connection: Connection, deadline: float) -> None:
        """From a server's first connection until it goes away."""
        gone, warm = asyncio.ensure_future(self._gone(connection)), asyncio.ensure_future(self._warm())
        try:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            await asyncio.wait((gone, warm), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                return gone.result()
            if warm.done():
                warm.result()
                self._settle("")
            else:
                await _cancelled(warm)
                self._settle(f"not warm within {self._options.timeout:g} s")
            await gone
        finally:
            await _cancelled(gone)
            await _cancelled(warm)

    # --- the server ---------------------------------------------------------------------------------------------------

    async def _accepted(self) -> Connection:
        """A connection to the server, as soon as it takes one and its status is good."""
        while True:
            if (connection := await self._connect()) is not None:
                if not self._options.status_url or await self._available():
                    return connection
                connection[1].close()
            await asyncio.sleep(self._options.interval)

    async def _connect(self) -> Connection | None:
        try:
            return await self._open_connection()
        except OSError:
            # TimeoutError is one.
            return None

    async def _open_connection(self) -> Connection:
        async with asyncio.timeout(_CONNECT):
            return await asyncio.open_connection(self._options.host, self._options.port)

    async def _available(self) -> bool:
        """200; and of what is TF Serving's model status, one version AVAILABLE."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_CONNECT)) as session,
                session.get(self._options.status_url) as response,
            ):
                if response.status != 200:
                    return False
                try:
                    found: Any = await response.json(content_type=None)
                except ValueError:
                    return True
        except (OSError, aiohttp.ClientError):
            return False
        versions = found.get("model_version_status") if isinstance(found, dict) else None
        if not isinstance(versions, list):
            return True
        return any(isinstance(one, dict) and one.get("state") == "AVAILABLE" for one in versions)

    async def _gone(self, connection: Connection) -> None:
        """Returns when the server refuses. It holds a connection on which nothing is sent: where that ends the server
        has ended, or closes what is idle; a new one tells. One that does not end is replaced now and then, which tells
        of a server that listens no more."""
        loop = asyncio.get_running_loop()
        pause = _AGAIN
        while True:
            since = loop.time()
            reader, writer = connection
            try:
                with contextlib.suppress(OSError):
                    # TimeoutError is one.
                    async with asyncio.timeout(_LOOK):
                        while await reader.read(_CHUNK):
                            pass
            finally:
                writer.close()
            if loop.time() - since > self._options.interval:
                pause = _AGAIN
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._options.interval)
            again = await self._again()
            if again is None:
                return
            connection = again

    async def _again(self) -> Connection | None:
        """A new connection; None if the server refuses. One that is too busy to accept, or a name that cannot be looked
        up, is no restart: a gate that closed then would take a server that is merely full out of service."""
        while True:
            try:
                return await self._open_connection()
            except (TimeoutError, socket.gaierror):
                await asyncio.sleep(self._options.interval)
            except OSError:
                return None

    # --- warming ------------------------------------------------------------------------------------------------------

    async def _warm(self) -> None:
        """All records. While nothing but "not there" is heard, from the server or from what stands in front of it, it
        is not started yet: again. Where some heard that, it started meanwhile: again, but not for ever."""
        partly = 0
        self._turns += 1
        if self._turns > 1:
            await self._look_again()
        while True:
            self._player = Player(self._records, self._options.pace)
            self._turn(State.WARMING, "")
            sender = self._open()
            try:
                await self._player.play(sender)
            finally:
                await sender.close()
            if not any(one.unavailable for one in self._player.played):
                return
            # It may have gone just now, which is told by the connection, not by requests.
            await asyncio.sleep(self._options.interval)
            partly += not self._player.unavailable
            if partly > MAX_PARTLY:
                return

    async def _look_again(self) -> None:
        try:
            self._records, self._open = await asyncio.to_thread(self._prepare)
        except (UserError, OSError) as error:
            _say(logging.WARNING, "what was read before is sent again", error=error)

    # --- what is said -------------------------------------------------------------------------------------------------

    def _settle(self, late: str) -> None:
        """Ready, or failed where that is asked for. ``late`` says what was not done in time, "" if all was."""
        failed = [one for one in self._player.played if one.failed]
        for one in failed[:MAX_TOLD]:
            reason, _ = one.failures.most_common(1)[0]
            _say(
                logging.WARNING,
                "record failed",
                record=one.record.place,
                signature=one.record.identity[:15],
                sent=one.sent,
                failed=one.failed,
                reason=reason,
            )
        text = late or f"{len(self._records)} records, {self._player.sent} requests sent"
        if skipped := sum(one.record.elsewhere for one in self._player.played):
            text += f"; {skipped} of another protocol are skipped"
        if failed:
            text += f"; {len(failed)} records failed"
        wrong = bool(late or failed)
        self._turn(State.FAILED if wrong and self._options.strict else State.READY, text, wrong=wrong)

    def _turn(self, state: State, reason: str, *, wrong: bool = False) -> None:
        fields = {"reason": reason} if reason else {}
        _say(logging.WARNING if wrong else logging.INFO, state.value, target=self._options.target, **fields)
        self.state, self.reason = state, reason


def _say(level: int, text: str, **fields: object) -> None:
    _log.log(level, text, extra={"fields": fields})


async def _within(deadline: float, what: Awaitable[Connection]) -> Connection | None:
    """What comes of it, None if it takes longer than until ``deadline`` (the loop's time)."""
    try:
        async with asyncio.timeout_at(deadline):
            return await what
    except TimeoutError:
        return None


async def _cancelled(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


async def serve(gate: Gate, host: str, port: int) -> bool:
    """Serve until SIGTERM or SIGINT; whether the gate did not fail. One line goes to standard output once it listens:
    ``listening http://HOST:PORT/readyz``. Raises UserError if it cannot."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(gate.application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    tasks: set[asyncio.Future[Any]] = {asyncio.ensure_future(stop.wait())}
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise UserError(f"--gate: cannot listen on {host}:{port}: {error.strerror}") from None
        named = f"[{host}]" if ":" in host else host
        print(f"listening http://{named}:{runner.addresses[0][1]}/readyz", flush=True)
        running: asyncio.Future[Any] = asyncio.ensure_future(gate.run())
        tasks.add(running)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            # It never ends by itself: this is a mistake of ours, and it is told.
            running.result()
        return gate.state is not State.FAILED
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await runner.cleanup()
