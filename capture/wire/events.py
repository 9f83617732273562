"""The events that observers emit: one vocabulary for HTTP/1.1 and HTTP/2, so that all behind it is written once.

An observer reads both directions of one flow. It names each message by ``stream``: the HTTP/2 stream id, or for
HTTP/1.1 the ordinal of the request on its flow (1, 2, 3, ...). Within one stream and one direction events keep their
order: head, data..., end. Header names are lower-case bytes; values are bytes as sent, without surrounding white space.

These classes are created for every request: msgspec builds them in a fraction of the time that a dataclass takes. They
hold no cycles, so the collector need not follow them.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

Headers = tuple[tuple[bytes, bytes], ...]


class Side(IntEnum):
    """Who sent the bytes."""

    CLIENT = 0
    SERVER = 1


class RequestHead(msgspec.Struct, gc=False):
    """A complete request head. ``target`` is the request target (HTTP/2 ``:path``) exactly as sent; ``authority`` is
    the Host header or ``:authority``, empty where there is none. Pseudo-headers are not repeated in ``headers``.

    ``verified`` is False where the head was decoded with HPACK entries from before a gap: it is complete and plausible,
    but an insertion missed in the gap could have shifted what an index means. Whoever believes such a head must have
    further evidence, such as a body that parses as this method's message."""

    stream: int
    method: bytes
    target: bytes
    authority: bytes
    headers: Headers
    verified: bool = True


class RequestData(msgspec.Struct, gc=False):
    """Some bytes of the request body, transfer coding and HTTP/2 padding removed, content coding kept."""

    stream: int
    data: bytes


class RequestEnd(msgspec.Struct, gc=False):
    """The request is complete. ``verified`` speaks of the trailers, as in ``RequestHead``."""

    stream: int
    trailers: Headers = ()
    verified: bool = True


class ResponseInfo(msgspec.Struct, gc=False):
    """An interim response: 1xx other than 101."""

    stream: int
    status: int


class ResponseHead(msgspec.Struct, gc=False):
    """The head of the final response (101 and 2xx to CONNECT too, followed by ``Upgraded``). It may come before
    ``RequestEnd`` (an early response). ``verified`` as in ``RequestHead``."""

    stream: int
    status: int
    headers: Headers
    verified: bool = True


class ResponseData(msgspec.Struct, gc=False):
    """Some bytes of the response body, transfer coding and HTTP/2 padding removed, content coding kept."""

    stream: int
    data: bytes


class ResponseEnd(msgspec.Struct, gc=False):
    """The response is complete as its framing says. A gRPC trailers-only response is a head and this, no trailers.
    ``verified`` speaks of the trailers, as in ``RequestHead``."""

    stream: int
    trailers: Headers = ()
    verified: bool = True


class Aborted(msgspec.Struct, gc=False):
    """The exchange ended before both messages were complete: RST_STREAM, GOAWAY beyond it, a connection that closed.

    ``by`` is the side that ended it (the client where nobody can tell), ``code`` the HTTP/2 error code (0 where there
    is none), ``reason`` a short fixed phrase. A ``ResponseEnd`` may have come before: an early response."""

    stream: int
    by: Side
    code: int
    reason: str


class Lost(msgspec.Struct, gc=False):
    """This stream's exchange can neither be read nor judged, and nothing more is emitted for it. ``reason`` is a short
    fixed phrase: ``gap`` where bytes were missed by the tap, else the limit or the defect that made it unreadable. It
    may be the only event of its stream."""

    stream: int
    reason: str = "gap"


class Missed(msgspec.Struct, gc=False):
    """Requests that passed in a gap without being seen at all. ``exact`` where HTTP/2 stream ids tell the number,
    otherwise an estimate that is at least 1."""

    requests: int
    exact: bool


class Unsynced(msgspec.Struct, gc=False):
    """Bytes of ``side`` were missed and its framing is lost; the observer looks for a place to resume."""

    side: Side


class Resynced(msgspec.Struct, gc=False):
    """``side`` is read again after ``Unsynced``. ``skipped`` bytes were seen but not understood in between. HTTP/1.1
    loses and finds both directions together: ``side`` is then the one that ``Unsynced`` named, ``skipped`` counts
    both."""

    side: Side
    skipped: int


class Upgraded(msgspec.Struct, gc=False):
    """The flow left HTTP (101, or 2xx to CONNECT): opaque from here."""

    stream: int
    protocol: bytes


class Undecodable(msgspec.Struct, gc=False):
    """Bytes of ``side`` break the protocol at ``offset`` (bytes since the start of that direction). The flow is opaque
    from here: nothing more is emitted for it but ``Aborted`` for what was open. ``reason`` is a short fixed phrase,
    fit to be a counter's label: never bytes of the traffic."""

    side: Side
    reason: str
    offset: int


Event = (
    RequestHead
    | RequestData
    | RequestEnd
    | ResponseInfo
    | ResponseHead
    | ResponseData
    | ResponseEnd
    | Aborted
    | Lost
    | Missed
    | Unsynced
    | Resynced
    | Upgraded
    | Undecodable
)
