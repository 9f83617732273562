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
            rows = store.signatures()
            models = Counter(f"{row.key.owner.family}/{row.key.owner.model}" for row in rows)
            return StoreFacts(
                signatures=len(rows),
                models=dict(models),
                refusals=[(reason, count) for _, _, _, reason, count in store.refusals()[:_MOST]],
                ignored=store.ignored()[:_MOST],
                counters=store.counters(),
                payload_bytes=sum(row.sample_size for row in rows),
            )
        finally:
            store.close()
    except StoreError as error:
        return StoreFacts(error=str(error))
