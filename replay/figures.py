"""What was measured, by executor key: pure functions of what was run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from replay.calls import Ran
from replay.traffic import Judged

#: A first call that takes more than this many times the steady latency, without a build, is told.
SLOW_FIRST: Final = 5.0
#: Below this a first call is slower for reasons that no user feels (caches, a sleeping core), seconds.
NOT_SLOW: Final = 0.005


@dataclass(frozen=True, slots=True)
class Herd:
    """``size`` equal requests sent at once to a session that has no graph for them: what was built and compiled (None
    where that cannot be counted), and the slowest one's wall time in seconds."""

    size: int
    builds: int | None
    compilations: int | None
    seconds: float


@dataclass(slots=True)
class Pass:
    """One replay of all judged requests, serial, in a fresh session; ``warmup_*`` is what came before it, ``repeats``
    further calls by group. ``load_error`` is the server's text if the warm-up file fails the load. ``others`` are the
    builds of the same replay in the other sessions of a session group."""

    results: list[Ran] = field(default_factory=list)
    repeats: dict[str, list[float]] = field(default_factory=dict)
    warmup_builds: int | None = 0
    warmup_seconds: float = 0.0
    load_error: str = ""
    others: list[int | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one executor key in one pass: builds and compilations (None where they cannot be counted), the first call and
    the median of the later ones in seconds (None where there was none)."""

    builds: int | None
    compilations: int | None
    first: float
    steady: float | None

    @property
    def slow(self) -> bool:
        """The first call was slow, and it was not TensorFlow that built a graph."""
        return (
            self.builds == 0
            and self.steady is not None
            and self.first > NOT_SLOW
            and self.first > SLOW_FIRST * self.steady
        )

    def summary(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "graph_builds": self.builds,
            "xla_compilations": self.compilations,
            "first_ms": milliseconds(self.first),
            "steady_ms": milliseconds(self.steady),
        }


def by_group(judged: Sequence[Judged]) -> dict[str, list[int]]:
    """The places of the requests that share an executor, by group."""
    places: dict[str, list[int]] = {}
    for place, one in enumerate(judged):
        places.setdefault(one.group, []).append(place)
    return places


def group_figures(judged: Sequence[Judged], done: Pass) -> dict[str, Figures]:
    """By group, in the order of the first requests; empty where nothing was run."""
    if not done.results:
        return {}
    found = {}
    for group, places in by_group(judged).items():
        ran = [done.results[place] for place in places]
        later = [one.seconds for one in ran[1:]] + done.repeats.get(group, [])
        found[group] = Figures(
            total(one.builds for one in ran),
            total(one.compilations for one in ran),
            ran[0].seconds,
            median(later) if later else None,
        )
    return found


def figures(judged: Sequence[Judged], done: Pass) -> dict[str, Any]:
    """``graph_builds`` and ``xla_compilations`` (None if unknown), ``first_ms_max``: the slowest first call of a group;
    ``steady_ms_p50``: the median of all later ones."""
    firsts: dict[str, float] = {}
    later: list[float] = [seconds for repeats in done.repeats.values() for seconds in repeats]
    for one, ran in zip(judged, done.results, strict=False):
        if one.group in firsts:
            later.append(ran.seconds)
        else:
            firsts[one.group] = ran.seconds
    return {
        "graph_builds": total(ran.builds for ran in done.results),
        "xla_compilations": total(ran.compilations for ran in done.results),
        "first_ms_max": milliseconds(max(firsts.values(), default=None)),
        "steady_ms_p50": milliseconds(median(later) if later else None),
    }


def executors(judged: Sequence[Judged], cold: Pass, herds: Mapping[str, Herd], warm: Pass) -> list[dict[str, Any]]:
    """Plain data of each executor key (of each class, where a level tells them apart): who has it, and its figures
    cold, in a herd, and warm; None where a pass did not come to it."""
    before, after = group_figures(judged, cold), group_figures(judged, warm)
    found = []
    for group, places in by_group(judged).items():
        one = judged[places[0]]
        herd = herds.get(group)
        found.append(
            {
                "signature": one.signature.digest,
                "line": str(one.signature),
                "executor_key": one.key,
                "class": one.level or None,
                "judged_by": len(places),
                "cold": before[group].summary() if group in before else None,
                "herd": None
                if herd is None
                else {
                    "callers": herd.size,
                    "graph_builds": herd.builds,
                    "xla_compilations": herd.compilations,
                    "slowest_ms": milliseconds(herd.seconds),
                },
                "warm": after[group].summary() if group in after else None,
            }
        )
    return found


def total(counts: Iterator[int | None]) -> int | None:
    """The sum, None where one of them is not known."""
    found = 0
    for count in counts:
        if count is None:
            return None
        found += count
    return found


def milliseconds(seconds: float | None) -> float | None:
    """Rounded to a microsecond."""
    return None if seconds is None else round(1000 * seconds, 3)
