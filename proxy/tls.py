"""One end of a flow that speaks TLS: between its socket and its :class:`~proxy.sides.Side`.

    socket ──▶ TlsEnd ──plaintext──▶ Side ──▶ the other end, the tap
    socket ◀── TlsEnd ◀──plaintext── write()

It is the protocol of the socket's transport and the transport of the side. OpenSSL works on memory only
(``ssl.MemoryBIO``): uvloop's own TLS has no half-close, never tells of a close_notify, and loses an answer that is
pending then.

How TLS ends, as far as both protocols can say it::

    close_notify from a peer           EOF for the other end
    FIN without one, from a client     the same: the framing of a request says whether it is complete
    FIN without one, from a server     FIN without one for a client that speaks TLS, a reset for one that does not:
                                       a cut answer must not look complete (RFC 9112, section 9.8)
    a record that cannot be read       an alert, then a reset of both ends
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from proxy.sides import ClientSide, ServerSide, Transport

#: Bytes given to OpenSSL at once. Its buffers grow with what they are given, and shrink only with the connection.
_PIECE_BYTES: Final = 32 << 10
#: Plaintext of one record at most (RFC 8446, section 5.1), and so of one read.
_RECORD_BYTES: Final = 16 << 10
#: Bytes in a row from a peer that carry nothing for the other end: demands to renegotiate (4 us of CPU each), new
#: keys (47 us). More than any record, ticket or client that changes its keys now and then.
_BARREN_BYTES: Final = 64 << 10
#: The same for a handshake. OpenSSL takes chains of certificates up to 100 KB.
_HANDSHAKE_BYTES: Final = 128 << 10
#: Bytes that wait for a peer which makes TLS itself answer and does not read. Beyond what a slow reader of answers
#: leaves: then the other end is paused.
_UNREAD_BYTES: Final = 1 << 20


class TlsEnd(asyncio.Protocol):
    """Made by :meth:`to_client` or :meth:`to_server`."""

    __slots__ = (
        "_barren",
        "_context",
        "_ended",
        "_fin",
        "_heard",
        "_incoming",
        "_object",
        "_outgoing",
        "_raw",
        "_ready",
        "_secured",
        "_side",
        "was_cut",
    )

    _raw: Transport
    _object: ssl.SSLObject

    def __init__(
        self, side: ClientSide | ServerSide, context: ssl.SSLContext, ready: asyncio.Future[None] | None
    ) -> None:
        self._side = side
        self._context = context
        self._ready = ready
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        #: Bytes from the peer since the last that were for the other end.
        self._barren = 0
        #: Anything came from the peer; the handshake is complete; the peer says no more (close_notify, or it failed);
        #: FIN went out to it.
        self._heard = self._secured = self._ended = self._fin = False
        #: :meth:`cut` was called, and the peer had more to say.
        self.was_cut = False
        side.tls = self

    @classmethod
    def to_client(cls, side: ClientSide, context: ssl.SSLContext) -> TlsEnd:
        """The server's part, on an accepted connection."""
        return cls(side, context, None)

    @classmethod
    def to_server(
        cls, side: ServerSide, context: ssl.SSLContext, server_name: str | None, ready: asyncio.Future[None]
    ) -> TlsEnd:
        """The client's part. ``ready`` is done with the handshake: ssl.SSLError where it failed. Raises ValueError for
        a name that none can be."""
        end = cls(side, context, ready)
        end._object = context.wrap_bio(end._incoming, end._outgoing, server_hostname=server_name)
        return end

    @property
    def protocol(self) -> str:
        """What was negotiated (ALPN); empty for nothing."""
        return self._object.selected_alpn_protocol() or ""

    @property
    def shaking(self) -> bool:
        """The peer has begun its handshake, and it is not complete: somebody waits."""
        return self._heard and not self._secured

    # -- the handshake

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast("Transport", transport)
        side = self._side
        side.transport = self
        if self._ready is None:
            side.flow.accepted(self, tls=True)
            # Not for a connection over the limit: OpenSSL's part takes longer than all else of accepting it.
            if not side.flow.reason:
                self._object = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        elif side.flow.reason:
            side.reset()
        else:
            self._shake()

    def _shake(self) -> None:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._flush()
            self._fail(error)
            return
        self._flush()
        self._secured = True
        if self._ready is None:
            self._side.flow.secured(self.protocol)
        elif not self._ready.done():
            self._ready.set_result(None)
            cast(asyncio.Protocol, self._side).connection_made(cast(asyncio.Transport, self))

    def _fail(self, error: ssl.SSLError) -> None:
        """The handshake failed, or a record; the alert for the peer is on its way."""
        self._ended = True
        if self._ready is None or self._secured:
            self._side.flow.tls_failed(self._side)
        elif not self._ready.done():
            self._ready.set_exception(error)
            # Where the task that waits is being cancelled nobody would look at it.
            self._ready.exception()

    def _give_up(self) -> None:
        """Nothing that the peer says is worth the work, nor waiting until it has read."""
        self._ended = True
        self._side.flow.end("tls_failed")

    # -- the protocol of the socket

    def data_received(self, data: bytes) -> None:
        if len(data) > _PIECE_BYTES:
            for start in range(0, len(data), _PIECE_BYTES):
                self.data_received(data[start : start + _PIECE_BYTES])
            return
        if self._ended:
            return  # nothing may follow a close_notify, and nobody would take it out again
        self._heard = True
        self._incoming.write(data)
        self._barren += len(data)
        if not self._secured:
            self._shake()
        if self._secured:
            self._decrypt()
        # No limit of what a flow may hold and no deadline knows of this.
        if self._barren > (_BARREN_BYTES if self._secured else _HANDSHAKE_BYTES) and not self._ended:
            self._give_up()
        if self._outgoing.pending:
            # What TLS itself has to say: tickets, key updates, that it does not renegotiate.
            self._flush()
            if self._raw.get_write_buffer_size() > _UNREAD_BYTES and not self._ended:
                self._give_up()

    def _decrypt(self) -> None:
        """Hand over the plaintext that is there, of a piece at most and a record that it completes, and the end."""
        read, incoming = self._object.read, self._incoming
        plain: list[bytes] = []
        failed: ssl.SSLError | None = None
        try:
            while data := read(_RECORD_BYTES):
                plain.append(data)
                # OpenSSL takes no more from the BIO than the record that it reads: where nothing is left there is no
                # other. Asking would cost an exception, as much as the decryption of 10 KB.
                if not incoming.pending and len(data) < _RECORD_BYTES:
                    break
            else:
                self._ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._ended = True
        except ssl.SSLError as error:
            failed = error
        if plain:
            self._barren = 0
            self._side.data_received(plain[0] if len(plain) == 1 else b"".join(plain))
        if failed is not None:
            self._flush()
            self._fail(failed)
        elif self._ended and not self._side.eof:
            self._side.eof_received()

    def eof_received(self) -> bool:
        if not self._heard and self._ready is None:
            self._side.flow.left_unspoken()
        elif not self._secured:
            self._fail(ssl.SSLError("closed during the handshake"))
        elif not self._side.eof:
            self._side.eof_without_notice()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ready is not None and not self._secured and not self._side.flow.reason:
            # Whoever waits for the handshake decides what becomes of the flow.
            self._side.lost = True
            self._fail(ssl.SSLError("closed during the handshake"))
            return
        self._side.connection_lost(exc)

    def pause_writing(self) -> None:
        self._side.pause_writing()

    def resume_writing(self) -> None:
        self._side.resume_writing()

    # -- the transport of the side

    def write(self, data: bytes) -> None:
        """Encrypt and send."""
        if len(data) > _PIECE_BYTES:
            for start in range(0, len(data), _PIECE_BYTES):
                self.write(data[start : start + _PIECE_BYTES])
            return
        try:
            self._object.write(data)
        except ssl.SSLError as error:
            self._fail(error)
            return
        self._raw.write(self._outgoing.read())

    def write_eof(self) -> None:
        """A close_notify, and FIN. What the peer still sends is read on."""
        self._notify()
        self._finish()

    def cut(self) -> None:
        """FIN without a close_notify: the stream was cut before this end too."""
        self.was_cut = not self._side.eof
        self._finish()

    def _finish(self) -> None:
        self._fin = True
        try:
            self._raw.write_eof()
        except OSError:  # asyncio, where the peer has reset
            self._raw.abort()

    def close(self) -> None:
        """A close_notify, unless sent; FIN when all is sent."""
        self._notify()
        self._raw.close()

    def _notify(self) -> None:
        if self._secured and not self._fin:
            # It wants to read the peer's close_notify, which comes or does not.
            with contextlib.suppress(ssl.SSLError):
                self._object.unwrap()
            self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending and not self._fin:
            self._raw.write(self._outgoing.read())

    def abort(self) -> None:
        self._raw.abort()

    def pause_reading(self) -> None:
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        self._raw.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._raw.get_write_buffer_size()

    def get_extra_info(self, name: str) -> Any:
        return self._raw.get_extra_info(name)

    def plain(self, chunks: list[bytes]) -> tuple[list[bytes], bool]:
        """The plaintext of what was left in the socket, and whether it ended with a close_notify."""
        if not self._secured:
            return [], False
        found = []
        for chunk in chunks:
            self._incoming.write(chunk)
        try:
            while data := self._object.read(_RECORD_BYTES):
                found.append(data)
            self._ended = True
        except ssl.SSLZeroReturnError:  # the same, where we sent a close_notify before
            self._ended = True
        except ssl.SSLError:
            pass
        return found, self._ended
