"""Calls whose version is not known yet: what they wait for, and where they go once it is. Pure.

A call that tells no version is stored under ``unknown`` at once, as everything is whose version nobody tells: a poll
that fails and a worker that is killed cost the version, never the call. What is kept here beside it is small: how often
which signature was seen in which half second, with the request's place in the store if it was taken as a sample or held
out. When the polls have decided (:mod:`capture.serving`), the counts and those requests move to their version in one
transaction; what cannot be decided stays where it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from capture.admission import Admission
from capture.admission_moves import move
from capture.serving import version_at
from capture.signature import Call, WireSignature
from capture.status_messages import Answers, Ask, Asks, Metadata, Said
from capture.store.base import (
    MAX_SHAPES,
    UNKNOWN_VERSION,
    Batch,
    ModelVersion,
    Move,
    RecordKey,
    SignatureDelta,
    StoredMetadata,
    bump,
    count_sender,
)

#: Models that are asked for and labels of each; the supervisor has the same bounds.
MAX_MODELS: Final = 64
MAX_LABELS: Final = 8
#: Ids of metadata remembered as stored: more than the supervisor keeps of it.
MAX_TAKEN: Final = 512
#: Characters of a name that is asked for.
MAX_NAME_CHARS: Final = 200
#: Stretches of calls that wait at a time; what is above stays unknown.
MAX_WAITING: Final = 4096
#: Seconds that a stretch waits at most.
MAX_WAIT: Final = 600.0
#: Calls are put together by the half second, rounded to both sides.
GRAIN: Final = 0.5
#: The tap's clock is that of the first byte of a batch: so much later than it says may a byte have passed, seconds.
TAP_DELAY: Final = 1.0
#: Requests of one stretch that may be held out.
MAX_HELD: Final = 64


#: Server families that have such a status.
STATUS_FAMILIES: Final = frozenset({"tfserving"})


class Target(NamedTuple):
    """Whose version is wanted: the model server's status address, a model, a label or the empty text."""

    status: str
    model: str
    label: str


@dataclass(slots=True)
class Stretch:
    """Calls of one signature to one target in one stretch of time, stored under ``key``. ``sampled_at`` is when one of
    them became the sample, ``held`` are ids of those that are held out."""

    key: RecordKey
    signature: WireSignature
    target: Target
    began: float
    ended: float
    first_seen: float = 0.0
    last_seen: float = 0.0
    proven: int = 0
    unproven: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    senders: Counter[str] = field(default_factory=Counter)
    blocks: Counter[tuple[int, str]] = field(default_factory=Counter)
    sampled_at: float | None = None
    held: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """How many."""
        return self.proven + self.unproven

    def add(self, proven: bool, calls: int, shapes: str, sender: str, now: float) -> None:
        """Some more of them."""
        if not self.calls:
            self.first_seen = now
        self.last_seen = now
        self.proven += proven * calls
        self.unproven += (not proven) * calls
        bump(self.shapes, shapes, MAX_SHAPES, calls)
        count_sender(self.senders, self.blocks, sender, now, calls)


class Attribution:
    """What one worker knows of versions, and what waits for more. Times are monotonic seconds."""

    def __init__(self, count: Callable[[str, int], None]) -> None:
        """``count`` adds to a counter."""
        self.count = count
        self._asks: dict[tuple[str, str], list[str]] = {}
        self._taken: dict[str, None] = {}
        self._said: dict[Target, Said] = {}
        self._waiting: dict[tuple[RecordKey, Target, int, int], Stretch] = {}
        #: By the signature's place, the stretch that holds the request which is its sample now.
        self._sampled: dict[RecordKey, Stretch] = {}
        #: There is something new for the supervisor.
        self.asks_changed = False
        self._metadata: list[Metadata] = []

    # --- the board ---

    def begin(self, asks: Asks | None) -> None:
        """Go on with what the worker before has asked for."""
        for ask in () if asks is None else asks.models[:MAX_MODELS]:
            self._asks[ask.status, ask.model] = list(ask.labels)
        self.asks_changed = True

    def learn(self, answers: Answers) -> None:
        """What the supervisor knows now."""
        self._said = {Target(one.status, one.model, one.label): one for one in answers.said}
        for one in answers.metadata:
            if one.id not in self._taken:
                self._taken[one.id] = None
                self._metadata.append(one)
                self.asks_changed = True
        for old in list(self._taken)[:-MAX_TAKEN]:
            del self._taken[old]

    def asks(self) -> Asks:
        """For the supervisor."""
        self.asks_changed = False
        models = tuple(Ask(status, model, tuple(labels)) for (status, model), labels in self._asks.items())
        return Asks(models, tuple(self._taken))

    def call(
        self, key: RecordKey, call: Call, status: str, proven: bool, calls: int, began: float, ended: float
    ) -> tuple[Stretch | None, RecordKey | None]:
        """A call that is to be stored under ``key``, in this time by the tap's clock. (where it waits for its version,
        where it probably goes): None where the version is known, or will never be."""
        unknown = key.owner.version == UNKNOWN_VERSION
        target = Target(status, key.owner.model, call.version_label if unknown else "")
        if proven:
            self._seen(target)
        if not unknown:
            return None, None
        stretch = self._wait(key, call.signature, target, began, ended)
        if stretch is None:
            self.count("versions_unknown", calls)
            return None, None
        likely = self._probable(target)
        return stretch, key._replace(owner=key.owner._replace(version=likely)) if likely else None

    def _seen(self, target: Target) -> None:
        """Ask for it. The model seen longest ago makes room for a new one."""
        key = target.status, target.model
        labels = self._asks.get(key)
        if labels is None:
            if not _may_ask(target.model):
                return
            while len(self._asks) >= MAX_MODELS:
                del self._asks[next(iter(self._asks))]
            labels = self._asks[key] = []
            self.asks_changed = True
        elif next(reversed(self._asks)) != key:
            self._asks[key] = self._asks.pop(key)
        label = target.label
        if label and label not in labels and len(labels) < MAX_LABELS and _may_ask(label):
            labels.append(label)
            self.asks_changed = True

    def take_metadata(self) -> list[Metadata]:
        """SignatureDefs that came and are not stored."""
        taken, self._metadata = self._metadata, []
        return taken

    # --- what waits ---

    @property
    def waits(self) -> bool:
        """Something may be moved or stored once the supervisor has said more."""
        return bool(self._waiting or self._metadata)

    def _probable(self, target: Target) -> str:
        """The version that serves this target if nothing has changed since the last poll; empty if none is known."""
        said = self._said.get(target)
        return said.spans[-1].version if said is not None and said.ongoing and said.spans else ""

    def sample_waits(self, key: RecordKey) -> bool:
        """The sample under ``key`` may go to a version yet: another one in its place would only have to wait anew."""
        return key in self._sampled

    def keep(self, stretch: Stretch, sampled_at: float | None, held: str) -> None:
        """One of its calls became the sample, or is held out under this id."""
        if sampled_at is not None:
            stretch.sampled_at = sampled_at
            self._sampled[stretch.key] = stretch
        if held and len(stretch.held) < MAX_HELD:
            stretch.held.append(held)

    def _wait(
        self, key: RecordKey, signature: WireSignature, target: Target, began: float, ended: float
    ) -> Stretch | None:
        """Where to add a call of this time; None where it stays unknown."""
        first, last = math.floor(began / GRAIN), math.ceil((ended + TAP_DELAY) / GRAIN)
        place = key, target, first, last
        stretch = self._waiting.get(place)
        if stretch is None:
            if len(self._waiting) >= MAX_WAITING or self._decided(target, first * GRAIN, last * GRAIN):
                return None
            stretch = Stretch(key, signature, target, first * GRAIN, last * GRAIN)
            self._waiting[place] = stretch
        return stretch

    def _decided(self, target: Target, began: float, ended: float) -> bool:
        """Nothing that is to come can tell its version."""
        said = self._said.get(target)
        return said is None or version_at(said.spans, said.ongoing, began, ended) == UNKNOWN_VERSION

    def settle(self, now: float) -> Iterator[tuple[Stretch, str]]:
        """Take out what is decided by now: each stretch with its version. What is not to be known is counted."""
        for place, stretch in list(self._waiting.items()):
            said = self._said.get(stretch.target)
            version = UNKNOWN_VERSION
            if said is not None:
                found = version_at(said.spans, said.ongoing, stretch.began, stretch.ended)
                if found is None and now - stretch.ended <= MAX_WAIT:
                    continue
                version = found or UNKNOWN_VERSION
            del self._waiting[place]
            if self._sampled.get(stretch.key) is stretch:
                del self._sampled[stretch.key]
            if not stretch.calls:
                continue
            if version == UNKNOWN_VERSION:
                self.count("versions_unknown", stretch.calls)
            else:
                yield stretch, version


def _may_ask(name: str) -> bool:
    """Whether a name from traffic is one that a model server could know."""
    return len(name) <= MAX_NAME_CHARS and name.isprintable()


def settle(attribution: Attribution, admission: Admission, batch: Batch, now: float) -> bool:
    """Put what is known by now into ``batch``, which is still empty: whatever it moves is in batches before. ``now`` is
    monotonic. Whether there was anything."""
    found = False
    for stretch, version in attribution.settle(now):
        delta = SignatureDelta(
            stretch.signature, stretch.first_seen, stretch.last_seen, stretch.proven, stretch.unproven
        )
        delta.shapes, delta.senders, delta.blocks = stretch.shapes, stretch.senders, stretch.blocks
        target = stretch.key._replace(owner=stretch.key.owner._replace(version=version))
        moved = move(admission, stretch.key, target, delta, sampled_at=stretch.sampled_at, held=stretch.held)
        decision = moved.decision
        if decision.admitted:
            delta.hours = int(decision.new_hour)
            evicted = tuple(decision.evicted)
            batch.moves.append(Move(stretch.key, target, delta, moved.sample, moved.held, evicted, decision.released))
        else:
            batch.evicted.update(decision.evicted)
            batch.released.update(decision.released)
        attribution.count("versions_attributed" if decision.admitted else "versions_unknown", stretch.calls)
        found = True
    for one in attribution.take_metadata():
        owner = ModelVersion("tfserving", one.model, one.version)
        batch.metadata[owner] = StoredMetadata(owner, one.fetched_at, one.body)
        attribution.count("metadata_stored", 1)
        found = True
    return found
