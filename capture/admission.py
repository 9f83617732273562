"""What is kept: pure decisions over bounded state, no clock and no IO.

The worker tells :class:`Admission` of every call with its outcome; the answer says what to store. Three things are kept
per model version: one sample for each wire signature, a **held-out set** that is never exported (a uniform reservoir
over all proven calls, drawn without looking at the signature, and one further request for each signature), and what
counting needs. Randomness is handed in as a number in [0, 1).

The reservoir is a bottom-k sample: of all calls in the window the k with the smallest draws. When requests fall out of
the window it is filled again at the rate k / (calls in the window), so that it stays uniform over the window rather
than leaning to the newest.
"""

from __future__ import annotations

from typing import Final

from capture.admission_state import SHAPE_LEAD, Decision, Held, Known, VersionState
from capture.dialects.base import Outcome
from capture.store.base import HOUR, MAX_SHAPES, OTHER, ModelVersion, RecordKey, StoredHeldOut, StoredSignature

#: Evicted signatures that are remembered (digest, hits, dates), in multiples of the signature limit.
TOMBSTONES: Final = 4
#: Classes of one wire signature that a level tells apart; all further ones share the record of the signature itself.
#: Shapes that follow the length of a text have no end.
MAX_CLASSES: Final = 64
#: The reservoir's threshold is computed anew after this many calls at the latest.
CUT_CALLS: Final = 256
#: Model versions that are known at a time; beyond it the one seen least recently loses its requests.
MAX_MODEL_VERSIONS: Final = 1024
#: While that many are known: more new ones in an hour than this are turned away. A server that answers under any name
#: would otherwise fill the store with what is left of each.
NEW_VERSIONS_PER_HOUR: Final = 64
#: Seconds for which the threshold holds that a store told which many write; and what is proposed after it, in multiples
#: of the rate of this one's own traffic, which all the traffic is not below: chance makes it no more than that.
TOLD_SECONDS: Final = 120.0
TOLD_MARGIN: Final = 2.0


class Admission:
    """Decides for one worker. Sizes in bytes, times in seconds since the epoch; see :class:`capture.config.Limits`."""

    def __init__(
        self,
        *,
        signatures_per_version: int,
        new_signatures_per_hour: int,
        store_bytes: int,
        held_out_requests: int,
        held_out_bytes: int,
        held_out_seconds: float,
        refresh_after: float,
    ) -> None:
        self._max_signatures = signatures_per_version
        self._max_new_per_hour = new_signatures_per_hour
        self._max_bytes = store_bytes
        self._held_requests = held_out_requests
        self._held_bytes = held_out_bytes
        self._held_seconds = held_out_seconds
        self._refresh_after = refresh_after
        self._versions: dict[ModelVersion, VersionState] = {}
        self._new_versions = (-1, 0)
        #: Payload bytes that the store holds by these decisions.
        self.stored_bytes = 0

    def load(self, signatures: list[StoredSignature], held_out: list[StoredHeldOut]) -> None:
        """Take up what the store holds, after a restart."""
        for row in signatures:
            state = self._versions.setdefault(row.key.owner, VersionState())
            state.last_seen = max(state.last_seen, row.last_seen)
            seen = Known(
                first_seen=row.first_seen,
                last_seen=row.last_seen,
                hits=row.hits,
                hours=row.hours,
                last_hour=int(row.last_seen // HOUR),
                # Not a shape, but what the store counts beyond its bound.
                shapes={name: count for name, count in row.shapes.items() if name != OTHER},
                sample_at=row.sample_at,
                sample_shapes=row.sample_shapes,
                sample_proven=row.sample_outcome == Outcome.PROVEN,
                sample_size=row.sample_size,
                evicted=row.evicted,
            )
            state.learn(row.key.digest, seen)
            if not row.evicted:
                state.enliven(row.key.digest)
            self.stored_bytes += row.sample_size
        for held in held_out:
            state = self._versions.setdefault(held.key.owner, VersionState())
            state.add(held.id, Held(held.key.digest, held.size, held.captured_at, held.draw, held.for_signature))
            self.stored_bytes += held.size
            known = state.signatures.get(held.key.digest)
            if held.for_signature and known is not None:
                known.held, known.held_at = held.id, held.captured_at
        for state in self._versions.values():
            state.full = state.reservoir_count >= self._held_requests
            # How many calls the reservoir stands for is not stored: these hits, taken as seen in their last hour.
            for known in state.signatures.values():
                state.calls[known.last_hour] = state.calls.get(known.last_hour, 0) + known.hits

    def wanted(self, family: str, model: str, digest: str, now: float) -> bool:
        """Whether the body of such a call may be stored when it turns out proven; asked when memory is scarce."""
        seen = False
        for owner, state in self._versions.items():
            if owner.family == family and owner.model == model:
                seen = True
                known = state.signatures.get(digest)
                if known is None or known.sample_at is None or not known.held:
                    return True
                if now - known.sample_at > self._refresh_after:
                    return True
        return not seen

    def identify(self, owner: ModelVersion, digest: str, level: str) -> RecordKey:
        """The record of a call with this wire signature and the suffix that its level gives it (capture.levels)."""
        state = self._versions.get(owner)
        if level and state is not None and digest + level not in state.signatures:
            level = level if state.classes.get(digest, 0) < MAX_CLASSES else ""
        return RecordKey(owner, digest + level)

    def observe(
        self,
        key: RecordKey,
        *,
        proven: bool,
        shapes: str,
        size: int | None,
        held_id: str,
        now: float,
        draw: float,
        again: bool = False,
        anew: bool = False,
    ) -> Decision:
        """One call that reached the model or may have; with ``again`` one that was told before, as unproven, and has
        succeeded now. ``size`` is the payload's bytes, None where the body is gone;
        ``held_id`` the id to use if it is held out; ``anew`` replaces a sample that is no better. The state changes as
        the decision says."""
        decision = Decision()
        state = self._version(key.owner, now, proven, decision)
        if state is None:
            decision.admitted = False
            return decision
        known = state.signatures.get(key.digest)
        if known is None:
            known = self._admit(key, state, now, decision)
            if known is None:
                return decision
        hour = int(now // HOUR)
        if hour != known.last_hour:
            known.last_hour = hour
            known.hours += 1
            decision.new_hour = True
        known.hits += not again
        known.last_seen = now
        if not again and (shapes in known.shapes or len(known.shapes) < MAX_SHAPES):
            known.shapes[shapes] = known.shapes.get(shapes, 0) + 1
        if proven:
            state.calls[hour] = state.calls.get(hour, 0) + 1
        # An evicted one is counted still; it comes back when it has outgrown the least of what is kept.
        if known.evicted and not self._readmit(key, state, known, decision):
            return decision
        if size is None:
            return decision
        if self._takes_sample(known, proven, shapes, now) or (anew and proven >= known.sample_proven):
            self.stored_bytes += size - known.sample_size
            decision.urgent = known.sample_at is None or proven > known.sample_proven
            known.sample_at, known.sample_shapes, known.sample_proven = now, shapes, proven
            known.sample_size = size
            decision.sample = True
        elif proven:
            self._hold(key, state, known, size, held_id, now, draw, decision)
        self._bound_bytes(decision)
        return decision

    # --- samples ---

    def _takes_sample(self, known: Known, proven: bool, shapes: str, now: float) -> bool:
        if known.sample_at is None:
            return True
        if known.sample_proven != proven:
            return proven
        if shapes == known.sample_shapes:
            return now - known.sample_at > self._refresh_after
        mine, theirs = known.shapes.get(shapes, 0), known.shapes.get(known.sample_shapes, 0)
        return mine >= SHAPE_LEAD * max(theirs, 1) and mine == max(known.shapes.values())

    # --- the held-out set ---

    def _hold(
        self, key: RecordKey, state: VersionState, known: Known, size: int, held_id: str, now: float, draw: float,
        decision: Decision,
    ) -> None:  # fmt: skip
        if size > self._held_bytes // 2:
            return
        for_signature = not known.held or now - known.held_at > self._refresh_after
        in_reservoir = draw < self._threshold(state, now)
        if not for_signature and not in_reservoir:
            return
        if for_signature:
            decision.urgent = not known.held
            if known.held:
                self._release(state, known.held, decision, for_signature=False)
            known.held, known.held_at = held_id, now
        state.add(held_id, Held(key.digest, size, now, draw if in_reservoir else None, for_signature))
        self.stored_bytes += size
        decision.hold = (draw if in_reservoir else None, for_signature)
        self._shrink(state, held_id, decision)

    def _threshold(self, state: VersionState, now: float) -> float:
        """Draws below it enter the reservoir."""
        if now - state.told_at <= TOLD_SECONDS:
            return state.told_cut
        # What this one has in the reservoir of all says nothing of its largest draw.
        margin = TOLD_MARGIN if state.told_at > 0 else 1.0
        if margin == 1.0 and state.full and (largest := state.largest()) is not None:
            return largest[0]
        state.cut_age += 1
        if state.cut is None or state.cut_age >= CUT_CALLS:
            state.cut_age = 0
            window = int((now - self._held_seconds) // HOUR)
            calls = sum(count for hour, count in state.calls.items() if hour >= window)
            state.cut = min(1.0, margin * self._held_requests / max(calls, self._held_requests))
        return state.cut

    def _shrink(self, state: VersionState, newest: str, decision: Decision) -> None:
        """Keep the reservoir within its count and its bytes: the largest draws leave, whatever their size."""
        state.full = state.full or state.reservoir_count >= self._held_requests
        while state.reservoir_count > self._held_requests or state.reservoir_bytes > self._held_bytes:
            largest = state.largest()
            if largest is None:
                return
            state.full = True
            leaving = largest[1]
            if leaving == newest:
                for_signature = state.held[leaving].for_signature
                decision.hold = (None, True) if for_signature else None
                state.leave_reservoir(leaving)
                if not for_signature:
                    self._forget_held(state, leaving)
            else:
                self._release(state, leaving, decision, in_reservoir=False)

    def _release(
        self,
        state: VersionState,
        held_id: str,
        decision: Decision,
        *,
        in_reservoir: bool = True,
        for_signature: bool = True,
    ) -> None:
        """Take one role from a held-out request; without any it is deleted."""
        held = state.held.get(held_id)
        if held is None:
            return
        if not in_reservoir:
            state.leave_reservoir(held_id)
        held.for_signature = held.for_signature and for_signature
        decision.released[held_id] = (held.draw, held.for_signature)
        if held.draw is None and not held.for_signature:
            self._forget_held(state, held_id)

    def _forget_held(self, state: VersionState, held_id: str) -> None:
        self.stored_bytes -= state.remove(held_id).size

    def expire(self, now: float) -> dict[str, tuple[float | None, bool]]:
        """Held-out requests older than their window, as ``Decision.released``. To be asked every few minutes."""
        decision = Decision()
        window = now - self._held_seconds
        for state in self._versions.values():
            for held_id in [name for name, held in state.held.items() if held.captured_at < window]:
                # Filled again at the rate of the window.
                state.full, state.cut = False, None
                self._release(state, held_id, decision, in_reservoir=False, for_signature=False)
            for hour in [hour for hour in state.calls if hour < window // HOUR]:
                del state.calls[hour]
        return decision.released

    def forget(self, before: float) -> None:
        """Signatures last seen before this time are gone from the store."""
        for owner, state in list(self._versions.items()):
            for digest in [name for name, known in state.signatures.items() if known.last_seen < before]:
                self._evict(owner, state, digest, Decision())
                for held_id in [name for name, held in state.held.items() if held.digest == digest]:
                    self._forget_held(state, held_id)
                state.unlearn(digest)
            if not state.signatures:
                del self._versions[owner]

    def not_stored(self, key: RecordKey, held_id: str | None = None) -> None:
        """A sample (or the held-out request ``held_id``) that was decided on was dropped: take another one."""
        state = self._versions.get(key.owner)
        if state is None:
            return
        if held_id is not None:
            if held_id in state.held:
                self._forget_held(state, held_id)
        elif (known := state.signatures.get(key.digest)) is not None:
            self.stored_bytes -= known.sample_size
            known.sample_at, known.sample_size = None, 0

    # --- bounds ---

    def _version(self, owner: ModelVersion, now: float, proven: bool, decision: Decision) -> VersionState | None:
        state = self._versions.get(owner)
        if state is None:
            if len(self._versions) >= MAX_MODEL_VERSIONS:
                hour = int(now // HOUR)
                count = self._new_versions[1] + 1 if self._new_versions[0] == hour else 1
                # Anyone can name a model that does not exist and hang up.
                if not proven or count > NEW_VERSIONS_PER_HOUR:
                    return None
                self._new_versions = (hour, count)
                oldest = min(self._versions, key=lambda name: self._versions[name].last_seen)
                gone = self._versions[oldest]
                for digest in [name for name, known in gone.signatures.items() if not known.evicted]:
                    self._evict(oldest, gone, digest, decision)
                for held_id in list(gone.held):
                    self._release(gone, held_id, decision, in_reservoir=False, for_signature=False)
                del self._versions[oldest]
            state = self._versions[owner] = VersionState()
        state.last_seen = now
        return state

    def _admit(self, key: RecordKey, state: VersionState, now: float, decision: Decision) -> Known | None:
        """A signature seen for the first time: its state, or None where it is turned away."""
        hour = int(now // HOUR)
        counted_hour, count = state.new_by_hour
        count = count + 1 if counted_hour == hour else 1
        if state.live >= self._max_signatures:
            if count > self._max_new_per_hour or len(state.signatures) >= (1 + TOMBSTONES) * self._max_signatures:
                # A flood of new signatures is an alarm, not a reason to throw out what was learned.
                decision.admitted = False
                return None
            self._evict_lowest(key.owner, state, decision)
        state.new_by_hour = (hour, count)
        decision.new = True
        known = Known(first_seen=now, last_seen=now)
        state.learn(key.digest, known)
        state.enliven(key.digest)
        return known

    def _readmit(self, key: RecordKey, state: VersionState, known: Known, decision: Decision) -> bool:
        if known.last_seen < known.barred_until:
            return False
        if state.live >= self._max_signatures:
            lowest = state.lowest()
            if lowest is not None and state.signatures[lowest].rank >= known.rank:
                return False
            self._evict_lowest(key.owner, state, decision)
        known.evicted = False
        state.enliven(key.digest)
        return True

    def _evict_lowest(self, owner: ModelVersion, state: VersionState, decision: Decision) -> None:
        lowest = state.lowest()
        if lowest is None:
            raise AssertionError("live signatures are counted and there is none")
        self._evict(owner, state, lowest, decision)

    def _evict(self, owner: ModelVersion, state: VersionState, digest: str, decision: Decision) -> None:
        known = state.signatures[digest]
        self.stored_bytes -= known.sample_size
        state.live -= not known.evicted
        known.evicted, known.sample_at, known.sample_size, known.sample_proven = True, None, 0, False
        known.shapes = {}
        # Not what is in the reservoir: verify must be able to see what an eviction costs.
        if known.held:
            held_id, known.held = known.held, ""
            self._release(state, held_id, decision, for_signature=False)
        decision.evicted.append(RecordKey(owner, digest))

    def _bound_bytes(self, decision: Decision) -> None:
        """Give up what is least useful while the store holds more than it may: the reservoir of the model version seen
        least recently, then the least useful signatures, then the reservoir of the last version."""
        while self.stored_bytes > self._max_bytes:
            newest = max(state.last_seen for state in self._versions.values())
            drawn = [state for state in self._versions.values() if state.reservoir_count]
            oldest = min(drawn, key=lambda state: state.last_seen, default=None)
            candidates = [
                (known.rank, owner, digest)
                for owner, state in self._versions.items()
                for digest, known in state.signatures.items()
                if known.sample_size or known.held
            ]
            if oldest is not None and (oldest.last_seen < newest or len(candidates) <= 1):
                largest = oldest.largest()
                if largest is None:
                    raise AssertionError("a reservoir that counts requests and has none")
                self._release(oldest, largest[1], decision, in_reservoir=False)
            elif len(candidates) > 1:
                _, owner, digest = min(candidates)
                self._evict(owner, self._versions[owner], digest, decision)
            else:
                return
