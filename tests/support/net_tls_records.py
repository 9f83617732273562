"""TLS records that no library sends: made with the keys of a handshake that OpenSSL did, for peers that misbehave."""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
from pathlib import Path
from typing import Any, Final, Self

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.net_tls import TlsSocket

HANDSHAKE: Final = 22
APPLICATION: Final = 23
#: A handshake message: that of a client that wants to negotiate anew, as far as OpenSSL looks at it before it refuses.
CLIENT_HELLO: Final = b"\x01\x00\x00\x00"
#: One that asks for another in return (RFC 8446, section 4.6.3).
KEY_UPDATE: Final = b"\x18\x00\x00\x01\x01"


class Recorded:
    """A socket that remembers what came."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""

    def recv(self, size: int) -> bytes:
        data = self.sock.recv(size)
        self.received += data
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


class Sealer:
    """The client's records after the handshake, in their order. OpenSSL can read on afterwards, but not write."""

    def __init__(self, key: bytes, iv: bytes, secret: bytes, sequence: int) -> None:
        self._gcm, self._iv, self._secret, self._sequence = AESGCM(key), iv, secret, sequence

    @classmethod
    def after(cls, sock: TlsSocket, received: bytes, key_log: Path) -> Self:
        """``received`` in the handshake; TLS 1.3 with TLS_AES_256_GCM_SHA384, TLS 1.2 with AES128-GCM-SHA256."""
        said = dict(line.split(" ", 1) for line in key_log.read_text().splitlines() if line[0] != "#")
        if sock.object.version() == "TLSv1.3":
            return cls(b"\0" * 16, b"", bytes.fromhex(said["CLIENT_TRAFFIC_SECRET_0"].split()[1]), 0)._keyed()
        random, master = map(bytes.fromhex, said["CLIENT_RANDOM"].split())
        # Of the ServerHello, behind the headers of record and message and the version.
        seed = b"key expansion" + received[11:43] + random
        block, last = b"", seed
        while len(block) < 40:
            last = hmac.digest(master, last, "sha256")
            block += hmac.digest(master, last + seed, "sha256")
        return cls(block[:16], block[32:36], b"", 1)

    def _expand(self, label: bytes, size: int) -> bytes:
        """HKDF-Expand-Label (RFC 8446, section 7.1)."""
        label = b"tls13 " + label
        info = size.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0\x01"
        return hmac.digest(self._secret, info, "sha384")[:size]

    def _keyed(self) -> Self:
        self._gcm, self._iv, self._sequence = AESGCM(self._expand(b"key", 32)), self._expand(b"iv", 12), 0
        return self

    def seal(self, kind: int, payload: bytes) -> bytes:
        """One record."""
        number = self._sequence.to_bytes(8, "big")
        self._sequence += 1
        if self._secret:
            header = b"\x17\x03\x03" + (len(payload) + 17).to_bytes(2, "big")
            nonce = (int.from_bytes(self._iv, "big") ^ int.from_bytes(number, "big")).to_bytes(12, "big")
            return header + self._gcm.encrypt(nonce, payload + bytes([kind]), header)
        about = number + bytes([kind]) + b"\x03\x03" + len(payload).to_bytes(2, "big")
        sealed = number + self._gcm.encrypt(self._iv + number, payload, about)
        return about[8:11] + len(sealed).to_bytes(2, "big") + sealed

    def nonsense(self) -> bytes:
        """A record that makes work and carries nothing: TLS 1.3 a key update, TLS 1.2 a new negotiation."""
        if not self._secret:
            return self.seal(HANDSHAKE, CLIENT_HELLO)
        record = self.seal(HANDSHAKE, KEY_UPDATE)
        self._secret = self._expand(b"traffic upd", hashlib.sha384().digest_size)
        self._keyed()
        return record


def misbehaving(sock: socket.socket, context: ssl.SSLContext, key_log: Path) -> tuple[TlsSocket, Sealer]:
    """Connected over TLS; from then on send with the sealer alone. ``context`` is the caller's own: it logs keys."""
    context.keylog_filename = str(key_log)
    context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    recorded = Recorded(sock)
    client = TlsSocket(recorded, context, "127.0.0.1")  # type: ignore[arg-type]
    return client, Sealer.after(client, recorded.received, key_log)
