"""The sidecar's side of ``capture.worker_socket``, as far as handing over goes: a stand-in for the supervisor. Socket,
descriptors, tap and counters are real."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from capture.config import WorkerConfig
from capture.counters import Counters
from tests.support.tap_frames import START, Flow, encode, hello, time_frame
from tests.support.waiting import PATIENCE


class Handover:
    """Listens at ``path``. After :meth:`accept` and :meth:`give`, ``tap`` is the relay's end."""

    def __init__(self, path: Path, pairs: int = 1) -> None:
        self.path = path
        self.counters = Counters.create(pairs)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(PATIENCE)
        # Until there is one, any socket that can be closed.
        self.link = self.tap = socket.socket(socket.AF_UNIX)

    def accept(self) -> None:
        self.link.close()
        self.link, _ = self._listener.accept()

    def give(
        self,
        config: WorkerConfig,
        *,
        pair: int = 0,
        protocol: int = 1,
        names: Sequence[str] = ("tap", "counters", "config"),
        more: Sequence[int] = (),
        **said: Any,
    ) -> None:
        """Send the message; ``more`` are descriptors for the names beyond the third."""
        self.tap.close()
        self.tap, theirs = socket.socketpair()
        self.tap.settimeout(PATIENCE)
        # Before the worker has its end: one that cannot use what it is given closes that.
        self.tap.sendall(encode([hello(), time_frame(START)]))
        with tempfile.TemporaryFile() as file:
            file.write(msgspec.json.encode(config))
            file.seek(0)
            message = {"protocol": protocol, "fds": list(names), "pair": pair, **said}
            fds = [theirs.fileno(), self.counters.fd, file.fileno(), *more]
            socket.send_fds(self.link, [json.dumps(message).encode()], fds)
        theirs.close()

    def send(self, *flows: Flow) -> None:
        for flow in flows:
            self.tap.sendall(encode(flow.frames))
            flow.frames.clear()

    def close(self) -> None:
        """As a sidecar that is gone: the path too."""
        for sock in (self._listener, self.link, self.tap):
            sock.close()
        self.path.unlink(missing_ok=True)
