"""What all services of PAI-EAS share: where requests go, status codes, and bodies that are compressed without a word.

Which processor a service runs cannot be told from its bodies: their messages look alike, and one parses as another. It
is told by the settings (``dialect`` and ``services`` of a listener), and what fits badly is refused. Status codes:
alibabacloud.com, EAS "Status codes" (doc-detail 449809).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any, Final, Literal
from urllib.parse import unquote

from google.protobuf.message import DecodeError

from capture.config import ListenerConfig
from capture.dialects.base import Ignored, Judgement, Opaque, Outcome, Response, Route, Unreadable
from capture.dialects.eas_packed import OVER_THE_BOUND, codings, unpack
from capture.schema.wire import UNCROWDED_BYTES, FieldProbe, crowded
from capture.signature import Call
from capture.wire.grpc import DecompressError

_SERVICE: Final = re.compile(r"/api/predict/([^/]+)(?:/.*)?")

#: Status codes that EAS itself gives before the processor is called.
_REFUSED: Final = {
    401: "not authenticated",
    403: "permission denied",
    404: "unknown service",
    405: "method not allowed",
    413: "body too large for the server",
    429: "rate limit",
}


class EasDialect(ABC):
    """POST /api/predict/<service>[/...], or any path of a listener whose settings name the service."""

    #: As in settings and in the store.
    name: str
    #: Identity of the kind of service in wire signatures.
    family: str
    framing: Literal["grpc", "body"] = "body"
    #: How messages of this kind begin, in one byte each: what begins so is read as it is before anything is unpacked.
    #: Raw snappy of a message may itself parse as the message, with its length as a field too many in front. Not where
    #: that field has a length itself: then snappy's own length is some 26 bytes at most, and what follows it, a
    #: literal's, is a greater one. So only tags of such fields are here.
    begins: bytes = b""
    #: The shortest answer that says success, beside its status code.
    success: bytes = b""

    def route(self, http_method: bytes, path: str, listener: ListenerConfig) -> Route | Ignored | None:
        match = _SERVICE.fullmatch(path)
        if match is None and not listener.service:
            return None
        if http_method != b"POST":
            return Ignored("EAS, not a POST")
        # The settings win: behind a custom URL the path means nothing.
        service = listener.service or unquote(match[1] if match else "")
        return Route(self, "predict", service, path)

    @abstractmethod
    def read(self, route: Route, body: bytes) -> Call:
        """The call that this body means, as the processor gets it. Raises Unreadable."""

    def read_sent(self, route: Route, sent: bytes, max_bytes: int) -> tuple[Call, bytes]:
        """The call that a client's bytes mean, and the body as the processor gets it: ``sent`` itself, or what it
        unpacks to, at most ``max_bytes``. Raises Unreadable."""
        failed = None
        if sent[:1] in self.begins and sent:
            try:
                return self.read(route, sent), sent
            except Unreadable as error:
                failed = error
        wrong = ""
        for coding in codings(sent):
            try:
                body = unpack(coding, sent, max_bytes)
                return self.read(route, body), body
            except DecompressError as error:
                if str(error) == OVER_THE_BOUND:
                    raise Opaque(f"compressed body ({coding}): {error}") from None
                wrong = wrong or f"compressed body ({coding}): {error}"
            except Unreadable as error:
                wrong = wrong or f"compressed body ({coding}): {error}"
        try:
            if failed is not None:
                raise failed
            return self.read(route, sent), sent
        except Unreadable:
            # The first bytes of raw snappy say too little to speak of it.
            if wrong and not wrong.startswith("compressed body (snappy)"):
                raise Unreadable(wrong) from None
            raise

    def response_probe(self, route: Route) -> FieldProbe | None:
        return None

    def judge(self, route: Route, response: Response) -> Judgement:
        if response.status and response.status in _REFUSED:
            return Judgement(Outcome.REFUSED, _REFUSED[response.status])
        if response.aborted or not response.complete:
            return Judgement(Outcome.UNPROVEN, response.aborted or "no complete response")
        if 200 <= response.status < 300:
            return Judgement(Outcome.PROVEN)
        # 400 is a bad body or an exception out of the processor; 408 and 450 are time and queue: it may have run.
        return Judgement(Outcome.UNPROVEN, f"HTTP {response.status}")


def parsed(message: Any, body: bytes, what: str) -> Any:
    """``body`` as an instance of the class ``message``. Raises Unreadable."""
    if len(body) > UNCROWDED_BYTES and crowded(body):
        raise Unreadable("too many fields")
    try:
        return message.FromString(body)
    except DecodeError:
        raise Unreadable(f"not an {what}") from None
