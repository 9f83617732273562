"""Settings of TLS on either side of a listener."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class ListenTls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """TLS towards clients. Files are PEM; they are read again when they change, and at SIGHUP."""

    certificate: Annotated[str, Meta(min_length=1, description="path of the certificate chain")]
    key: Annotated[str, Meta(min_length=1, description="path of the private key, without a passphrase")]
    client_ca: Annotated[
        str, Meta(description="path of the CAs that client certificates must come from; empty asks for none")
    ] = ""
    alpn: Annotated[
        tuple[str, ...], Meta(description="protocols that clients may choose; what they choose is offered upstream")
    ] = ("h2", "http/1.1")


class UpstreamTls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """TLS towards the model server. Files are PEM; they are read again when they change, and at SIGHUP."""

    ca: Annotated[
        str, Meta(description="path of the CAs that the server's certificate must come from; empty: system")
    ] = ""
    server_name: Annotated[
        str, Meta(description="name in the server's certificate, and SNI; empty: upstream's host")
    ] = ""
    verify: Annotated[bool, Meta(description="false accepts any certificate")] = True
    certificate: Annotated[str, Meta(description="path of a client certificate chain; empty: none")] = ""
    key: Annotated[str, Meta(description="path of its private key")] = ""
    alpn: Annotated[
        tuple[str, ...],
        Meta(
            description="protocols offered where the client negotiated none ([h2] for plaintext gRPC clients); "
            "otherwise exactly what the client negotiated is offered"
        ),
    ] = ()
