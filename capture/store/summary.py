"""What a store holds, in few numbers: for health, metrics and ``capture status``."""

from __future__ import annotations

from collections import Counter
from typing import Final

from capture.diagnosis import StoreFacts
from capture.store.base import StoreError, open_store

#: Reasons that are shown.
_MOST: Final = 5


def store_facts(url: str) -> StoreFacts:
    """Reads the store. Never raises StoreError: the error is part of the answer."""
    try:
        store = open_store(url)
        try:
            # Not the signatures themselves: a thousand sidecars of one store may be asked for their figures at a time.
            totals = store.totals()
            models: Counter[str] = Counter()
            for one in totals:
                models[f"{one.owner.family}/{one.owner.model}"] += one.signatures
            return StoreFacts(
                signatures=models.total(),
                models=dict(models),
                refusals=[(reason, count) for _, _, _, reason, count in store.refusals()[:_MOST]],
                ignored=store.ignored()[:_MOST],
                counters=store.counters(),
                payload_bytes=sum(one.payload_bytes for one in totals),
            )
        finally:
            store.close()
    except StoreError as error:
        return StoreFacts(error=str(error))
