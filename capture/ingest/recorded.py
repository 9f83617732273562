"""Requests that were recorded elsewhere, counted and kept as if they had passed. Pure.

A reader (:mod:`capture.ingest.har`, ``lines``, ``predictions``) makes of a file one :class:`Recorded` or
:class:`Unread` for each request. :class:`Recorder` makes of it the events that an observer would have emitted, so that
dialects, signatures, outcomes, admission and limits are those of traffic.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from msgspec import structs

from capture.config import ListenerConfig
from capture.exchange import ExchangeTracker
from capture.heads import Heads
from capture.open_exchange import BodyBudget, Exchange
from capture.pipeline import Pipeline
from capture.wire import events as ev

#: What stands for the network of the sender, which no record tells.
SENDER: Final = "recorded"
#: An HTTP status for gRPC, whose own status is in the trailers.
_OK: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One request. ``body`` is as it was sent, gRPC's message prefix included; ``headers`` have names in lower case.

    ``status`` is the HTTP status of the response, None where none was recorded; ``grpc_status`` None where that was not
    told. ``response`` is the response's body, as far as it was recorded. ``at`` is seconds since the epoch, 0: not
    told. ``dialect``, ``service`` and ``version`` are as in a listener's settings; empty: what the command says.
    ``calls`` that it stands for, and ``failed`` more of the same that were not seen to succeed."""

    place: str
    method: str = "POST"
    target: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes
    status: int | None = None
    grpc_status: int | None = None
    response: bytes = b""
    at: float = 0.0
    dialect: str = ""
    service: str = ""
    version: str = ""
    calls: int = 1
    failed: int = 0


class Unread(NamedTuple):
    """A place in a file that cannot be read, and why: one line, nothing of the content."""

    place: str
    why: str


class Added(NamedTuple):
    """What became of a record: an outcome, ``ignored`` (no model call) or ``oversized``; why; and whether its body was
    understood, as far as that was wanted."""

    outcome: str
    reason: str
    readable: bool


def grpc_message(message: bytes, *, compressed: bool = False) -> bytes:
    """With the prefix that gRPC puts before each message."""
    return (b"\1" if compressed else b"\0") + len(message).to_bytes(4, "big") + message


def grpc_target(method: str) -> str:
    """The path of a method of TF Serving."""
    service = "SessionService" if method == "SessionRun" else "PredictionService"
    return f"/tensorflow.serving.{service}/{method}"


class Recorder:
    """Feeds a pipeline with records, one after the other."""

    def __init__(
        self, pipeline: Pipeline, listener: ListenerConfig, *, request_bytes: int, open_bytes: int, now: float
    ) -> None:
        """``listener``: how requests are read that do not say it themselves. ``now``: the time of those without one, in
        seconds since the epoch; none is later."""
        self._pipeline = pipeline
        self._listener = listener
        self._request_bytes = request_bytes
        self._budget = BodyBudget(open_bytes)
        self._heads = Heads()
        self._now = now
        self._number = 0

    def add(self, record: Recorded) -> Added:
        """Count it, and keep of it what admission wants."""
        added = self._add(record)
        if record.failed:
            self._add(replace(record, status=None, grpc_status=None, response=b"", calls=record.failed))
        return added

    def _add(self, record: Recorded) -> Added:
        self._number += 1
        listener = self._listener_of(record)
        tracker = ExchangeTracker(
            self._number,
            listener,
            SENDER,
            self._budget,
            self._heads,
            max_request_bytes=self._request_bytes,
            wanted=_yes,
            passed_over=_no,
        )
        tracker.feed(_events(record))
        tracker.close()
        (exchange,) = tracker.finished
        exchange.calls = record.calls
        self._pipeline.now = min(max(0.0, record.at) or self._now, self._now)
        self._pipeline.take_exchange(exchange, listener)
        return _added(exchange)

    def _listener_of(self, record: Recorded) -> ListenerConfig:
        listener = self._listener
        dialect, service = record.dialect or listener.dialect, record.service or listener.service
        # Heads are looked up by the listener's name.
        return structs.replace(
            listener,
            name=f"{dialect}\0{service}",
            dialect=dialect,
            service=service,
            version=record.version or listener.version,
        )


def _yes(_: object) -> bool:
    return True


def _no() -> bool:
    return False


def _events(record: Recorded) -> list[ev.Event]:
    headers = tuple(
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name, value in record.headers.items()
    )
    method, target = record.method.encode("latin-1", "replace"), record.target.encode("utf-8", "replace")
    grpc = record.headers.get("content-type", "").startswith("application/grpc")
    events: list[ev.Event] = [
        ev.RequestHead(1, method, target, b"", headers),
        ev.RequestData(1, record.body),
        ev.RequestEnd(1),
    ]
    if record.status is None and record.grpc_status is None:
        return [*events, ev.Aborted(1, ev.Side.CLIENT, 0, "no response recorded")]
    trailers = () if record.grpc_status is None else ((b"grpc-status", b"%d" % record.grpc_status),)
    kind = ((b"content-type", b"application/grpc"),) if grpc else ()
    events.append(ev.ResponseHead(1, _OK if record.status is None else record.status, kind))
    if record.response:
        events.append(ev.ResponseData(1, record.response))
    return [*events, ev.ResponseEnd(1, trailers)]


def _added(exchange: Exchange) -> Added:
    if exchange.route is None:
        return Added("ignored", exchange.ignored, True)
    if exchange.oversized and exchange.call is None:
        return Added("oversized", "body over the limit", False)
    judgement = exchange.judgement
    if judgement is None:
        raise AssertionError("a recorded exchange without a judgement")
    return Added(str(judgement.outcome), judgement.reason, exchange.call is not None)
