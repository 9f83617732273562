"""The verdict of a verification and its figures: pure functions of what was run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from capture.signature import WireSignature, nearest
from replay.calls import Ran

#: ``proved``: every held-out request ran and built nothing. ``failed``: one built or did not run, or the file does not
#: load. ``self-check``: nothing was judged but the records themselves. ``ran``: all ran, builds could not be counted.
Verdict = Literal["proved", "failed", "self-check", "ran"]


@dataclass(frozen=True, slots=True)
class Judged:
    """A request that a file is judged by. ``group`` names what shares an executor on this model version."""

    signature: WireSignature
    group: str
    body: bytes
    byte_identical: bool = False


@dataclass(slots=True)
class Pass:
    """One replay of all judged requests, serial, in a fresh session; ``warmup_*`` is what came before it.
    ``load_error`` is the server's text if the warm-up file fails the load."""

    results: list[Ran] = field(default_factory=list)
    repeats: dict[str, list[float]] = field(default_factory=dict)
    warmup_builds: int | None = 0
    warmup_seconds: float = 0.0
    load_error: str = ""


def figures(judged: Sequence[Judged], done: Pass) -> dict[str, Any]:
    """``graph_builds`` (None if unknown), ``first_ms_max``: the slowest first call of a group; ``steady_ms_p50``: the
    median of all later ones."""
    firsts: dict[str, float] = {}
    later: list[float] = [seconds for repeats in done.repeats.values() for seconds in repeats]
    for one, ran in zip(judged, done.results, strict=False):
        if one.group in firsts:
            later.append(ran.seconds)
        else:
            firsts[one.group] = ran.seconds
    builds = [ran.builds for ran in done.results]
    return {
        "graph_builds": None if None in builds else sum(count or 0 for count in builds),
        "first_ms_max": _milliseconds(max(firsts.values(), default=None)),
        "steady_ms_p50": _milliseconds(median(later) if later else None),
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict and, in sentences, why it is not ``proved``."""

    verdict: Verdict
    reasons: tuple[str, ...]


def decide(
    judged: Sequence[Judged],
    warm: Pass,
    records: Mapping[str, WireSignature],
    explain: Callable[[WireSignature], str] | None = None,
) -> Decision:
    """Judge the warm pass. ``records`` are the signatures in the file; a failure is explained by the nearest one."""
    if warm.load_error:
        return Decision("failed", (f"the server would not load this model: {warm.load_error}",))
    reasons = []
    for one, ran in zip(judged, warm.results, strict=True):
        if not ran.ok:
            reasons.append(f"{one.signature}: did not run: {ran.message}")
        elif ran.builds:
            text = explain(one.signature) if explain is not None else explanation(one.signature, records)
            reasons.append(f"{one.signature}: built {ran.builds} graph{'s' if ran.builds > 1 else ''}; {text}")
    if reasons:
        # One line for each signature: the second request of it tells nothing new.
        return Decision("failed", tuple(dict.fromkeys(reasons)))
    if not judged:
        return Decision(
            "self-check", ("there is no held-out request to judge by: only the records themselves were run",)
        )
    if all(one.byte_identical for one in judged):
        return Decision("self-check", ("every held-out request is byte-identical to a record",))
    if any(ran.builds is None for ran in warm.results):
        return Decision("ran", ("graph builds cannot be counted without the C++ executor",))
    return Decision("proved", ())


def explanation(signature: WireSignature, records: Mapping[str, WireSignature]) -> str:
    """Why a file did not help a request: how it differs from the nearest record."""
    if signature.digest in records:
        return "a record of the same signature is in the file: its names are not enough to find the executor"
    found = nearest(signature, records.values())
    if found is None:
        return "the file has no record"
    other, differences = found
    return f"nearest record {other.digest[:15]}: {'; '.join(differences)}"
