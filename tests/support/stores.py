"""Batches and filled stores for tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from capture.signature import WireSignature, wire_signature
from capture.store.base import Batch, HeldOut, ModelVersion, RecordKey, Sample, SignatureDelta, Store, open_store
from tests.support.calls import eas, predict

NOW = 1_700_000_000.0


def signature(
    outputs: Sequence[str] = (), *, family: str = "tfserving", model: str = "m", inputs: Sequence[str] = ("x",)
) -> WireSignature:
    return wire_signature(family, model, "Predict" if family == "tfserving" else "predict", "", inputs, outputs)


def key_of(one: WireSignature, version: str = "1") -> RecordKey:
    return RecordKey(ModelVersion(one.family, one.model, version), one.digest)


def body_of(one: WireSignature) -> bytes:
    """A request that has this signature."""
    if one.family == "eas":
        return eas({name: [1.0] for name in one.inputs}, signature=one.signature_name, outputs=one.outputs or ())
    return predict(
        one.inputs, model=one.model, signature=one.signature_name, outputs=one.outputs or (), version=3, fill=b"abcd"
    )


def sample(body: bytes, *, outcome: str = "proven", at: float = NOW, wire_body: bytes | None = None) -> Sample:
    return Sample(body, wire_body, {"content-type": "x"}, "/path", "x:float[1]", outcome, at)


def add(
    batch: Batch,
    one: WireSignature,
    *,
    version: str = "1",
    proven: int = 1,
    unproven: int = 0,
    stored: bool = True,
    body: bytes | None = None,
    at: float = NOW,
) -> RecordKey:
    """Put a signature with its sample into a batch."""
    key = key_of(one, version)
    batch.seen[key] = SignatureDelta(
        one, at, at, proven, unproven, 1, Counter({"x:float[1]": proven + unproven}), Counter({"curl 10.0.0.0/24": 1})
    )
    if stored:
        kept = body_of(one) if body is None else body
        batch.samples[key] = sample(kept, outcome="proven" if proven else "unproven", at=at)
    return key


def held_out(batch: Batch, key: RecordKey, held_id: str, body: bytes, draw: float | None = 0.5) -> None:
    """Put a held-out request into a batch."""
    batch.held_out[held_id] = (key, HeldOut(held_id, sample(body), draw, True))


def filled(path: Path, batch: Batch) -> Store:
    """A store at ``path`` with this batch."""
    store = open_store(str(path), create=True)
    store.apply(batch)
    return store
