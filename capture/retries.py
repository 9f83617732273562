"""A request that is sent again because it failed is the same call, not another one.

The SDKs of EAS resend a body by themselves: Python on exactly HTTP 500 and on errors of the connection, five attempts
in all; Go on anything but 200; Java on every failure (eas_prediction's predict_client.py; what is said of Go and Java
is known from their READMEs, not seen here). So an attempt belongs to a failed one before it when it comes from the same
client address on the same listener with the same path and bytes, began after that one had ended, and did so soon.
Clients behind one address that send the same bytes one after the other look like one that tries again; those that send
at the same time do not. Each worker knows only the connections that it reads.

Pure and bounded: at most ``most`` failed attempts are remembered, as a hash of their bytes.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from capture.dialects.base import Outcome
from capture.dialects.eas import EasDialect
from capture.flow_saves import Flow
from capture.open_exchange import Exchange

#: Seconds after which an attempt is a new call. SDKs that wait between attempts wait less.
WINDOW_SECONDS: Final = 10.0
#: Attempts of one call, the first included: the Python SDK's default. Whoever goes on has made a new call.
MOST_ATTEMPTS: Final = 5
#: Failed attempts that are remembered, over all clients; the oldest is forgotten first.
MOST_REMEMBERED: Final = 1024
#: What is known of a call improves in this order only.
_RANK: Final = {Outcome.REFUSED: 0, Outcome.UNPROVEN: 1, Outcome.PROVEN: 2}


@dataclass(slots=True)
class _Failed:
    """Calls of one client with the same bytes whose last attempts failed: ``calls`` of them, ``waiting`` for another
    attempt, ``retries`` seen. ``best`` is what is known of them, ``ended`` the last attempt's place among all exchanges
    that ended, ``at`` when it did, in seconds."""

    best: Outcome
    ended: int
    at: float
    calls: int = 1
    waiting: int = 1
    retries: int = 0


class Retries:
    """Tells retries from calls, for one worker."""

    __slots__ = ("_most", "failed")

    def __init__(self, most: int = MOST_REMEMBERED) -> None:
        #: What is remembered; while it is empty, no success is a retry.
        self.failed: dict[Hashable, _Failed] = {}
        self._most = most

    def known(self, exchange: Exchange, outcome: Outcome, flow: Flow | None, now: float) -> Outcome | None:
        """:meth:`before` of an exchange of EAS whose request was read; None for any other, and where no flow tells the
        client."""
        sent, route = exchange.wire_body or exchange.body, exchange.route
        if flow is None or sent is None:
            return None
        if route is None or not isinstance(route.dialect, EasDialect):
            return None
        # A path may be as long as a head.
        key = (flow.client, flow.listener.name, hash(exchange.path), len(sent), hash(sent))
        return self.before(key, outcome, began=exchange.began, ended=exchange.ended, now=now)

    def before(self, key: Hashable, outcome: Outcome, *, began: int, ended: int, now: float) -> Outcome | None:
        """One attempt with its outcome (proven, unproven or refused). What was known of its call before, where it is a
        retry; None where it is a call of its own. ``key`` stands for client, place and bytes; ``began`` is how many
        exchanges had ended when it began, ``ended`` its own place among them."""
        failed = outcome is not Outcome.PROVEN
        known = self.failed.pop(key, None)
        if known is not None and now - known.at > WINDOW_SECONDS:
            known = None
        retry = known is not None and began >= known.ended and known.retries < (MOST_ATTEMPTS - 1) * known.calls
        if known is None or (not retry and began >= known.ended):
            if failed:
                self._remember(key, _Failed(outcome, ended, now))
            return None
        before = known.best
        if not retry:
            # It was under way when the other one failed: a call of its own.
            known.calls += failed
            known.waiting += failed
        else:
            known.retries += 1
            known.waiting -= not failed
        if failed:
            known.ended, known.at = ended, now
            known.best = max(before, outcome, key=_RANK.__getitem__)
        if known.waiting:
            self._remember(key, known)
        return before if retry else None

    def _remember(self, key: Hashable, failed: _Failed) -> None:
        """At the end of the order: it is the newest."""
        self.failed[key] = failed
        if len(self.failed) > self._most:
            del self.failed[next(iter(self.failed))]


def improves(outcome: Outcome, before: Outcome) -> bool:
    """Whether a retry with this outcome says more of its call than was known."""
    return _RANK[outcome] > _RANK[before]
