"""What a pass says: sentences for people, or a log line for each event. Never a payload."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from capture.commands.tables import printable
from capture.levels import short
from capture.logline import value
from replay.refreshing.job import Outcome, What

#: What nothing came of: said to people once, and not in a log that grows with every pass.
_QUIET = frozenset({What.PASSED, What.UNCHANGED, What.NOTHING})


def sentences(outcomes: Sequence[Outcome], *, named: bool) -> Iterator[str]:
    """For a run that ends. ``named``: of several models, each line says which."""
    for one in outcomes:
        name = f"{printable(one.model)} " if named else ""
        where = f"version {one.version}" if one.version else "service" if one.service else "model"
        failed = {What.FAILED: "FAILED: ", What.HELD: "HELD: ", What.PROMOTED: "promoted: "}.get(one.what, "")
        yield f"{name}{where}: {failed}{printable(one.text)}"
        for left in one.left_out:
            yield f"  left out {short(left.key.digest)} ({left.hits} hits): {printable(left.reason)}"
    if all(one.what is What.PASSED for one in outcomes):
        yield "nothing to do: no new version"


def log_line(at: float, event: str, **fields: object) -> str:
    """One event as key=value."""
    when = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return " ".join([f"time={when}", f"event={event}", *(f"{key}={value(text)}" for key, text in fields.items())])


class Log:
    """The lines of one pass after another: what says the same as in the pass before is not said again."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], tuple[What, str]] = {}

    def lines(self, outcomes: Sequence[Outcome]) -> Iterator[str]:
        """What is new."""
        for one in outcomes:
            key, said = (one.model, one.version), (one.what, one.text)
            before = self._said.get(key)
            self._said[key] = said
            if before == said or (one.what in _QUIET and before is None):
                continue
            yield log_line(
                one.at,
                one.what,
                model=one.model,
                version=one.version or "-",
                records=one.records,
                left_out=len(one.left_out),
                msg=one.text,
            )
