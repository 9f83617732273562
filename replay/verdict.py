"""The verdict of a verification and its figures: pure functions of what was run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from capture.differences import nearest
from capture.export.tfrecord import UNWARMED
from capture.signature import WireSignature
from replay.calls import Ran
from replay.traffic import Evidence, Judged

#: ``proved``: every held-out request ran and built nothing, and every signature of production is judged, covered by a
#: record, or refused by the model. ``failed``: one built or did not run, or the file does not load. ``self-check``:
#: nothing was judged but the records themselves. ``ran``: all ran, builds could not be counted.
Verdict = Literal["proved", "failed", "self-check", "ran"]


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
    """The verdict and, in sentences, why it is not ``proved``; ``notes`` are what it does not speak of."""

    verdict: Verdict
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()


def decide(evidence: Evidence, warm: Pass, records: Mapping[str, WireSignature], *, unreadable: str = "") -> Decision:
    """Judge the warm pass. ``records`` are the signatures in the file, by which a failure is explained; ``unreadable``
    says why they could not all be listed."""
    if warm.load_error:
        return Decision("failed", (f"the server would not load this model: {warm.load_error}",))
    reasons, notes = [], []
    if unreadable:
        reasons.append(f"the server reads the file only in part, and does not say so: {unreadable}")
    for one, ran in zip(evidence.judged, warm.results, strict=True):
        if not ran.ok and not one.proven:
            # Production never saw it succeed either: no record can warm it up.
            notes.append(f"{one.signature}: not judged, it fails by itself: {ran.message}")
        elif not ran.ok:
            reasons.append(f"{one.signature}: did not run: {ran.message}")
        elif ran.builds:
            graphs = f"{ran.builds} graph{'s' if ran.builds > 1 else ''}"
            reasons.append(f"{one.signature}: built {graphs}; {explanation(one.signature, records)}")
    for signature, calls in evidence.missing:
        reasons.append(f"{signature}: {calls} calls in production, in no record, and no request of it is stored")
    if evidence.unreadable:
        reasons.append(f"{evidence.unreadable} held-out requests cannot be read as requests of this model")
    for signature, (why, count) in evidence.refused.items():
        notes.append(f"{signature}: not judged, this model refuses it ({why}); {count} held-out requests")
    # One line for each signature: the second request of it tells nothing new.
    return Decision(*_verdict(evidence, warm, tuple(dict.fromkeys(reasons))), notes=tuple(dict.fromkeys(notes)))


def _verdict(evidence: Evidence, warm: Pass, reasons: tuple[str, ...]) -> tuple[Verdict, tuple[str, ...]]:
    if reasons:
        return "failed", reasons
    held_out = [one for one in evidence.judged if one.held_out]
    if not held_out:
        refused = sum(count for _, count in evidence.refused.values())
        if refused:
            return "self-check", (f"none of the {refused} held-out requests is one that this model takes",)
        return "self-check", ("there is no held-out request to judge by: only the records themselves were run",)
    if all(one.byte_identical for one in held_out):
        return "self-check", ("every held-out request is byte-identical to a record",)
    if any(ran.builds is None for ran in warm.results):
        return "ran", ("graph builds cannot be counted without the C++ executor",)
    return "proved", ()


def explanation(signature: WireSignature, records: Mapping[str, WireSignature]) -> str:
    """Why a file did not help a request: what it cannot hold, or how the request differs from the nearest record."""
    if signature.family == "tfserving" and signature.method in UNWARMED:
        return UNWARMED[signature.method]
    if signature.digest in records:
        return "a record of the same signature is in the file: its names are not enough to find the executor"
    found = nearest(signature, records.values())
    if found is None:
        return "the file has no record"
    other, differences = found
    return f"nearest record {other.digest[:15]}: {'; '.join(differences)}"
