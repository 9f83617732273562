"""TLS on a blocking socket with all that TLS can say: close_notify in one direction, FIN without it, a cut."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

from tests.support.certificates import Issued


def client_context(ca: str, *alpn: str, own: Issued | None = None) -> ssl.SSLContext:
    """Trusts one authority only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    if alpn:
        context.set_alpn_protocols(alpn)
    if own is not None:
        context.load_cert_chain(*own)
    return context


def server_context(own: Issued, *alpn: str, client_ca: str = "") -> ssl.SSLContext:
    """For a model server; ``client_ca`` asks for a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*own)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


class TlsSocket:
    """As far as tests need a socket. ``shutdown`` says close_notify and FIN; ``recv`` gives b"" at a close_notify, and
    raises ssl.SSLEOFError at FIN without one."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_name: str | None = None) -> None:
        """With a server name the client's part. Raises ssl.SSLError where the handshake fails."""
        self.raw = sock
        # Or an answer would wait for the acknowledgement of TLS's own records, and be lost with a close.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )
        self._do(self.object.do_handshake)

    def _flush(self) -> None:
        if self._outgoing.pending:
            self.raw.sendall(self._outgoing.read())

    def _do(self, what: Callable[[], Any]) -> Any:
        """Repeat until it has what it needs."""
        while True:
            try:
                result = what()
            except ssl.SSLWantReadError:
                self._flush()
                data = self.raw.recv(1 << 20)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._flush()
                raise
            else:
                self._flush()
                return result

    def sendall(self, data: bytes, behind: bytes = b"") -> None:
        """``behind`` goes out as it is, in one send with the encrypted."""
        self.object.write(data)
        self.raw.sendall(self._outgoing.read() + behind)

    def recv(self, size: int) -> bytes:
        try:
            data: bytes = self._do(lambda: self.object.read(size))
        except ssl.SSLZeroReturnError:
            return b""
        return data

    def __enter__(self) -> TlsSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.raw.close()

    def notify(self) -> None:
        """close_notify alone."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.object.unwrap()
        self._flush()

    def shutdown(self, how: int) -> None:
        assert how == socket.SHUT_WR
        self.notify()
        self.raw.shutdown(how)

    def close(self) -> None:
        self.raw.close()
