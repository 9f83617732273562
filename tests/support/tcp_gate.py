"""What stands between a sidecar and its store: a network that breaks, or a name that leads to another server."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Literal, Self

#: ``pass``: to the server; ``cut``: connections are reset, new ones too; ``swallow``: they are accepted, and what is
#: sent is taken and never answered, as behind a firewall that drops.
Mode = Literal["pass", "cut", "swallow"]


class Gate:
    """A TCP forwarder on loopback."""

    def __init__(self, port: int) -> None:
        """``port``: the server's."""
        self._to = port
        self._mode: Mode = "pass"
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        #: Connections that came in, however they ended.
        self.accepted = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.turn("cut")

    def turn(self, mode: Mode, port: int = 0) -> None:
        """From now on; with ``port`` to another server. Connections that are open are reset, or see nothing more."""
        with self._lock:
            self._mode, self._to = mode, port or self._to
            gone = set() if mode == "swallow" else set(self._open)
        for one in gone:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.accepted += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            with self._lock:
                mode, to = self._mode, self._to
                if mode == "cut":
                    return
                self._open.add(client)
                stack.callback(self._open.discard, client)
            if mode == "swallow":
                while client.recv(65536):
                    pass
                return
            server = stack.enter_context(socket.create_connection(("127.0.0.1", to)))
            back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
            back.start()
            self._copy(client, server)
            back.join()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._mode != "swallow":
                    target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
