"""What a request head means, looked up where the same head was seen before."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from capture.config import ListenerConfig
from capture.dialects.base import Ignored, Route
from capture.dialects.table import route as find_route
from capture.memo import Memo
from capture.wire.events import RequestHead

#: Request headers that may be stored with a sample. Everything else (Authorization, cookies, ...) never is.
STORED_HEADERS: Final = frozenset({b"content-type", b"content-encoding", b"grpc-encoding"})
#: Bound of :class:`Heads`: about a thousand heads of usual size.
MAX_HEADS_BYTES: Final = 4 << 20
#: What remembering costs beside the bytes of a head: an entry, a field.
_ENTRY_COST, _FIELD_COST = 1000, 200
#: The beginning of a target in absolute form (RFC 9112 §3.2.2), as clients send it to a proxy.
_ABSOLUTE: Final = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
#: Longest user agent that is kept for "who sends this".
MAX_SENDER_CHARS: Final = 80


class HeadFacts(NamedTuple):
    """What a request head means. ``headers`` is shared by all exchanges with this head: not to be changed."""

    path: str
    headers: dict[str, str]
    agent: str
    route: Route | Ignored


class Heads:
    """Heads seen before: clients send the same few all day. One serves all flows of a worker; holds at most
    ``max_bytes``; full, it starts again."""

    __slots__ = ("known",)

    def __init__(self, max_bytes: int = MAX_HEADS_BYTES) -> None:
        self.known: Memo[tuple[object, ...], HeadFacts] = Memo(max_bytes)

    def look_up(self, head: RequestHead, listener: ListenerConfig) -> HeadFacts:
        """What this head means on this listener."""
        key = (head.method, head.target, head.headers, listener.name)
        facts = self.known.get(key)
        if facts is not None:
            return facts
        # A target may be there three times, as a path with four bytes to a character.
        size = 6 * len(head.target) + sum(len(name) + len(value) for name, value in head.headers)
        cost = _ENTRY_COST + _FIELD_COST * len(head.headers) + 2 * size
        return self.known.put(key, _head_facts(head, listener), cost)


def _head_facts(head: RequestHead, listener: ListenerConfig) -> HeadFacts:
    target = head.target
    if absolute := _ABSOLUTE.match(target):
        target = target[absolute.end() :]
    # As it was sent: what is percent-encoded in it, each server decodes in its own way.
    path = target.partition(b"?")[0].decode("utf-8", "replace") or "/"
    grpc = False
    agent = ""
    kept = {}
    for name, value in head.headers:
        if name == b"content-type":
            grpc = value.startswith(b"application/grpc")
        elif name == b"user-agent":
            agent = value.decode("latin-1")[:MAX_SENDER_CHARS]
        if name in STORED_HEADERS:
            kept[name.decode()] = value.decode("latin-1")
    return HeadFacts(path, kept, agent or "-", find_route(head.method, path, grpc, listener))
