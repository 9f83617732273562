"""One child process of the supervisor: started to die with it, its log lines read, its end awaited."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

LAUNCH = Path(__file__).with_name("launch.py")
#: Bytes of one log line that are passed on.
LINE_LIMIT = 8192


class Child:
    """A running process. ``signal_kill`` and ``wait`` are safe at any time."""

    def __init__(self, process: asyncio.subprocess.Process, lines: asyncio.Task[None]) -> None:
        self._process = process
        self._lines = lines

    @classmethod
    async def start(
        cls, command: Sequence[str], *, fds: Sequence[int], put_line: Callable[[bytes], None], nice: int = 0
    ) -> Child:
        """Exec ``command`` (its first word an absolute path) with these descriptors inherited; stdout and stderr become
        log lines. Raises OSError if the process cannot be started."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", str(LAUNCH), str(os.getpid()), *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LINE_LIMIT,
            pass_fds=fds,
        )
        if nice:
            try:
                os.setpriority(os.PRIO_PROCESS, process.pid, nice)
            except OSError:
                put_line(b'level=warning process=supervisor msg="cannot lower the worker\'s priority"')
        assert process.stdout is not None
        return cls(process, asyncio.get_running_loop().create_task(_pass_lines(process.stdout, put_line)))

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """The exit status, negative for a signal; all its log lines have been passed on."""
        status = await self._process.wait()
        # A grandchild could hold the pipe open for ever.
        await asyncio.wait({self._lines}, timeout=1.0)
        self._lines.cancel()
        return status

    async def end(self, seconds: float) -> int:
        """Wait so long, then kill."""
        try:
            async with asyncio.timeout(seconds):
                return await self.wait()
        except TimeoutError:
            self.signal_kill()
            return await self.wait()

    def signal_kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self._process.returncode is None:
            try:
                self._process.send_signal(signal.SIGKILL)
            except ProcessLookupError:
                return


async def _pass_lines(stream: asyncio.StreamReader, put_line: Callable[[bytes], None]) -> None:
    while True:
        try:
            line = await stream.readuntil(b"\n")
        except asyncio.IncompleteReadError as rest:
            if rest.partial:
                put_line(rest.partial)
            return
        except asyncio.LimitOverrunError as over:
            line = await stream.readexactly(over.consumed)
        put_line(line.rstrip(b"\n"))
