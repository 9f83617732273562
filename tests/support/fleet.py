"""Sidecars of a fleet without their processes: the worker's decisions over a real store, calls handed in."""

from __future__ import annotations

import random
from collections import Counter

from capture.admission import Admission
from capture.admission_told import learn
from capture.signature import WireSignature
from capture.store.base import Batch, Bounds, HeldOut, RecordKey, Sample, SignatureDelta, Store, Told, count_sender
from tests.support.stores import NOW, body_of, key_of


def bounds(
    *,
    signatures: int = 2000,
    new_per_hour: int = 500,
    store_bytes: int = 1 << 30,
    requests: int = 256,
    held_bytes: int = 64 << 20,
    seconds: float = 7 * 86400.0,
    refresh: float = 86400.0,
) -> Bounds:
    """Bounds as their defaults, but for what is given."""
    return Bounds(signatures, new_per_hour, store_bytes, requests, held_bytes, seconds, refresh)


class Sidecar:
    """One of a fleet. ``now`` is its clock; ``told`` what the store said of the last batch."""

    def __init__(self, name: str, store: Store, limits: Bounds, seed: int = 0) -> None:
        self.name = name
        self.store = store
        self.bounds = limits
        self.now = NOW
        self.told = Told()
        self._random = random.Random(f"{name} {seed}")
        self._held = 0
        self.admission = Admission(
            signatures_per_version=limits.signatures_per_version,
            new_signatures_per_hour=limits.new_signatures_per_hour,
            store_bytes=limits.store_bytes,
            held_out_requests=limits.held_out_requests,
            held_out_bytes=limits.held_out_bytes,
            held_out_seconds=limits.held_out_seconds,
            refresh_after=limits.refresh_after,
        )
        self.batch = Batch(name)
        #: As the pipeline's: the batch holds a request of which nothing is stored.
        self.urgent = False

    def call(
        self,
        one: WireSignature,
        *,
        version: str = "1",
        proven: bool = True,
        shapes: str = "x:float[1]",
        body: bytes | None = None,
        draw: float | None = None,
        client: str = "",
        sender: str = "",
    ) -> RecordKey:
        """A call of ``client`` passes; it is counted, and its request kept where admission says so."""
        key = key_of(one, version)
        kept = body_of(one) if body is None else body
        self._held += 1
        held_id = f"{self.name}-{self._held}"
        drawn = self._random.random() if draw is None else draw
        decision = self.admission.observe(
            key, proven=proven, shapes=shapes, size=len(kept), held_id=held_id, now=self.now, draw=drawn
        )
        if not decision.admitted:
            return key
        delta = self.batch.seen.setdefault(key, SignatureDelta(one, self.now, self.now))
        delta.last_seen = self.now
        delta.hours += decision.new_hour
        delta.proven += proven
        delta.unproven += not proven
        delta.shapes[shapes] += 1
        count_sender(delta.senders, delta.blocks, sender or f"{client or self.name} -", self.now, 1)
        self.urgent = self.urgent or decision.urgent
        sample = Sample(kept, None, {}, "/", shapes, "proven" if proven else "unproven", self.now)
        if decision.sample:
            self.batch.samples[key] = sample
        elif decision.hold is not None:
            self.batch.held_out[held_id] = (key, HeldOut(held_id, sample, *decision.hold))
        self.batch.evicted.update(decision.evicted)
        for gone in decision.evicted:
            self.batch.samples.pop(gone, None)
        for gone_id, roles in decision.released.items():
            pending = self.batch.held_out.get(gone_id)
            if pending is None:
                self.batch.released[gone_id] = roles
            elif roles == (None, False):
                del self.batch.held_out[gone_id]
            else:
                pending[1].draw, pending[1].for_signature = roles
        return key

    def flush(self) -> Told:
        """Write what has come together."""
        self.admission.expire(self.now)
        batch, self.batch, self.urgent = self.batch, Batch(self.name), False
        batch.updated_at, batch.bounds = self.now, self.bounds
        self.told = self.store.apply(batch) or Told()
        learn(self.admission, self.told, self.now)
        return self.told


def hits(store: Store) -> Counter[str]:
    """Calls by the first output of their signature."""
    found: Counter[str] = Counter()
    for row in store.signatures():
        found[(row.signature.outputs or ("*",))[0]] += row.hits
    return found
