"""Which protocol a flow speaks, told by the client's first bytes; then that protocol's observer."""

from __future__ import annotations

import re

from capture.wire.events import Event, Resynced, Side, Undecodable, Unsynced
from capture.wire.http1 import Http1Observer
from capture.wire.http1_head import HeadMemo
from capture.wire.http2 import Http2Observer
from capture.wire.http2_layer import PREFACE
from capture.wire.observer import Observer
from capture.wire.saved import SavedFlow

# What a server may say before the client's first byte is seen, in bytes: an HTTP/2 server's SETTINGS and WINDOW_UPDATE
# are below 200.
MAX_EARLY_SERVER_BYTES = 16 * 1024
# Of these, what is kept for another process: it is not known yet to be harmless.
MAX_SAVED_EARLY_BYTES = 256
# The longest method, in bytes: IANA's longest is UPDATEREDIRECTREF (17).
MAX_METHOD_BYTES = 24
# A TLS record of type handshake (RFC 8446 §5.1).
_TLS_HANDSHAKE = 0x16
# The reason of ``Undecodable`` then.
TLS = "tls"

# What an HTTP/2 server says first (RFC 9113 §3.4): a SETTINGS frame, up to its payload.
_SETTINGS = re.compile(rb"\0..\x04\0\0\0\0\0", re.DOTALL)
# The reason of ``Undecodable`` where its client speaks HTTP/1.
HTTP2_SERVER = "http/2 server, http/1 client"

_METHOD = re.compile(rb"(?:\r\n?)?[!#$%&'*+\-.^_`|~0-9A-Za-z]{0," + str(MAX_METHOD_BYTES).encode() + rb"}")


class FlowObserver:
    """Implements ``Observer`` for a flow of unknown protocol.

    HTTP/2 begins with its preface, HTTP/1 with a method and a space; a TLS handshake is ``Undecodable("tls")``, all
    else ``Undecodable("not http")``. ``memo`` may be shared by all flows of a worker.
    """

    def __init__(self, memo: HeadMemo | None = None, joined: bool = False) -> None:
        """``joined``: the flow's beginning was not seen. Both protocols look for a place to begin; the one that finds
        it is kept. ``protocol`` tells which."""
        self._memo = memo
        self._first = b""  # the client's bytes while undecided
        self._early = b""  # the server's
        self._chosen: Observer | None = None
        self._rivals: tuple[tuple[str, Observer], ...] = ()
        self._dead = False
        self._announced = False
        self.protocol = ""  # "http/1", "http/2"; empty while unknown
        self._saved: SavedFlow | None = None  # the last one, where equal ones are not saved again
        if joined:
            self._join()

    def _join(self) -> None:
        self._first = self._early = b""
        self._rivals = (("http/1", Http1Observer(self._memo, joined=True)), ("http/2", Http2Observer(joined=True)))

    def save(self, whole: bool = False) -> SavedFlow | None:
        """What another process needs to read on: what changed since the last save, None for nothing; or all of it."""
        chosen = self._chosen
        if isinstance(chosen, Http2Observer):
            return SavedFlow(self.protocol, http2=chosen.save(whole))
        if isinstance(chosen, Http1Observer):
            http1 = chosen.save()
            if self._saved is not None and self._saved.http1 is http1 and not whole:
                return None
            saved = SavedFlow(self.protocol, http1=http1)
        elif self._dead or self._rivals or len(self._early) > MAX_SAVED_EARLY_BYTES:
            saved = SavedFlow("", dead=self._dead, joined=not self._dead)
        else:
            saved = SavedFlow("", first=self._first, early=self._early)
        if saved == self._saved and not whole:
            return None
        self._saved = saved
        return saved

    def load(self, saved: SavedFlow) -> None:
        """Take up what was saved; each save of the flow, in order, then ``resume``."""
        self._saved = saved
        self.protocol, self._dead = saved.protocol, saved.dead
        if saved.http2 is not None:
            if not isinstance(self._chosen, Http2Observer):
                self._chosen = Http2Observer()
            self._chosen.load(saved.http2)
        self._first, self._early = saved.first, saved.early

    def resume(self) -> None:
        """Read on from what was loaded."""
        saved, self._saved = self._saved, None
        self._rivals = ()
        if isinstance(self._chosen, Http2Observer):
            self._chosen.resume()
        elif saved is None or saved.joined:
            self._join()
        elif saved.http1 is not None:
            self._chosen = Http1Observer.resumed(self._memo, saved.http1)

    @property
    def unsynced(self) -> bool:
        if self._chosen is not None:
            return self._chosen.unsynced
        return bool(self._rivals)

    def held_bytes(self) -> int:
        held = len(self._first) + len(self._early)
        if self._chosen is not None:
            held += self._chosen.held_bytes()
        return held + sum(rival.held_bytes() for _, rival in self._rivals)

    def feed(self, side: Side, data: bytes) -> list[Event]:
        if self._chosen is not None:
            return self._chosen.feed(side, data)
        if self._dead or not data:
            return []
        if self._rivals:
            return self._compete(side, data)
        if side == Side.SERVER:
            if len(self._early) + len(data) > MAX_EARLY_SERVER_BYTES:
                return self._refuse(Side.SERVER, "server spoke first")
            self._early += data
            return []
        self._first += data
        return self._decide()

    def _decide(self) -> list[Event]:
        first = self._first
        if PREFACE.startswith(first[: len(PREFACE)]):
            if len(first) < len(PREFACE):
                return []
            return self._choose("http/2", Http2Observer())
        if first[0] == _TLS_HANDSHAKE:
            return self._refuse(Side.CLIENT, TLS)
        match = _METHOD.match(first)
        stop = match.end() if match else 0
        if stop == len(first):
            return [] if stop <= MAX_METHOD_BYTES else self._refuse(Side.CLIENT, "not http")
        if first[stop : stop + 1] != b" " or first[:1] == b" ":
            return self._refuse(Side.CLIENT, "not http")
        if self._early:  # a response without a request, such as 408 to a connection that was opened and left idle
            return self._refuse(Side.SERVER, HTTP2_SERVER if _SETTINGS.match(self._early) else "server spoke first")
        return self._choose("http/1", Http1Observer(self._memo))

    def _choose(self, protocol: str, observer: Observer) -> list[Event]:
        self.protocol = protocol
        self._chosen = observer
        first, early = self._first, self._early
        self._first = self._early = b""
        events = observer.feed(Side.SERVER, early)
        return events + observer.feed(Side.CLIENT, first)

    def _compete(self, side: Side, data: bytes) -> list[Event]:
        events: list[Event] = []
        if not self._announced:
            self._announced = True
            events.append(Unsynced(side))
        for protocol, rival in self._rivals:
            found = rival.feed(side, data)
            if any(isinstance(event, Resynced) for event in found):
                self.protocol = protocol
                self._chosen = rival
                self._rivals = ()
                return events + found
        return events

    def _refuse(self, side: Side, reason: str) -> list[Event]:
        self._dead = True
        self._first = self._early = b""
        return [Undecodable(side, reason, 0)]

    def gap(self, side: Side, count: int) -> list[Event]:
        if self._chosen is not None:
            return self._chosen.gap(side, count)
        if self._dead or count <= 0:
            return []
        if not self._rivals:
            self._join()
        for _, rival in self._rivals:
            rival.gap(side, count)
        if self._announced:
            return []
        self._announced = True
        return [Unsynced(side)]

    def eof(self, side: Side) -> list[Event]:
        if self._chosen is not None:
            return self._chosen.eof(side)
        for _, rival in self._rivals:
            rival.eof(side)
        return []

    def close(self) -> list[Event]:
        if self._chosen is not None:
            return self._chosen.close()
        events: list[Event] = []
        if self._rivals:  # what was missed is missed in either protocol: one of them estimates it
            events = self._rivals[0][1].close()
        self._rivals = ()
        self._first = self._early = b""
        self._dead = True
        return events
