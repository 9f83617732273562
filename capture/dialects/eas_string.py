"""PAI-EAS services that take text: custom processors, PMML, anything behind ``StringRequest``.

Nothing tells what such a service looks at. Of a JSON object it is most likely the keys: they stand for the inputs, as
they do in the other dialects. Of everything else (text, JSON of another form, bytes) nothing is known but how long it
is: a class of size stands for it, so that a service has at most a handful of such signatures. The number of sets of
keys is bounded as that of all signatures is (``signatures_per_version``, ``new_signatures_per_hour``); objects of more
than 100 keys, whose keys are likely data (a map from ids), go by size.
"""

from __future__ import annotations

from typing import Final

import msgspec

from capture.dialects.base import Route, Unreadable
from capture.dialects.eas import EasDialect
from capture.signature import Call, WireSignature, wire_signature

#: Keys that may be the names of inputs.
MAX_KEYS: Final = 100
#: Bytes -> how such a body is called; what is longer goes by the last one.
_SIZES: Final = ((1 << 10, "up to 1 KiB"), (32 << 10, "up to 32 KiB"), (1 << 20, "up to 1 MiB"))
_LARGE: Final = "over 1 MiB"
#: Of an object with more colons in it only the size is looked at: each key may take a hundred bytes of memory.
_MAX_COLONS: Final = 100_000
#: White space that JSON allows (RFC 8259 §2).
_SPACE: Final = b" \t\r\n"
#: Every byte that text may hold.
_TEXT: Final = bytes(byte for byte in range(256) if byte >= 0x20 or byte in _SPACE)

_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class EasString(EasDialect):
    """The top-level keys of a JSON object, or kind and class of size."""

    name = "eas-string"
    family = "eas-string"

    def read_sent(self, route: Route, sent: bytes, max_bytes: int) -> tuple[Call, bytes]:
        """Text is what it says: some of it would unpack as raw snappy, and hardly any packed body is text."""
        if not sent.translate(None, _TEXT) and _utf8(sent):
            return self.read(route, sent), sent
        return super().read_sent(route, sent, max_bytes)

    def read(self, route: Route, body: bytes) -> Call:
        start = body[:1] if body[:1] not in _SPACE else body.lstrip(_SPACE)[:1]
        if not start:
            raise Unreadable("empty body")
        keys = _keys(body) if start == b"{" else None
        if keys is not None:
            return Call(self._signature(route, "json", keys), ())
        size = next((name for most, name in _SIZES if len(body) <= most), _LARGE)
        return Call(self._signature(route, f"{'text' if _utf8(body) else 'bytes'}, {size}", ()), ())

    def _signature(self, route: Route, kind: str, keys: tuple[str, ...]) -> WireSignature:
        return wire_signature(self.family, route.model, route.method, kind, keys, ())


def _keys(body: bytes) -> tuple[str, ...] | None:
    """The keys of a JSON object; None where it is none, or has too many."""
    if body.count(b":") > _MAX_COLONS:
        return None
    try:
        found = _OBJECT.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return tuple(found) if len(found) <= MAX_KEYS else None


def _utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
