"""TLS contexts, made from PEM files.

A context is never changed once it is in use: a reload makes new ones, and connections that are open keep theirs.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, NoReturn

import msgspec

from proxy.address import Address
from proxy.tls import TlsEnd

if TYPE_CHECKING:
    from proxy.sides import ServerSide


class TlsError(ValueError):
    """A certificate, key or CA cannot be used; the text names the file."""


class RelayTls(msgspec.Struct, frozen=True):
    """TLS on the client's side of a listener: PEM files by path. An empty ``client_ca`` asks for no certificate."""

    certificate: str
    key: str
    client_ca: str = ""
    alpn: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of what is read."""
        return tuple(filter(None, (self.certificate, self.key, self.client_ca)))


class RelayUpstreamTls(msgspec.Struct, frozen=True):
    """TLS towards the model server: PEM files by path, empty for none (``ca``: the system's). ``alpn`` is offered where
    the client negotiated nothing."""

    ca: str = ""
    server_name: str = ""
    verify: bool = True
    certificate: str = ""
    key: str = ""
    alpn: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of what is read."""
        return tuple(filter(None, (self.ca, self.certificate, self.key)))


def listen_context(tls: RelayTls) -> ssl.SSLContext:
    """For accepted connections: TLS 1.2 and later. Raises TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client could make the relay compute for ever.
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load_own(context, tls.certificate, tls.key)
    if tls.client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_ca(context, tls.client_ca)
    if tls.alpn:
        _offer(context, tls.alpn)
    return context


class UpstreamContexts:
    """For connections to one model server: a context for each protocol that a client may negotiate."""

    def __init__(self, tls: RelayUpstreamTls, address: Address, negotiable: tuple[str, ...] = ()) -> None:
        """``negotiable``: what clients may choose; all files are read here, for each. Raises TlsError."""
        self._tls = tls
        self._server_name = tls.server_name or address.host or None
        if tls.verify and self._server_name is None:
            raise TlsError("server_name is missing: a Unix socket has no host name to look for in the certificate")
        self._made: dict[tuple[str, ...], ssl.SSLContext] = {}
        try:
            self._context(tls.alpn).wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=self._server_name)
        except (ValueError, ssl.SSLError) as error:
            if isinstance(error, TlsError):
                raise
            raise TlsError(f"server_name {self._server_name!r} is no name that a certificate could have") from None
        for protocol in negotiable:
            self._context((protocol,))

    def end(self, side: ServerSide, alpn: str, ready: asyncio.Future[None]) -> TlsEnd:
        """The protocol of a connection on which exactly ``alpn`` is offered, if it is not empty. Raises TlsError
        for one that clients could choose before a reload only, where the files cannot be read again."""
        return TlsEnd.to_server(side, self._context((alpn,) if alpn else self._tls.alpn), self._server_name, ready)

    def _context(self, alpn: tuple[str, ...]) -> ssl.SSLContext:
        # What a client negotiated comes out of the listener's few: the cache is as small.
        context = self._made.get(alpn)
        if context is None:
            context = self._made[alpn] = self._make(alpn)
        return context

    def _make(self, alpn: tuple[str, ...]) -> ssl.SSLContext:
        tls = self._tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        if not tls.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif tls.ca:
            _load_ca(context, tls.ca)
        else:
            context.load_default_certs()
        if tls.certificate:
            _load_own(context, tls.certificate, tls.key)
        if alpn:
            _offer(context, alpn)
        return context


def _load_own(context: ssl.SSLContext, certificate: str, key: str) -> None:
    for path in (certificate, key):
        _readable(path)

    def encrypted() -> NoReturn:
        # Without it OpenSSL would ask on the terminal, and wait.
        raise TlsError(f"{key}: has a passphrase; give a key without one, readable by the sidecar's user alone")

    try:
        context.load_cert_chain(certificate, key or None, password=encrypted)
    except ssl.SSLError as error:
        if "KEY_VALUES_MISMATCH" in str(error):
            raise TlsError(f"{key}: is not the key of the certificate in {certificate}") from None
        raise TlsError(f"{certificate}, {key}: not a certificate and its key in PEM ({_said(error)})") from None


def _load_ca(context: ssl.SSLContext, path: str) -> None:
    _readable(path)
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise TlsError(f"{path}: no certificates in PEM ({_said(error)})") from None


def _readable(path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise TlsError(f"{path}: {error.strerror}") from None


def _offer(context: ssl.SSLContext, alpn: tuple[str, ...]) -> None:
    try:
        context.set_alpn_protocols(list(alpn))
    except (ssl.SSLError, UnicodeError):
        raise TlsError(f"alpn {', '.join(alpn)}: a protocol has 1 to 255 ASCII characters") from None


def _said(error: ssl.SSLError) -> str:
    return (error.reason or "unreadable").lower().replace("_", " ")
