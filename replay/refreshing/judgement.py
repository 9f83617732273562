"""Before the warm-up file of a version that is served is replaced: does the new one help at least as well? Verify's own
question, asked of held-out production (:mod:`replay.verify`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from capture.export.tfrecord import WARMUP_PATH
from capture.store.base import Store
from replay.figures import total
from replay.refreshing.contents import Made
from replay.refreshing.draft import Draft
from replay.refreshing.present import FAMILY
from replay.verify import How, Report, WarmupFile, evidence_of, list_warmup, verify


@dataclass(frozen=True, slots=True)
class Judged:
    """What verify says of one file. ``verdict`` as verify's; ``builds`` are the graphs that held-out requests built
    behind it, None where they cannot be counted; ``broken``: the model would not load with it; ``reason`` is the first
    one where the verdict is ``failed``."""

    verdict: str
    builds: int | None
    broken: bool = False
    reason: str = ""


#: Judges the bytes of a warm-up file for a draft.
Judge = Callable[[Store, Draft, bytes], Judged]


def judge_file(source: Store, found: Draft, data: bytes) -> Judged:
    """Run verify at the best level that this machine can have, without its herd. Raises UserError."""
    file = list_warmup(found.directory / WARMUP_PATH, data, FAMILY, found.model)
    evidence = evidence_of(source, found.rows, FAMILY, found.model, file)
    how = How(herd=0, discreet=found.wanted.rules is not None)
    return _judged(verify(found.directory, FAMILY, file, evidence, model=found.model, how=how), file)


def _judged(report: Report, file: WarmupFile) -> Judged:
    warm, decision = report.passes.warm, report.decision
    builds = total(ran.builds for ran in warm.results)
    reason = decision.reasons[0] if decision.verdict == "failed" and decision.reasons else ""
    return Judged(decision.verdict, builds, bool(warm.load_error or file.unreadable), reason)


def replacing(source: Store, found: Draft, made: Made, standing: bytes, judge: Judge) -> tuple[bool, str]:
    """Whether the file that was made may take the place of ``standing``, and what to say of it. It may where verify
    does not fail it; and where it does, if not more is built behind it than behind the one that it replaces: that one
    may be older than a signature that no file can warm up."""
    new = judge(source, found, made.file)
    if new.verdict != "failed":
        return True, f"verify: {new.verdict}"
    if new.broken:
        return False, f"verify: failed: {new.reason}"
    old = judge(source, found, standing)
    if old.broken or not_worse(new, old):
        return True, f"verify: failed, as with the file that it replaces: {new.reason}"
    return False, f"verify: {new.builds} graphs are built behind it, {old.builds} behind the file that is there"


def not_worse(new: Judged, old: Judged) -> bool:
    """Not more builds; where they cannot be counted nothing speaks against it."""
    return new.builds is None or old.builds is None or new.builds <= old.builds
