"""TLS in front of a server that speaks none, as stunnel is: the server package for tests has no TLS of its own."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator

from tests.support.certificates import Issued


@contextlib.contextmanager
def tls_front(issued: Issued, ca: str, port: int) -> Iterator[int]:
    """The port where whoever has a certificate of ``ca`` reaches ``port``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate, issued.key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with (
                contextlib.suppress(OSError),
                context.wrap_socket(self.request, server_side=True) as client,
                socket.create_connection(("127.0.0.1", port)) as server,
            ):
                back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                back.start()
                _copy(client, server)
                back.join()

    class Front(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Front(("127.0.0.1", 0), Handler) as front:
        thread = threading.Thread(target=front.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield int(front.server_address[1])
        finally:
            front.shutdown()
            thread.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
