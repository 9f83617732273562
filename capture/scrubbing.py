"""Scrubbing at capture: a request loses its values before anything of it is kept. Pure."""

from __future__ import annotations

from functools import partial
from typing import Final, NamedTuple

from capture.admission import Admission
from capture.admission_moves import wanted_later
from capture.export.scrub import scrub, scrubbed_headers, scrubbed_path, scrubbed_sample
from capture.export.scrub_rules import Rules
from capture.export.scrub_values import Unscrubbable
from capture.open_exchange import Exchange
from capture.store.base import RecordKey, Sample, Store

#: Seconds for which requests of a signature that could not be scrubbed are not tried again: trying costs more than all
#: else that is done with a request.
RETRY_SECONDS: Final = 1.0
#: Signatures of which that is remembered.
MAX_FAILED: Final = 1000
#: As the outcome beside refusals; those of the server have others.
UNSCRUBBED: Final = "unscrubbed"


class Kept(NamedTuple):
    """What is kept of a request: no body where it is not to be. ``unscrubbed`` says why it could not be, "" if it
    could."""

    body: bytes | None
    wire_body: bytes | None
    headers: dict[str, str]
    path: str
    unscrubbed: str = ""


class Scrubber:
    """Says what is kept of requests. ``rules`` None: what was sent; otherwise that without its values, where admission
    may keep it at all."""

    def __init__(self, rules: Rules | None, admission: Admission) -> None:
        self._rules = rules
        self._admission = admission
        self._failed: dict[RecordKey, tuple[float, str]] = {}

    def kept(
        self,
        exchange: Exchange,
        body: bytes | None,
        key: RecordKey,
        proven: bool,
        shapes: str,
        anew: bool,
        now: float,
        draw: float,
    ) -> Kept:
        """``anew``: it is wanted as a sample whatever there is."""
        route = exchange.route
        if self._rules is None or route is None:
            return Kept(body, exchange.wire_body, exchange.headers, exchange.path)
        rest = None, scrubbed_headers(route, exchange.headers), scrubbed_path(route, exchange.path)
        how = partial(wanted_later, self._admission, key, proven=proven, shapes=shapes, now=now, draw=draw)
        if body is None or not (anew or how()[0]):
            return Kept(None, *rest)
        until, reason = self._failed.get(key, (0.0, ""))
        if now >= until:
            try:
                return Kept(scrub(route, body, self._rules, key.owner.model), *rest)
            except Unscrubbable as error:
                reason = str(error)
            if len(self._failed) >= MAX_FAILED:
                self._failed.clear()
            self._failed[key] = (now + RETRY_SECONDS, reason)
        return Kept(None, *rest, reason)


def first_unscrubbed(store: Store, rules: Rules) -> str:
    """The digest of a stored request that these rules would change, that was stored before they held; "" for none."""
    for row in store.signatures():
        sample = None if row.sample_at is None else store.sample(row.key)
        if sample is not None and not _is_scrubbed(row.key, row.signature.method, sample, rules):
            return row.key.digest
    methods = {row.key: row.signature.method for row in store.signatures()}
    for key, held in store.held_out():
        if not _is_scrubbed(key, methods.get(key, ""), held.sample, rules):
            return key.digest
    return ""


def _is_scrubbed(key: RecordKey, method: str, sample: Sample, rules: Rules) -> bool:
    try:
        done = scrubbed_sample(key, method, sample, rules)
    except Unscrubbable:
        return False
    return (done.body, done.wire_body, done.path) == (sample.body, sample.wire_body, sample.path)
