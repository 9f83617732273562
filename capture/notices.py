"""What an observer notices beside requests, counted."""

from __future__ import annotations

from collections.abc import Callable

from capture.wire import events as ev
from capture.wire.detect import TLS


def tell(notice: ev.Event, count: Callable[[str, int], None], ignore: Callable[[str], None]) -> None:
    """Count a notice of a flow; ``ignore`` takes what a flow was that cannot be read."""
    if isinstance(notice, ev.Missed):
        count("requests_missed", notice.requests)
    elif isinstance(notice, ev.Unsynced):
        count("flows_unsynced", 1)
    elif isinstance(notice, ev.Resynced):
        count("flows_resynced", 1)
    elif isinstance(notice, ev.Undecodable):
        count("flows_undecodable", 1)
        if notice.reason == TLS:
            count("flows_tls", 1)
        ignore(f"flow: {notice.reason}")
    elif isinstance(notice, ev.Upgraded):
        count("flows_undecodable", 1)
        ignore("flow: upgraded to another protocol")
