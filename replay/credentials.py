"""What a server may ask of whoever sends to it. A secret is read from a file or the environment, is never an argument,
and is in no text."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Final

from capture.errors import UserError

#: The raw token; EAS's signature with it; OAuth.
KINDS: Final = ("eas-token", "eas-hmac", "bearer")
#: How --auth is written.
FORM: Final = "KIND:@FILE or KIND:env:NAME"
_HIDDEN: Final = "***"


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret and how it is shown. It does not print."""

    kind: str
    _secret: str = field(repr=False)

    def headers(self, path: str, body: bytes, content_type: str) -> Mapping[str, str]:
        """The headers that authorize a POST of this body to this path (with its query, as it is sent)."""
        if self.kind == "eas-token":
            return {"Authorization": self._secret}
        if self.kind == "bearer":
            return {"Authorization": f"Bearer {self._secret}"}
        date = formatdate(usegmt=True)
        return {"Authorization": self._signature(path, body, content_type, date)} | {
            "Content-MD5": _md5(body),
            "Content-Type": content_type,
            "Date": date,
        }

    def hide(self, text: str) -> str:
        """The same text without the secret."""
        return text.replace(self._secret, _HIDDEN)

    def _signature(self, path: str, body: bytes, content_type: str, date: str) -> str:
        """Source: eas_prediction predict_client.py and PredictClient.java (generateSignature)."""
        signed = "\n".join(("POST", _md5(body), content_type, date, path))
        mac = hmac.new(self._secret.encode(), signed.encode(), hashlib.sha1).digest()
        return f"EAS {base64.b64encode(mac).decode()}"


def _md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def read_credential(text: str) -> Credential:
    """What ``--auth`` says: ``eas-hmac:@/run/secrets/token`` or ``bearer:env:TOKEN``. Raises UserError, which never
    repeats the text: it may be the secret itself."""
    kind, _, where = text.partition(":")
    if kind not in KINDS:
        raise UserError(f"--auth: no such kind; write {FORM}, KIND one of: {', '.join(KINDS)}")
    if where.startswith("@"):
        place = where[1:]
        try:
            secret = Path(place).read_text("utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"--auth: {place}: {getattr(error, 'strerror', None) or 'is no text'}") from None
    elif where.startswith("env:"):
        place = where.removeprefix("env:")
        secret = os.environ.get(place, "")
    else:
        raise UserError(f"--auth: a secret is no argument, others could read it there; write {FORM}")
    secret = secret.strip()
    if not secret:
        raise UserError(f"--auth: {place} is empty; put the secret there")
    if not (secret.isascii() and secret.isprintable()):
        raise UserError(f"--auth: {place} holds more than one line, or what no HTTP header may hold")
    return Credential(kind, secret)
