"""What a request head means, looked up where the same head was seen before."""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from capture.config import ListenerConfig
from capture.dialects.base import Ignored, Route
from capture.dialects.table import route as find_route
from capture.wire.events import RequestHead

#: Request headers that may be stored with a sample. Everything else (Authorization, cookies, ...) never is.
STORED_HEADERS: Final = frozenset({b"content-type", b"content-encoding", b"grpc-encoding"})
#: Bounds of :class:`Heads`: 1,024 heads of usual size are about a megabyte.
MAX_HEADS: Final = 1024
MAX_HEAD_FIELDS: Final = 64
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
    ``MAX_HEADS`` heads of at most ``MAX_HEAD_FIELDS`` fields; full, it starts again."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], HeadFacts] = {}

    def look_up(self, head: RequestHead, listener: ListenerConfig) -> HeadFacts:
        """What this head means on this listener."""
        key = (head.method, head.target, head.headers, listener.name)
        facts = self._known.get(key)
        if facts is None:
            facts = _head_facts(head, listener)
            if len(head.headers) <= MAX_HEAD_FIELDS:
                if len(self._known) >= MAX_HEADS:
                    self._known.clear()
                self._known[key] = facts
        return facts


def _head_facts(head: RequestHead, listener: ListenerConfig) -> HeadFacts:
    path = unquote_to_bytes(head.target.partition(b"?")[0]).decode("utf-8", "replace")
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
