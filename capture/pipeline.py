"""From tap frames to a batch for the store: the worker's work, without its IO.

Frames go in as the tap reader hands them over; time comes from the tap's own TIME frames, randomness from the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from capture import tap
from capture.admission import Admission
from capture.admission_moves import wanted_later
from capture.attribution import STATUS_FAMILIES, Attribution
from capture.config import ListenerConfig
from capture.dialects.base import Outcome
from capture.exchange import ExchangeTracker
from capture.export.scrub_rules import Rules
from capture.flow_saves import Flow, FlowSave, FlowSaver, load
from capture.heads import Heads
from capture.levels import Levels
from capture.notices import tell
from capture.open_exchange import BodyBudget, Exchange
from capture.peers import network
from capture.retries import Retries, improves
from capture.scrubbing import UNSCRUBBED, Scrubber
from capture.signature import Call
from capture.store.base import (
    MAX_SHAPES,
    OTHER,
    UNKNOWN_VERSION,
    Batch,
    HeldOut,
    ModelVersion,
    Sample,
    SignatureDelta,
    bump,
    count_sender,
)
from capture.wire import events as ev
from capture.wire.detect import FlowObserver
from capture.wire.http1_head import HeadMemo

#: Characters of all names in one signature. Real ones have some hundreds.
MAX_SIGNATURE_CHARS: Final = 64 << 10
#: Characters of all shapes of one request; a longer text counts as "(other)". Real ones have some hundreds.
MAX_SHAPES_CHARS: Final = 8 << 10
#: Characters of a model's name where a refusal is counted by it.
MAX_MODEL_CHARS: Final = 200
#: Distinct refusal and ignore reasons counted by one worker; the rest is counted as "(other)". Anyone can make up paths
#: and names of models, and the store keeps each.
MAX_REASONS: Final = 1000

_SIDES: Final = {tap.CLIENT: ev.Side.CLIENT, tap.SERVER: ev.Side.SERVER}


class Pipeline:
    """Reads all flows of one worker. ``batch`` is what has changed since :meth:`take`; ``urgent`` says that it holds a
    request that should be stored soon. ``count`` adds to a counter."""

    def __init__(
        self,
        *,
        run: str,
        name: str,
        listeners: tuple[ListenerConfig, ...],
        admission: Admission,
        request_bytes: int,
        open_bytes: int,
        count: Callable[[str, int], None],
        draw: Callable[[], float],
        levels: Levels | None = None,
        scrub: Rules | None = None,
    ) -> None:
        """``run`` names the supervisor's run, ``name`` this worker: held-out ids begin with it, so it never repeats.
        ``scrub``: keep no values of requests, by these rules."""
        self._run = run
        self._name = name
        self._listeners = listeners
        self._admission = admission
        self._request_bytes = request_bytes
        self._budget = BodyBudget(open_bytes)
        self._count = count
        self._draw = draw
        self._levels = levels or Levels()
        self._scrubber = Scrubber(scrub, admission)
        self._memo = HeadMemo()
        self._heads = Heads()
        self._flows: dict[int, Flow] = {}
        self._saver = FlowSaver()
        self._retries = Retries()
        self._held_number = 0
        #: What the requests that were read took, for an estimate of those that were not.
        self._client_bytes = 0
        self._requests = 0
        self._reasons: set[object] = set()
        #: Wall clock of the last TIME frame, seconds since the epoch; and its monotonic clock, in seconds.
        self.now = 0.0
        self.monotonic = 0.0
        #: The share of exchanges to shed: see :mod:`capture.shedding`. Whoever feeds sets it.
        self.shed = 0.0
        #: Whose version model servers can be asked for.
        self.attribution = Attribution(count)
        self.batch = Batch(run)
        self.urgent = False

    def take(self) -> Batch:
        """The batch so far; a new one is begun."""
        batch, self.batch, self.urgent = self.batch, Batch(self._run), False
        batch.updated_at = self.now
        return batch

    @property
    def open_flows(self) -> int:
        """Flows that are being read."""
        return len(self._flows)

    @property
    def open_bytes(self) -> int:
        """Bytes of bodies that are held."""
        return self._budget.used

    def feed(self, frames: Iterable[tuple[int, int, int, bytes]]) -> None:
        """Frames as :meth:`capture.tap.TapReader.read` returns them."""
        flows = self._flows
        touched = self._saver.touched
        for kind, number, _, payload in frames:
            touched.add(number)
            if (side := _SIDES.get(kind)) is not None:
                if (flow := flows.get(number)) is not None:
                    self._client_bytes += 0 if side else len(payload)
                    self._events(flow, flow.observer.feed(side, payload))
            elif kind == tap.TIME:
                monotonic, wall = tap.TIME_PAYLOAD.unpack(payload)
                self.monotonic, self.now = monotonic / 1e9, wall / 1e9
                self._budget.monotonic = self.monotonic
            elif kind == tap.OPEN:
                self._open(number, payload)
            elif kind == tap.LOST:
                self._never_seen(*tap.LOST_PAYLOAD.unpack(payload))
            else:
                flow = flows.get(number)
                if flow is not None:
                    self._control(flow, number, kind, payload)

    def close(self) -> None:
        """The tap is gone: every flow that is open will never be read to its end."""
        for flow in self._flows.values():
            self._end(flow)
        self._flows.clear()

    def changes(self, whole: bool, room: int) -> list[FlowSave]:
        """The flows that :meth:`feed` touched since the last call; or all, in some ``room`` bytes."""
        if not whole:
            return self._saver.changes(self._flows)
        saves, forgotten = self._saver.everything(self._flows, room)
        self._count("flows_forgotten", forgotten)
        return saves

    def restore(self, saves: Iterable[FlowSave], now: float, monotonic: float) -> None:
        """Read on where another worker's pipeline stood. What it had open is lost, and counted."""
        self.now, self.monotonic = now, monotonic
        self._flows, lost, unsynced = load(saves, lambda number, opened: self._make(number, opened, False))
        # What HTTP/1 flows had open they count themselves, as missed, once they read on.
        self._count("requests_lost", lost)
        self._count("flows_unsynced", unsynced)

    # --- flows ---

    def _make(self, number: int, payload: bytes, joined: bool) -> Flow:
        opened = msgspec.json.decode(payload, type=tap.FlowOpen)
        listener = self._listeners[opened.listener]
        tracker = ExchangeTracker(
            number,
            listener,
            network(opened.peer),
            self._budget,
            self._heads,
            max_request_bytes=self._request_bytes,
            wanted=self._wanted,
            passed_over=self._pass_over,
        )
        return Flow(payload, FlowObserver(self._memo, joined), tracker, listener)

    def _open(self, number: int, payload: bytes) -> None:
        opened = msgspec.json.decode(payload, type=tap.FlowOpen)
        if opened.client_start > 0:
            # An estimate: the worker before this one may have read all of it, or nothing of many requests.
            self._count("requests_missed", 1)
        self._flows[number] = self._make(number, payload, opened.client_start > 0 or opened.server_start > 0)

    def _never_seen(self, flows: int, client_bytes: int, _: int) -> None:
        """Flows ended of which this worker got nothing. An estimate of their requests: one for each flow, or as many as
        their bytes would make by the average so far, if that is more."""
        if client_bytes:
            by_size = client_bytes * self._requests // self._client_bytes if self._client_bytes else 0
            self._count("requests_missed", max(flows, by_size))

    def _control(self, flow: Flow, number: int, kind: int, payload: bytes) -> None:
        if kind == tap.EOF_CLIENT:
            self._events(flow, flow.observer.eof(ev.Side.CLIENT))
        elif kind == tap.EOF_SERVER:
            self._events(flow, flow.observer.eof(ev.Side.SERVER))
        elif kind == tap.GAP:
            client, server = tap.GAP_PAYLOAD.unpack(payload)
            if client:
                self._events(flow, flow.observer.gap(ev.Side.CLIENT, client))
            if server:
                self._events(flow, flow.observer.gap(ev.Side.SERVER, server))
        elif kind == tap.CLOSED:
            self._end(flow)
            del self._flows[number]
            self._saver.end(number, flow)

    def _end(self, flow: Flow) -> None:
        blind = flow.observer.unsynced
        self._events(flow, flow.observer.close())
        flow.tracker.close()
        self._drain(flow)
        if blind:
            self._count("flows_blind", 1)

    def _events(self, flow: Flow, events: list[ev.Event]) -> None:
        if events:
            tracker = flow.tracker
            tracker.feed(events)
            if tracker.finished or tracker.notices:
                self._drain(flow)

    def _drain(self, flow: Flow) -> None:
        tracker = flow.tracker
        if tracker.finished:
            finished, tracker.finished = tracker.finished, []
            for exchange in finished:
                self.take_exchange(exchange, flow.listener, flow)
        if tracker.notices:
            notices, tracker.notices = tracker.notices, []
            for notice in notices:
                tell(notice, self._count, self._ignore)

    def _wanted(self, call: Call) -> bool:
        signature = call.signature
        level = self._levels.of(signature.model)
        digest = signature.digest + level.suffix(call, None)
        # Without the body its values are not known.
        return bool(level.inputs) or self._admission.wanted(signature.family, signature.model, digest, self.now)

    def _pass_over(self) -> bool:
        """Whether the exchange that begins is shed: drawn for each alike, whatever it is and whoever sent it."""
        if not self.shed or self._draw() >= self.shed:
            return False
        # It passed, for the average size of a request.
        self._requests += 1
        self._count("requests_shed", 1)
        return True

    # --- exchanges ---

    def _ignore(self, what: str) -> None:
        self.batch.ignored[what if self._known_reason(what) else OTHER] += 1

    def _known_reason(self, reason: object) -> bool:
        """True for one that is counted by its own name."""
        if reason not in self._reasons:
            if len(self._reasons) >= MAX_REASONS:
                return False
            self._reasons.add(reason)
        return True

    def take_exchange(self, exchange: Exchange, listener: ListenerConfig, flow: Flow | None = None) -> None:
        """Count a finished exchange, and keep of it what admission wants. ``flow`` is where it was seen, if it was."""
        if exchange.lost:
            self._count("requests_lost", 1)
            return
        if exchange.request_complete:
            self._requests += 1
            self._count("requests_observed", exchange.calls)
        if exchange.route is None:
            self._count("requests_ignored", 1)
            self._ignore(exchange.ignored)
            return
        family = exchange.route.dialect.family
        model = exchange.call.signature.model if exchange.call else exchange.route.model
        if exchange.oversized and exchange.call is None:
            self._count("requests_oversized", 1)
            self._refuse(family, model, "oversized", "body over the limit")
            return
        if not exchange.request_complete:
            self._count("requests_incomplete", 1)
            return
        judgement = exchange.judgement
        if judgement is None:
            raise AssertionError("a complete exchange without a judgement")
        outcome, reason = judgement.outcome, judgement.reason
        call = exchange.call
        before = None
        # All copies come from one client, the mirror, and whether the originals failed is not known.
        told = call is not None and not listener.mirrored
        if told and (outcome is not Outcome.PROVEN or self._retries.failed):
            before = self._retries.known(exchange, outcome, flow, self.monotonic)
            if before is not None:
                self._count("requests_retried", 1)
                if not improves(outcome, before):
                    return
        if call is not None and outcome in (Outcome.PROVEN, Outcome.UNPROVEN):
            if call.signature.chars <= MAX_SIGNATURE_CHARS:
                version = judgement.version or call.version or listener.version or UNKNOWN_VERSION
                again = before is Outcome.UNPROVEN
                self._call(exchange, call, outcome, ModelVersion(family, model, version), again, listener.status)
                return
            outcome, reason = Outcome.UNDECODABLE, "signature too large"
        self._count(f"requests_{outcome}", 1)
        self._refuse(family, model, outcome, reason)

    def _refuse(self, family: str, model: str, outcome: str, reason: str) -> None:
        if len(model) > MAX_MODEL_CHARS:
            model = OTHER
        key = (family, model, outcome, reason)
        self.batch.refusals[key if self._known_reason(key) else (family, OTHER, outcome, reason)] += 1

    def _call(
        self, exchange: Exchange, call: Call, outcome: Outcome, owner: ModelVersion, again: bool, status: str
    ) -> None:
        """A call that reached the model, or may have. ``again``: counted already, as unproven, and it succeeded now."""
        proven, calls = outcome is Outcome.PROVEN, exchange.calls
        self._count("requests_proven" if proven else "requests_unproven", calls)
        shapes, body = call.shapes, exchange.body
        level = self._levels.of(call.signature.model).suffix(call, body)
        if len(shapes) > MAX_SHAPES_CHARS:
            shapes, level = OTHER, ""
        key = self._admission.identify(owner, call.signature.digest, level)
        self._held_number += 1
        held_id = f"{self._name}-{self._held_number:x}"
        stretch, anew, now, draw = None, False, self.now, self._draw()
        if status and owner.family in STATUS_FAMILIES:
            stretch, likely = self.attribution.call(key, call, status, proven, calls, exchange.began_at, self.monotonic)
            if stretch is not None and likely is not None:
                wanted, anew = wanted_later(self._admission, likely, proven=proven, shapes=shapes, now=now, draw=draw)
                anew = anew and not self.attribution.sample_waits(key)
                body = body if wanted else None
        kept = self._scrubber.kept(exchange, body, key, proven, shapes, anew, now, draw)
        body = kept.body
        if kept.unscrubbed:
            self._count("requests_unscrubbed", 1)
            self._refuse(owner.family, owner.model, UNSCRUBBED, kept.unscrubbed)
        decision = self._admission.observe(
            key,
            proven=proven,
            shapes=shapes,
            size=None if body is None else len(body) + len(kept.wire_body or b""),
            held_id=held_id,
            now=now,
            draw=draw,
            again=again,
            anew=anew,
        )
        if not decision.admitted:
            self._count("signatures_turned_away", 1)
            return
        if stretch is not None:
            stretch.add(proven, calls, shapes, exchange.sender, now)
            self.attribution.keep(stretch, now if decision.sample else None, held_id if decision.hold else "")
        batch = self.batch
        delta = batch.seen.get(key)
        if delta is None:
            delta = batch.seen[key] = SignatureDelta(call.signature, now, now)
        delta.last_seen = now
        delta.hours += decision.new_hour
        delta.proven += proven * calls
        if again:
            delta.unproven -= calls
        else:
            delta.unproven += (not proven) * calls
            bump(delta.shapes, shapes, MAX_SHAPES, calls)
            count_sender(delta.senders, delta.blocks, exchange.sender, now, calls)
        if body is not None and (decision.sample or decision.hold is not None):
            sample = Sample(body, kept.wire_body, kept.headers, kept.path, shapes, outcome, self.now)
            # What was drawn can wait: a transaction for each is dear.
            self.urgent = self.urgent or decision.urgent
            if decision.sample:
                batch.samples[key] = sample
            elif decision.hold is not None:
                batch.held_out[held_id] = (key, HeldOut(held_id, sample, *decision.hold))
        for gone in decision.evicted:
            batch.samples.pop(gone, None)
            batch.evicted.add(gone)
        self.release(decision.released)

    def release(self, released: dict[str, tuple[float | None, bool]]) -> None:
        """Held-out requests that lose a role, by id with the roles they keep."""
        for held_id, (draw, for_signature) in released.items():
            pending = self.batch.held_out.get(held_id)
            if pending is None:
                self.batch.released[held_id] = (draw, for_signature)
            elif draw is None and not for_signature:
                del self.batch.held_out[held_id]
            else:
                pending[1].draw, pending[1].for_signature = draw, for_signature
