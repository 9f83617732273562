"""Scrubbing at capture: a request loses its values before anything of it is kept. Pure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from capture.admission import Admission
from capture.admission_moves import wanted_later
from capture.export.scrub import scrub, scrubbed_path, scrubbed_sample
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


class Scrubber:
    """Says what is kept of requests. ``rules`` None: what was sent; otherwise that without its values, where admission
    may keep it at all. ``count`` and ``refuse`` count what cannot be scrubbed: the latter by family,
    model, outcome and reason."""

    def __init__(
        self,
        rules: Rules | None,
        admission: Admission,
        count: Callable[[str, int], None],
        refuse: Callable[[str, str, str, str], None],
    ) -> None:
        self._rules = rules
        self._admission = admission
        self._count = count
        self._refuse = refuse
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
    ) -> tuple[bytes | None, bytes | None, str]:
        """(body, its compressed form, path); no body where it is not to be kept. ``anew``: it is wanted as a sample
        whatever there is."""
        route = exchange.route
        if self._rules is None or route is None:
            return body, exchange.wire_body, exchange.path
        path = scrubbed_path(route, exchange.path)
        how = partial(wanted_later, self._admission, key, proven=proven, shapes=shapes, now=now, draw=draw)
        if body is None or not (anew or how()[0]):
            return None, None, path
        until, reason = self._failed.get(key, (0.0, ""))
        if now >= until:
            try:
                return scrub(route, body, self._rules, key.owner.model), None, path
            except Unscrubbable as error:
                reason = str(error)
            if len(self._failed) >= MAX_FAILED:
                self._failed.clear()
            self._failed[key] = (now + RETRY_SECONDS, reason)
        self._count("requests_unscrubbed", 1)
        self._refuse(key.owner.family, key.owner.model, UNSCRUBBED, reason)
        return None, None, path


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
