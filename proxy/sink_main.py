"""The process that answers mirrored traffic. Started by the supervisor with inherited descriptors: configuration
(JSON), the socket to listen on, and control: there it says ``ready``, then ``beat`` once a second, and ends when it
reads an end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import socket
from typing import Any, Final

import msgspec

from capture.logline import LineFormatter
from proxy.relay_main import new_event_loop
from proxy.sink import Sink, SinkConfig

log = logging.getLogger("sink")

READY: Final = b"ready"
BEAT: Final = b"beat"
#: Seconds between two signs of life.
BEAT_SECONDS: Final = 1.0
#: Seconds that what is half answered may take at the end.
CLOSE_SECONDS: Final = 1.0


async def run(config: SinkConfig, control: socket.socket, listening: socket.socket) -> None:
    """Answer until the supervisor closes its end."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_failure)
    sink = Sink(loop, config)
    listening.setblocking(False)
    control.setblocking(False)
    # As many may wait as may be open.
    server = await loop.create_server(sink.connection, sock=listening, backlog=config.max_connections)
    beat = loop.create_task(_beat(control))
    with contextlib.suppress(OSError):
        while await loop.sock_recv(control, 64):
            pass
    beat.cancel()
    server.close()
    await sink.close(CLOSE_SECONDS)


async def _beat(control: socket.socket) -> None:
    message = READY
    while True:
        with contextlib.suppress(OSError):  # not heard: the supervisor is stopped, or gone, which ends `run`
            control.send(message)
        message = BEAT
        await asyncio.sleep(BEAT_SECONDS)


def _log_failure(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Never its repr: it may hold what was sent.
    log.error(str(context.get("message")), extra={"fields": {"cause": type(context.get("exception")).__name__}})


def main() -> None:
    """``python -m proxy.sink_main --config-fd N --control-fd N --listen-fd N``; stderr is the log pipe."""
    parser = argparse.ArgumentParser()
    for name in ("config", "control", "listen"):
        parser.add_argument(f"--{name}-fd", type=int, required=True)
    options = parser.parse_args()
    with open(options.config_fd, "rb") as file:
        config = msgspec.json.decode(file.read(), type=SinkConfig)
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("sink"))
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run(config, socket.socket(fileno=options.control_fd), socket.socket(fileno=options.listen_fd)))


if __name__ == "__main__":
    main()
