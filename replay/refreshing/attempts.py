"""Running the candidates of each record on the target version, round by round, until one runs or none is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from capture.export.base import Candidate, LeftOut, Record, Unfit
from capture.export.scrub import scrubbed_sample
from capture.export.scrub_rules import Rules
from capture.export.scrub_values import Unscrubbable
from capture.export.table import FORMATS
from capture.signature import REST_METHODS, SignatureDef
from capture.store.base import RecordKey, Sample, Store
from replay.refreshing.present import Present
from replay.trial import Request, Trial, Tried

_FORM = FORMATS["tfrecord"]
#: The level of a file of which nothing was run.
UNVERIFIED = "none"


def as_held(method: str) -> str:
    """The method of a request as the file holds it."""
    return REST_METHODS.get(method, method)


def untried(requests: list[Request]) -> Trial:
    """In place of a trial, where records are to be written without one."""
    return Trial(UNVERIFIED, "", [Tried("") for _ in requests])


@dataclass(slots=True)
class Kept:
    """A record that ran, as it ran; ``seconds`` is its first call's time. ``data`` are its bytes where it stood in the
    file and stays as it stood, None where it is written anew."""

    record: Record
    sample: Sample
    seconds: float
    data: bytes | None


class Attempts:
    """What ran, and what did not."""

    def __init__(
        self,
        source: Store,
        version: str,
        trial: Callable[[list[Request]], Trial],
        defs: Mapping[str, SignatureDef],
        rules: Rules | None,
        files: Mapping[RecordKey, Present] | None = None,
        *,
        as_they_stand: bool = True,
    ) -> None:
        """``rules``: run requests scrubbed by them; None: as they are stored. ``files`` are candidates that stand in
        the file; ``as_they_stand``: warmtap's own among them are by the same rules."""
        self._defs = defs
        self._rules = rules
        self._source = source
        self._version = version
        self._trial = trial
        self._files = files or {}
        self._as_they_stand = as_they_stand
        self._failed: list[tuple[int, Candidate, str]] = []
        self.level = ""
        self.tensorflow = ""
        #: By the record's place.
        self.kept: dict[int, Kept] = {}

    def run(self, records: list[Record]) -> None:
        """Try all of them. Raises TrialError. The model is loaded even where there is nothing to run on it."""
        waiting = {place: iter(record.candidates) for place, record in enumerate(records)}
        first = True
        while waiting or first:
            now: list[tuple[int, Candidate, Sample, bytes | None]] = []
            for place, candidates in list(waiting.items()):
                found = self._next(place, candidates)
                if found is None:
                    del waiting[place]
                else:
                    now.append((place, *found))
            if not now and not first:
                break
            first = False
            done = self._trial(
                [
                    Request(as_held(candidate.signature.method), sample.body, self._rules is not None)
                    for _, candidate, sample, _ in now
                ]
            )
            self.level, self.tensorflow = done.level, done.tensorflow
            for (place, candidate, sample, data), result in zip(now, done.results, strict=True):
                if result.error:
                    reason = f"does not run on version {self._version}: {result.error}"
                    self._failed.append((place, candidate, reason))
                else:
                    record = records[place].replaced(candidate)
                    record.batch = records[place].batch
                    self.kept[place] = Kept(record, sample, result.seconds, data)
                    del waiting[place]

    def _next(
        self, place: int, candidates: Iterator[Candidate]
    ) -> tuple[Candidate, Sample, bytes | None] | None:  # fmt: skip
        for candidate in candidates:
            stood = self._files.get(candidate.key)
            if stood is not None and (not stood.ours or self._as_they_stand):
                return candidate, _sample(stood), stood.data
            sample = _sample(stood) if stood is not None else self._source.sample(candidate.key)
            if sample is None:
                self._failed.append((place, candidate, "its request was evicted just now"))
                continue
            try:
                fitted = _FORM.fitted(candidate.signature, sample, self._defs)
                if self._rules is not None:
                    fitted = scrubbed_sample(candidate.key, as_held(candidate.signature.method), fitted, self._rules)
                return candidate, fitted, None
            except Unfit as error:
                self._failed.append((place, candidate, str(error)))
            except Unscrubbable as error:
                self._failed.append((place, candidate, f"cannot be scrubbed: {error}"))
        return None

    def left_out(self) -> list[LeftOut]:
        """Every candidate that failed, with its error."""
        out = []
        for place, candidate, reason in self._failed:
            if candidate.key in self._files:
                reason = f"stood in the file, and {reason}"
            if place in self.kept:
                reason += "; another request of the same executor is in the file"
            out.append(LeftOut(candidate.key, candidate.signature, candidate.hits, reason))
        return out


def _sample(stood: Present) -> Sample:
    return Sample(stood.body, None, {}, "", stood.shapes, "proven", 0.0)
