"""The verdict of a verification: pure functions of what was run, or of what could be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from capture.coverage import explanation
from capture.levels import SHORT_CLASS
from capture.signature import Misfit, SignatureDef, WireSignature, executor_key
from replay.figures import Figures, Pass, group_figures
from replay.traffic import Evidence, groups

#: ``fits``: nothing was run; the file's names fit the model and cover the judged requests. ``runs``: run behind the C
#: API, builds not counted. ``executor``: TensorFlow's own session, builds counted. ``server``: a server's process.
VerifyLevel = Literal["fits", "runs", "executor", "server"]
#: ``proved``: every held-out request ran and built nothing, and every signature of production is judged, covered by a
#: record, or refused by the model. ``failed``: one built or did not run, or the file does not load. ``self-check``:
#: nothing was judged but the records themselves. ``ran``: all ran, builds could not be counted. ``fits``: by their
#: names nothing would be built.
Verdict = Literal["proved", "failed", "self-check", "ran", "fits"]
#: The best verdict of each level.
BEST: Final[Mapping[str, Verdict]] = {"fits": "fits", "runs": "ran", "executor": "proved", "server": "proved"}


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict and, in sentences, why it is not ``proved``; ``notes`` are what it does not speak of, and what was
    slow all the same."""

    verdict: Verdict
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()


def decide(evidence: Evidence, warm: Pass, records: Mapping[str, WireSignature], *, unreadable: str = "") -> Decision:
    """Judge the warm pass. ``records`` are the signatures in the file, by which a failure is explained; ``unreadable``
    says why they could not all be listed."""
    if warm.load_error:
        return Decision("failed", (f"the server would not load this model: {warm.load_error}",))
    reasons, notes = [], []
    for one, ran in zip(evidence.judged, warm.results, strict=True):
        if not ran.ok and not one.proven:
            # Production never saw it succeed either: no record can warm it up.
            notes.append(f"{one.signature}: not judged, it fails by itself: {ran.message}")
        elif not ran.ok:
            reasons.append(f"{one.signature}: did not run: {ran.message}")
        elif ran.builds:
            graphs = f"{ran.builds} graph{'s' if ran.builds > 1 else ''}"
            reasons.append(f"{one.signature}: built {graphs}; {explanation(one.signature, records.values())}")
        elif ran.compilations and one.level:
            text = f"{one.signature}: XLA compiled {ran.compilations} times"
            reasons.append(f"{text}; no record is of its class {one.level[:SHORT_CLASS]}")
    for number, builds in enumerate(warm.others, start=2):
        if builds:
            reasons.append(
                f"session {number} of {len(warm.others) + 1} built {builds} graphs: the warm-up reached the first one"
                " only, and each session has executors of its own"
            )
    notes += _slow(evidence, warm)
    countable = all(ran.builds is not None for ran in warm.results)
    return _decision(evidence, reasons, notes, best="proved" if countable else "ran", unreadable=unreadable)


def decide_static(
    evidence: Evidence, records: Mapping[str, WireSignature], defs: Mapping[str, SignatureDef], *, unreadable: str = ""
) -> Decision:
    """Judge by names alone: each record must fit the SignatureDefs, and each judged request find its executor key among
    theirs."""
    reasons, notes = [], []
    for record in records.values():
        try:
            executor_key(record, defs)
        except Misfit as misfit:
            reasons.append(f"record {record.digest[:15]} {record}: this model refuses it: {misfit}")
    covered = groups(records.values(), defs)
    for one in evidence.judged:
        if one.key in covered:
            continue
        why = explanation(one.signature, records.values())
        if one.proven:
            reasons.append(f"{one.signature}: would build a graph; {why}")
        else:
            # A run would tell: it fails by itself, or it builds.
            notes.append(f"{one.signature}: not judged, production never saw it succeed: that must be run; {why}")
    if any(one.level for one in evidence.judged):
        notes.append("names do not tell whether a class of shapes or values is in the file: that must be run")
    return _decision(evidence, reasons, notes, best="fits", unreadable=unreadable)


def _decision(
    evidence: Evidence, reasons: list[str], notes: list[str], *, best: Verdict, unreadable: str
) -> Decision:  # fmt: skip
    """What is true however the requests were judged is added; one line for each signature, as the second request of it
    tells nothing new."""
    if unreadable:
        reasons.insert(0, f"the server reads the file only in part, and does not say so: {unreadable}")
    for signature, calls in evidence.missing:
        reasons.append(f"{signature}: {calls} calls in production, in no record, and no request of it is stored")
    if evidence.unreadable:
        reasons.append(f"{evidence.unreadable} held-out requests cannot be read as requests of this model")
    for signature, (why, count) in evidence.refused.items():
        notes.append(f"{signature}: not judged, this model refuses it ({why}); {count} held-out requests")
    told = tuple(dict.fromkeys(notes))
    if reasons:
        return Decision("failed", tuple(dict.fromkeys(reasons)), told)
    held_out = [one for one in evidence.judged if one.held_out]
    if not held_out:
        refused = sum(count for _, count in evidence.refused.values())
        why = "there is no held-out request to judge by: only the records themselves were run"
        if refused:
            why = f"none of the {refused} held-out requests is one that this model takes"
        return Decision("self-check", (why,), told)
    if all(one.byte_identical for one in held_out):
        return Decision("self-check", ("every held-out request is byte-identical to a record",), told)
    if best == "ran":
        return Decision("ran", ("graph builds cannot be counted here",), told)
    return Decision(best, (), told)


def _slow(evidence: Evidence, warm: Pass) -> Iterable[str]:
    """What the warm pass waited for though no graph was built."""
    lines = {one.group: one.signature for one in reversed(evidence.judged)}
    for group, found in group_figures(evidence.judged, warm).items():
        if found.slow:
            yield f"{lines[group]}: {_times(found)} at 0 builds; {_cause(found)}"
        elif found.compilations:
            yield f"{lines[group]}: {_cause(found)}"


def _times(found: Figures) -> str:
    assert found.steady is not None
    return f"first call {1000 * found.first:.1f} ms, steady {1000 * found.steady:.1f} ms"


def _cause(found: Figures) -> str:
    if found.compilations:
        return f"XLA compiled {found.compilations} times: for shapes or constants that no record has"
    return "not a graph: an allocation, a shape that a kernel met first, or a busy machine"
