"""Finding an HTTP/1.1 flow's framing again after bytes were missed.

A wrong path or body is worse than none, so one place only is trusted: a client chunk that begins with a whole valid
request head and directly follows server bytes that end a final response. That holds for clients that wait for each
response; the observer does not resume a flow that was seen to pipeline, since responses could be paired wrongly.
"""

from __future__ import annotations

from capture.wire.events import Side
from capture.wire.http1_head import MAX_HEAD_BYTES, find_bare_lf, parse_request

# Of the server's bytes since it began to speak: enough for "HTTP/1.1 100", and to tell how they end, in bytes.
_FIRST, _LAST = 12, 7
# Bytes per request where the flow has shown none: a guess that errs towards many.
_REQUEST_BYTES = 1024


class Resume:
    """Looks for that place. Feed it what both sides send; it returns the client bytes to read on from."""

    __slots__ = (
        "_first",
        "_head",
        "_hopeless",
        "_last",
        "_seen_client",
        "_seen_server",
        "_spoke",
        "client_bytes",
        "side",
    )

    def __init__(self, side: Side, hopeless: bool = False) -> None:
        """``side`` is the one whose bytes were missed. ``hopeless``: only count, never resume."""
        self.side = side
        self._hopeless = hopeless
        self.client_bytes = 0  # missed, or seen and not understood
        self._seen_client = 0
        self._seen_server = 0
        self._spoke = False  # the last bytes seen were the server's
        self._first = b""
        self._last = b""
        self._head = bytearray()  # the client's bytes since then, while they may become a request head

    def held_bytes(self) -> int:
        """In bytes."""
        return len(self._head) + _FIRST + _LAST

    def gap(self, side: Side, count: int) -> None:
        """Bytes missed: whatever was being judged is void."""
        if side == Side.CLIENT:
            self.client_bytes += count
        self._void()

    def _void(self) -> None:
        self._spoke = False
        self._first = self._last = b""
        self._head.clear()

    def feed(self, side: Side, data: bytes) -> bytes | None:
        """Bytes to read on from (a request head and what followed it), or None."""
        if side == Side.SERVER:
            self._seen_server += len(data)
            if not self._spoke or self._head:  # an answer to half a head: no place to resume
                self._void()
                self._spoke = True
            self._first += data[: _FIRST - len(self._first)]
            self._last = (self._last + data[-_LAST:])[-_LAST:]
            return None
        self._seen_client += len(data)
        self.client_bytes += len(data)
        if self._hopeless or (not self._head and not (self._spoke and self._complete())):
            self._void()
            return None
        seen = len(self._head)
        self._head += data[: MAX_HEAD_BYTES - seen]
        stop = self._head.find(b"\r\n\r\n", max(0, seen - 3))
        if stop < 0:
            if len(self._head) >= MAX_HEAD_BYTES or find_bare_lf(self._head, seen) >= 0:
                self._void()
            return None
        if isinstance(parse_request(bytes(self._head[: stop + 4])), str):
            self._void()
            return None
        return bytes(self._head[:seen]) + data

    def _complete(self) -> bool:
        """Whether the server's bytes can be the end of a final response rather than (the end of) an interim one."""
        if self._first[:7] == b"HTTP/1."[: len(self._first)]:
            # Begun and ended in one turn. 101 and other 1xx promise no end; a 1xx with the final response behind it
            # in the same turn is given up: the next turn serves as well.
            return self._first[9:10] in (b"2", b"3", b"4", b"5")
        # The tail of a response whose beginning is unknown: it must not be the tail of an interim response, which is a
        # head and so ends in an empty line. The end of a chunked body does too, but behind a line that is no field.
        return not self._last.endswith(b"\r\n\r\n") or self._last == b"\r\n0\r\n\r\n"

    def skipped(self, found: int) -> int:
        """Bytes of both directions seen and not understood, where reading goes on at the last ``found`` bytes."""
        return self._seen_client + self._seen_server - found

    def estimate(self, average: int, found: int) -> int:
        """Requests missed, at least 1: client bytes without the last ``found``, by the flow's average request."""
        return max(1, (self.client_bytes - found) // (average or _REQUEST_BYTES))
