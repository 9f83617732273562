"""A real HTTP/1.1 server that proves what it received, and clients that check what they get."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import random
import socket
import ssl
import threading
from collections.abc import Iterator

from tests.support.waiting import PATIENCE, until


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers a POST with the SHA-256 of its body."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "64")
        self.end_headers()
        self.wfile.write(hashlib.sha256(body).hexdigest().encode())

    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, *_: object) -> None:
        """A client that resets is no news."""


@contextlib.contextmanager
def echo_server(handler: type[Echo] = Echo, port: int = 0, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """``host:port`` of the server; with a context it speaks TLS."""
    with _Server(("127.0.0.1", port), handler) as httpd:
        if context is not None:
            httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{httpd.server_port}"
        finally:
            httpd.shutdown()
            thread.join()


def http_socket(connection: http.client.HTTPConnection) -> socket.socket:
    """The socket of an open connection."""
    assert connection.sock is not None
    return connection.sock  # type: ignore[no-any-return]


class Load:
    """Clients that post random bodies and check every answer, with and without keep-alive, until told to stop."""

    def __init__(
        self,
        port: int,
        *,
        keep_alive: bool = True,
        context: ssl.SSLContext | None = None,
        each: int = 0,
        pause: float = 0.0,
    ) -> None:
        """``keep_alive``: half of the clients keep their connection, for ``each`` requests or (0) for ever; over TLS
        with a ``context``; with a ``pause`` in seconds between two requests of a client."""
        self._pause = pause
        self._port = port
        self._keep_alive = keep_alive
        self._context = context
        self._each = each
        self._stop = threading.Event()
        self.answered = 0
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(4)]

    def _run(self, number: int) -> None:
        rng, keep = random.Random(number), self._keep_alive and number % 2 == 0
        connection = (
            http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
            if self._context is None
            else http.client.HTTPSConnection("127.0.0.1", self._port, timeout=PATIENCE, context=self._context)
        )
        asked = 0
        while not self._stop.wait(self._pause):
            body = rng.randbytes(rng.choice((10, 10_000, 200_000)))
            try:
                connection.request("POST", "/", body)
                answer = connection.getresponse().read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                break
            if answer != hashlib.sha256(body).hexdigest().encode():
                self.failures.append(f"{len(body)} bytes: wrong answer")
            self.answered += 1
            asked += 1
            if not keep or (self._each and asked % self._each == 0):
                connection.close()
        connection.close()

    def more(self, requests: int = 300) -> None:
        """Wait until so many more were answered."""
        goal = self.answered + requests
        until(lambda: self.answered >= goal or self.failures)
        assert not self.failures

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
