"""Calls whose version is told later: the part of :class:`capture.admission.Admission` that moves what it knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from capture.admission import Admission
from capture.admission_state import Decision, Known, VersionState
from capture.store.base import HOUR, MAX_SHAPES, RecordKey, SignatureDelta


@dataclass(slots=True)
class Moved:
    """What to do: nothing unless ``decision.admitted``. ``sample``: the source's sample is the target's as well.
    ``held`` are the held-out requests that go there, with the roles that they keep."""

    decision: Decision
    sample: bool = False
    held: dict[str, tuple[float | None, bool]] = field(default_factory=dict)


def wanted_later(
    admission: Admission, key: RecordKey, *, proven: bool, shapes: str, now: float, draw: float
) -> tuple[bool, bool]:
    """Whether the request of such a call would be stored if its version were known, and whether that version has no
    sample at all."""
    state = admission._versions.get(key.owner)
    known = None if state is None else state.signatures.get(key.digest)
    if state is None or known is None or known.sample_at is None:
        return True, True
    due = not known.held or now - known.held_at > admission._refresh_after
    held = proven and (due or draw < admission._threshold(state, now))
    return held or admission._takes_sample(known, proven, shapes, now), False


def move(
    admission: Admission,
    source: RecordKey,
    target: RecordKey,
    delta: SignatureDelta,
    *,
    sampled_at: float | None,
    held: Sequence[str],
) -> Moved:
    """Take ``delta`` from what is known of ``source`` to ``target``, the same signature of another version. The sample
    goes along if it is the one of these calls, taken at ``sampled_at``, and is wanted there; so do those of the
    held-out requests ``held``: by its draw each stays in the reservoir if it would have entered it."""
    moved = Moved(Decision())
    decision, now, digest = moved.decision, delta.last_seen, source.digest
    old = admission._versions.get(source.owner)
    before = None if old is None else old.signatures.get(digest)
    if old is None or before is None or before.evicted:
        decision.admitted = False
        return moved
    state = admission._version(target.owner, now, delta.proven > 0, decision)
    known = None if state is None else state.signatures.get(digest)
    if state is not None and known is None:
        known = admission._admit(target, state, now, decision)
    if state is None or known is None:
        decision.admitted = False
        return moved
    _count(old, before, state, known, delta, decision)
    old.rerank(digest)
    # An eviction just now may have taken what was to be moved.
    gone = before.evicted or (known.evicted and not admission._readmit(target, state, known, decision))
    if not gone:
        sample = sampled_at is not None and before.sample_at == sampled_at
        if sample and admission._takes_sample(known, before.sample_proven, before.sample_shapes, now):
            admission.stored_bytes += before.sample_size - known.sample_size
            known.sample_at, known.sample_shapes = before.sample_at, before.sample_shapes
            known.sample_proven, known.sample_size = before.sample_proven, before.sample_size
            moved.sample = True
        for held_id in held:
            if held_id in old.held:
                _hold(admission, held_id, old, target, state, known, decision)
                moved.held[held_id] = (None, False)
        for held_id in moved.held:
            # One may have had to make room for the next.
            decision.released.pop(held_id, None)
            if (kept := state.held.get(held_id)) is not None:
                moved.held[held_id] = (kept.draw, kept.for_signature)
    if before.hits <= 0 and not any(one.digest == digest for one in old.held.values()):
        admission.stored_bytes -= before.sample_size
        old.live -= not before.evicted
        old.unlearn(digest)
    admission._bound_bytes(decision)
    return moved


def _count(
    old: VersionState, before: Known, state: VersionState, known: Known, delta: SignatureDelta, decision: Decision
) -> None:
    calls = delta.proven + delta.unproven
    hour = int(delta.last_seen // HOUR)
    known.last_seen = max(known.last_seen, delta.last_seen)
    if hour != known.last_hour:
        known.last_hour = hour
        known.hours += 1
        decision.new_hour = True
    before.hits -= calls
    known.hits += calls
    for shapes, count in delta.shapes.items():
        if left := max(0, before.shapes.pop(shapes, 0) - count):
            before.shapes[shapes] = left
        if shapes in known.shapes or len(known.shapes) < MAX_SHAPES:
            known.shapes[shapes] = known.shapes.get(shapes, 0) + count
    old.calls[hour] = max(0, old.calls.get(hour, 0) - delta.proven)
    state.calls[hour] = state.calls.get(hour, 0) + delta.proven


def _hold(
    admission: Admission,
    held_id: str,
    old: VersionState,
    target: RecordKey,
    state: VersionState,
    known: Known,
    decision: Decision,
) -> None:
    """Take one held-out request along, with the roles that it can have there."""
    draw = old.held[held_id].draw
    held = old.remove(held_id)
    admission.stored_bytes -= held.size
    # There is room again in the reservoir that it left.
    old.full, old.cut = False, None
    kept = 1.0 if draw is None else draw  # 1: never in a reservoir
    admission._hold(target, state, known, held.size, held_id, held.captured_at, kept, decision)
