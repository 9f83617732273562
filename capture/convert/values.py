"""What conversions of REST bodies share: errors, and strings that are base64.

Error texts hold the server's phrases (util/json_tensor.cc), but never a value: where the server prints one there is
``...``.
"""

from __future__ import annotations

import binascii
import re
from typing import Final

from capture.convert.json_value import ABSENT, Absent, JsonError, Members, Value, parse

INVALID_ARGUMENT: Final = "INVALID_ARGUMENT"
UNIMPLEMENTED: Final = "UNIMPLEMENTED"

_BASE64: Final = re.compile(rb"([A-Za-z0-9+/]*)(=*)")


class ConversionError(ValueError):
    """The server would refuse this body: ``code`` is the canonical code's name, the text its message."""

    def __init__(self, text: str, code: str = INVALID_ARGUMENT) -> None:
        super().__init__(text)
        self.code = code

    def status(self) -> str:
        """As absl::Status prints it."""
        return f"{self.code}: {self}"


def document(body: bytes) -> Members:
    """The object that a body is. Raises ConversionError."""
    try:
        found = parse(body)
    except JsonError as error:
        raise ConversionError(f"JSON Parse error: {error}") from None
    if not isinstance(found, Members):
        raise ConversionError("JSON Value: ... Is not object")
    return found


def signature_name(found: Members) -> bytes:
    """The signature that a body asks for, empty for the default. Raises ConversionError."""
    name = found.first(b"signature_name")
    if isinstance(name, Absent):
        return b""
    if not isinstance(name, bytes):
        raise ConversionError("JSON Value: ... not formatted correctly. 'signature_name' key must be a string value.")
    return name


def json_type(value: Value) -> str:
    """The type's name in the server's messages."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return "True" if value else "False"
    if isinstance(value, bytes):
        return "String"
    if isinstance(value, Members):
        return "Object"
    return "Array" if isinstance(value, list) else "Number"


def is_base64(value: Value) -> bool:
    """Whether it is ``{"b64": "<text>"}`` and nothing else."""
    return isinstance(value, Members) and len(value.items) == 1 and isinstance(value.first(b"b64"), bytes)


def decode_base64(value: Value) -> bytes:
    """The bytes of such an object, by absl::Base64Unescape [K]: the standard alphabet, blanks ignored, padding right or
    left out, ``.`` as good as ``=``. Raises ConversionError."""
    text = value.first(b"b64") if isinstance(value, Members) else ABSENT
    if not is_base64(value) or not isinstance(text, bytes):
        raise ConversionError("JSON Value: ... not formatted correctly for base64 data")
    match = _BASE64.fullmatch(b"".join(text.split()).replace(b".", b"="))
    if match is None or len(match[1]) % 4 == 1 or (match[2] and len(match[0]) % 4) or len(match[2]) > 2:
        raise ConversionError("Unable to base64 decode")
    return binascii.a2b_base64(match[1] + b"=" * (-len(match[1]) % 4))
