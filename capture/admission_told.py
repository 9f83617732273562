"""What :class:`capture.admission.Admission` learns of what was stored: where its own picture is wrong.

Of the traffic of a store that many write one sidecar sees a part: what it decides alone is what it proposes. The
store's bounds, its evictions and its reservoir are over all traffic, and what it says of each batch sets right what
this sidecar would propose next.
"""

from __future__ import annotations

from typing import Final

from capture.admission import Admission
from capture.admission_state import Decision, VersionState
from capture.dialects.base import Outcome
from capture.store.base import HOUR, Batch, RecordKey, SampleTold, Told

#: In place of the id of a further sample that another sidecar's request is.
ELSEWHERE: Final = "(elsewhere)"
#: Seconds after which a signature that the store evicted is proposed again.
BARRED_SECONDS: Final = HOUR


def learn(admission: Admission, told: Told, now: float) -> int:
    """Take it up, ``now`` in seconds since the epoch; calls that were turned away with their signatures."""
    for key, sample in told.samples.items():
        if (state := admission._versions.get(key.owner)) is not None:
            _sample(admission, state, key, sample, now)
    for held_id, key in told.refused.items():
        state = admission._versions.get(key.owner)
        held = None if state is None else state.held.get(held_id)
        if state is None or held is None:
            continue
        further = held.for_signature
        admission._forget_held(state, held_id)
        known = state.signatures.get(key.digest)
        if further and known is not None:
            known.held, known.held_at = ELSEWHERE, now
    for key, (no_sample, no_further) in told.lacking.items():
        state = admission._versions.get(key.owner)
        known = None if state is None else state.signatures.get(key.digest)
        if state is None or known is None:
            continue
        if no_sample:
            admission.not_stored(key)
        if no_further and known.held in state.held:
            admission._forget_held(state, known.held)
        elif no_further:
            known.held = ""
    for key in (*told.evicted, *told.turned_away):
        state = admission._versions.get(key.owner)
        known = None if state is None else state.signatures.get(key.digest)
        if state is not None and known is not None and not known.evicted:
            admission._evict(key.owner, state, key.digest, Decision())
            known.barred_until = now + BARRED_SECONDS
    for owner, cut in told.cuts.items():
        if (state := admission._versions.get(owner)) is not None:
            state.told_cut, state.told_at = cut, now
            _purge(admission, state, cut)
    return sum(told.turned_away.values())


def _purge(admission: Admission, state: VersionState, cut: float) -> None:
    """Requests with draws above the threshold have left the reservoir of all: they must not fill the one here."""
    while (largest := state.largest()) is not None and largest[0] > cut:
        if state.held[largest[1]].for_signature:
            state.leave_reservoir(largest[1])
        else:
            admission._forget_held(state, largest[1])


def _sample(admission: Admission, state: VersionState, key: RecordKey, sample: SampleTold, now: float) -> None:
    known = state.signatures.get(key.digest)
    if known is None:
        return
    admission.stored_bytes += sample.size - known.sample_size
    known.sample_at, known.sample_size = sample.at, sample.size
    known.sample_shapes, known.sample_proven = sample.shapes, sample.outcome == Outcome.PROVEN
    if sample.at is None:
        # It was proposed, not taken, and there is none: room is for others.
        if not known.evicted:
            admission._evict(key.owner, state, key.digest, Decision())
        known.barred_until = now + BARRED_SECONDS


def drop_requests(batch: Batch, admission: Admission) -> int:
    """Drop the requests of a batch that cannot be stored, so that others are captured in their place; the number
    dropped. What was counted stays in the batch."""
    dropped = len(batch.samples) + len(batch.held_out)
    for key in batch.samples:
        admission.not_stored(key)
    for held_id, (key, _) in batch.held_out.items():
        admission.not_stored(key, held_id)
    batch.samples.clear()
    batch.held_out.clear()
    return dropped
