"""What supervisor and relay say to each other: one message a datagram, on a SOCK_SEQPACKET pair.

Relay to supervisor::

    ready                 it accepts on all listeners
    refusing <number>     it has stopped accepting on that listener

Supervisor to relay::

    tap  + descriptor     a new worker reads at the other end: write to it
    detach                stop tapping, flows go on (the kill switch)
    refuse <number>       stop accepting on that listener, say ``refusing``; flows go on
    accept <number>       accept on it again
    reload + descriptor   a new RelayConfig as JSON: certificates, deadlines, limits and log level of it take effect
    drain                 stop accepting, end idle flows, let busy ones finish, reset the rest, and end

A relay also shows that it is alive by counting ``relay_beats``.
"""

from __future__ import annotations

from typing import Final

READY: Final = b"ready"
REFUSING: Final = b"refusing"
TAP: Final = b"tap"
DETACH: Final = b"detach"
REFUSE: Final = b"refuse"
ACCEPT: Final = b"accept"
RELOAD: Final = b"reload"
DRAIN: Final = b"drain"
#: Seconds between two heartbeats of the relay.
BEAT_SECONDS: Final = 0.25
#: Bytes of the longest message.
MAX_MESSAGE: Final = 64


def numbered(word: bytes, number: int) -> bytes:
    """``refuse 3``."""
    return word + b" %d" % number


def parse(message: bytes) -> tuple[bytes, int]:
    """The word and its number, -1 where it has none."""
    word, _, number = message.partition(b" ")
    return word, int(number) if number.isdigit() else -1
