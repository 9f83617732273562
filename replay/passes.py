"""Running what production sent, one request at a time and many at once, wherever requests can be run."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from replay.calls import Caller, Counts, Ran, counted, counts
from replay.executor.api import Executor
from replay.figures import Herd, Pass
from replay.traffic import Judged

#: A group that was judged by one request is run this many times more, to know its steady latency.
REPEATS = 2


class Target(Protocol):
    """A freshly loaded model that answers requests. Thread-safe."""

    def call(self, one: Judged) -> str:
        """Run one request; "" on success, otherwise the server's error on one line."""

    def counts(self) -> Counts:
        """Of the process that runs them, so far."""


class ExecutorTarget:
    """A session of TensorFlow's own."""

    def __init__(self, executor: Executor, caller: Caller) -> None:
        self._executor = executor
        self._caller = caller

    def call(self, one: Judged) -> str:
        return self._caller.call(one.body, one.signature.method)

    def counts(self) -> Counts:
        return counts(self._executor)


def serial(target: Target, judged: Sequence[Judged]) -> Pass:
    """One request at a time, so that each build belongs to one of them."""
    done = Pass()
    seen = Counter(one.group for one in judged)
    for one in judged:
        done.results.append(_counted(target, one))
    for one in judged:
        if seen[one.group] == 1:
            done.repeats[one.group] = [_counted(target, one).seconds for _ in range(REPEATS)]
    return done


def _counted(target: Target, one: Judged) -> Ran:
    return counted(lambda: target.call(one), target.counts)


def herd(target: Target, judged: Sequence[Judged], size: int) -> dict[str, Herd]:
    """By group: its first request sent ``size`` times at once, as clients do that all wait for the same new graph.
    TensorFlow does not hold its lock while it builds, so several build the same one (direct_session.cc,
    GetOrCreateExecutors)."""
    found: dict[str, Herd] = {}
    for one in judged:
        if one.group in found:
            continue
        start = threading.Barrier(size)
        before = target.counts()
        with ThreadPoolExecutor(size) as callers:
            running = [callers.submit(_timed, target, one, start) for _ in range(size)]
        slowest = max(run.result() for run in running)
        found[one.group] = Herd(size, *target.counts().since(before), slowest)
    return found


def _timed(target: Target, one: Judged, start: threading.Barrier) -> float:
    start.wait()
    begun = time.perf_counter()
    target.call(one)
    return time.perf_counter() - begun
