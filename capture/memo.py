"""What was worked out before, within a bound of bytes: keys come from clients, who choose how long they are."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Memo(Generic[K, V]):
    """A dictionary of at most ``max_bytes``, as its user estimates them; full, it starts again. What would take more
    than an eighth is not kept: it must not push out the useful ones."""

    __slots__ = ("_known", "_max", "get", "held_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._known: dict[K, V] = {}
        #: What is known of a key, or None. The dictionary's own method: it is asked several times for each request.
        self.get: Callable[[K], V | None] = self._known.get
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    def put(self, key: K, value: V, cost: int) -> V:
        """Remember ``value``, which takes ``cost`` bytes with its key; returns it."""
        if cost <= self._max // 8:
            self.held_bytes += cost
            if self.held_bytes > self._max:
                self._known.clear()
                self.held_bytes = cost
            self._known[key] = value
        return value
