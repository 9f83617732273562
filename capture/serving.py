"""Which version of a model served a call that does not say it: decided from what the server's status said before and
after. Pure.

A request that names no version is served by the highest one that is loaded (tensorflow/serving
model_servers/server_core.cc, ServableRequestFromModelSpec: ServableRequest::Latest; core/basic_manager.cc,
ServingMap::Update), one that names a label by the version that the label is assigned to (server_core.cc,
GetModelVersionForLabel). The status (``GET /v1/models/M``) follows the map that serves by a moment, and what was
unloaded stays in it as END (core/servable_state_monitor.h). So a version is named only where two polls, one answered
before the call began and one asked after it ended, and all polls between them, say exactly the same of all versions,
none of which is on its way in or out. What a server does that no poll can show (a label set to another version and back
between two polls) is not seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from capture.store.base import UNKNOWN_VERSION

#: States of a version that neither comes nor goes (apis/get_model_status.proto: ModelVersionStatus.State).
_AVAILABLE: Final = "AVAILABLE"
_SETTLED: Final = frozenset({_AVAILABLE, "END"})
#: Stretches of time remembered of one target. Each but the last ended with a change or a failed poll.
MAX_SPANS: Final = 16


class Poll(NamedTuple):
    """One look at the status of a model. ``asked`` and ``answered`` are monotonic seconds: before the first question,
    after the last answer. ``states`` maps versions, numbers as text, to their state; None where the look failed.
    ``labels`` maps the labels that were asked for to versions."""

    asked: float
    answered: float
    states: Mapping[str, str] | None
    labels: Mapping[str, str] = {}


class Span(NamedTuple):
    """A stretch of time, in monotonic seconds, at whose ends and in which every poll said the same. ``version`` is the
    one that served, empty where none or no single one can be named."""

    since: float
    until: float
    version: str


class History:
    """What the polls said of one target: a model, or a label of it."""

    def __init__(self, label: str = "") -> None:
        self._label = label
        self._said: tuple[Mapping[str, str], str] | None = None
        self.spans: deque[Span] = deque(maxlen=MAX_SPANS)

    @property
    def ongoing(self) -> bool:
        """The next poll may make the last span longer."""
        return self._said is not None

    def add(self, poll: Poll) -> None:
        """The next poll, in the order of time. A failed one ends a span: a server that did not answer may have been
        another one in between."""
        if poll.states is None:
            self._said = None
            return
        said = (dict(poll.states), poll.labels.get(self._label, "") if self._label else "")
        if self._said == said:
            self.spans[-1] = self.spans[-1]._replace(until=poll.asked)
            return
        self._said = said
        # One poll proves nothing of the time around it: the span is empty until a second one says the same.
        self.spans.append(Span(poll.answered, poll.asked, _serving(*said, bool(self._label))))


def _serving(states: Mapping[str, str], labelled: str, by_label: bool) -> str:
    """The version that serves such requests; empty where it cannot be named."""
    if not _SETTLED.issuperset(states.values()):
        return ""
    available = [version for version, state in states.items() if state == _AVAILABLE]
    if by_label:
        return labelled if labelled in available else ""
    return max(available, key=int, default="")


def version_at(spans: Sequence[Span], ongoing: bool, began: float, ended: float) -> str | None:
    """The version that served a call of this time, ``unknown`` where that cannot be told, None while the next poll may
    tell it. ``began`` is not after the call's first byte, ``ended`` not before its last."""
    for span in spans:
        if span.since <= began and ended <= span.until:
            return span.version or UNKNOWN_VERSION
    if ongoing and spans and spans[-1].since <= began and spans[-1].version:
        return None
    return UNKNOWN_VERSION
