"""Why a store is empty, or not as full as production: plain words from counters and the store. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from capture.wire.detect import HTTP2_SERVER
from capture.wire.http2_layer import HTTP1_ANSWER

Severity = Literal["ok", "note", "wrong"]
#: A share of connections or requests that counts as "nearly all".
_NEARLY_ALL: Final = 0.9
#: Seconds that a write to the store may take.
_LATE_SECONDS: Final = 1.0


#: What is behind connections that cannot be read, by the reason that the store has for them.
_MISUNDERSTANDINGS: Final = {
    f"flow: {HTTP1_ANSWER}": "clients speak HTTP/2 (gRPC) and the model server answers in HTTP/1: is"
    " listeners[].upstream its gRPC port? Behind listeners[].tls clients choose HTTP/2 where alpn has h2: give a REST"
    " port alpn [http/1.1]",
    f"flow: {HTTP2_SERVER}": "clients speak HTTP/1 and the model server HTTP/2: is listeners[].upstream its REST port?",
}


class ListenerFacts(msgspec.Struct, frozen=True):
    """One listener, as :class:`proxy.sidecar.ListenerState` shows it."""

    address: str
    upstream: str
    tls: bool = False
    state: str = "accepting"


class StoreFacts(msgspec.Struct, frozen=True):
    """What is in the store. ``error`` says why it cannot be read; the rest is then empty. ``models``: signatures by
    model; ``refusals`` and ``ignored``: (what, count), most first; ``counters`` are summed over all runs."""

    error: str = ""
    signatures: int = 0
    models: dict[str, int] = {}
    refusals: list[tuple[str, int]] = []
    ignored: list[tuple[str, int]] = []
    counters: dict[str, int] = {}
    payload_bytes: int = 0


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known. Without a running sidecar: ``counters`` are the store's, no ``workers``, no ``listeners``."""

    counters: Mapping[str, int]
    store: StoreFacts
    listeners: Sequence[ListenerFacts] = ()
    #: The state of each pair's worker: see :class:`proxy.sidecar.PairState`.
    workers: Sequence[str] = ()
    paused: bool = False
    draining: bool = False


class Finding(msgspec.Struct, frozen=True):
    """One sentence, and what it means for the capture."""

    severity: Severity
    text: str


def diagnose(facts: Facts) -> list[Finding]:
    """What is wrong first, what is notable next; ``ok`` alone when the capture runs and nothing is missing."""
    count = _Count(facts.counters)
    found = [*_processes(facts), *_connections(facts, count), *_requests(facts, count), *_losses(count)]
    found.sort(key=lambda finding: finding.severity != "wrong")
    stored = f"{facts.store.signatures} signatures of {len(facts.store.models)} models are stored"
    if not any(finding.severity == "wrong" for finding in found) and facts.store.signatures:
        return [Finding("ok", stored), *found]
    return found or [Finding("wrong", f"{stored}; nothing has been observed yet")]


class _Count:
    def __init__(self, counters: Mapping[str, int]) -> None:
        self._counters = counters

    def __getitem__(self, name: str) -> int:
        return self._counters.get(name, 0)


def _processes(facts: Facts) -> list[Finding]:
    found = []
    if facts.draining:
        found.append(Finding("wrong", "the sidecar is stopping"))
    if facts.paused:
        found.append(Finding("wrong", "capture is paused: resume it with SIGUSR2 or POST /api/v1/resume"))
    elif "none" in facts.workers:
        found.append(Finding("wrong", "no capture worker runs: its log lines (process=worker) say why"))
    elif "stuck" in facts.workers:
        found.append(
            Finding("wrong", "the capture worker does not read what waits for it: it is stopped, stuck or starved")
        )
    elif "starting" in facts.workers:
        found.append(
            Finding("wrong", "the capture worker is starting: if it stays so, the disk of the store does not answer")
        )
    elif "waiting" in facts.workers:
        pairs, missing = len(facts.workers), facts.workers.count("waiting")
        which = (
            "no capture worker has" if missing == pairs else f"only {pairs - missing} of {pairs} capture workers have"
        )
        found.append(
            Finding(
                "wrong", f"{which} connected: does `capture worker --connect` run, for each pair, as the same user?"
            )
        )
    if facts.store.error:
        found.append(Finding("wrong", f"the store cannot be read: {facts.store.error}"))
    return found


def _connections(facts: Facts, count: _Count) -> list[Finding]:
    flows = count["flows_opened"]
    if not flows:
        if not facts.listeners:
            return []
        where = ", ".join(listener.address for listener in facts.listeners)
        return [
            Finding("wrong", f"no client has connected to {where}: do clients still use the model server's own port?")
        ]
    found = []
    unconnected = count["flows_closed_connect_failed"] + count["flows_closed_connect_timeout"]
    if unconnected >= _NEARLY_ALL * flows:
        upstreams = ", ".join(listener.upstream for listener in facts.listeners) or "the model server"
        found.append(Finding("wrong", f"{upstreams} accepted none of {unconnected} connections: is it the right port?"))
    if tls := count["flows_tls"]:
        plain = ", ".join(one.address for one in facts.listeners if not one.tls) or "a listener without tls"
        found.append(
            Finding(
                "wrong" if not count["requests_observed"] else "note",
                f"{tls} connections to {plain} are TLS, which is not terminated here: set listeners[].tls, or stand"
                " behind what terminates it",
            )
        )
    if (odd := count["flows_undecodable"] - tls) > 0:
        severity: Severity = "wrong" if not count["requests_observed"] else "note"
        # The store's reasons are of all runs, the counter is of this one.
        for reason, times in facts.store.ignored:
            if odd > 0 and reason in _MISUNDERSTANDINGS:
                found.append(Finding(severity, f"{min(odd, times)} connections: {_MISUNDERSTANDINGS[reason]}"))
                odd -= times
        if odd > 0:
            found.append(Finding(severity, f"{odd} connections carry no readable HTTP"))
    if failed := count["flows_closed_tls_failed"]:
        found.append(Finding("note", f"{failed} TLS handshakes failed: check certificates and who trusts them"))
    return found


def _requests(facts: Facts, count: _Count) -> list[Finding]:
    observed, taken = count["requests_observed"], count["requests_proven"] + count["requests_unproven"]
    if not observed:
        if count["flows_opened"] and not count["flows_undecodable"] and facts.workers:
            return [Finding("note", "clients are connected, and no request was complete yet")]
        return []
    found = []
    kinds = (
        ("requests_ignored", "are no model call", facts.store.ignored, "check listeners[].dialect and service"),
        ("requests_refused", "were refused by the model server", facts.store.refusals, "they never reached a model"),
        ("requests_undecodable", "were answered with success and cannot be read", facts.store.refusals, ""),
    )
    for name, what, reasons, remedy in kinds:
        if (n := count[name]) and not taken and n >= _NEARLY_ALL * observed:
            most = f" (mostly: {reasons[0][0]})" if reasons else ""
            found.append(Finding("wrong", f"all of {observed} requests {what}{most}{remedy and '; ' + remedy}"))
            break
    else:
        if not taken:
            found.append(Finding("wrong", f"none of {observed} requests was a model call that succeeded"))
        elif not facts.store.signatures and not facts.store.error:
            found.append(Finding("note", f"{taken} calls were read and are about to be written"))
        if taken and (unread := count["requests_undecodable"]):
            found.append(Finding("note", f"{unread} calls were answered with success and cannot be read"))
    return found


def _losses(count: _Count) -> list[Finding]:
    found = []
    if shed := count["requests_shed"]:
        found.append(
            Finding("note", f"{shed} requests were passed over at random: the worker was behind, and needs more CPU")
        )
    if (lag := count["worker_lag_us"] / 1e6) > 1:
        found.append(Finding("wrong", f"the worker is {lag:.1f} s behind the traffic"))
    if (delay := count["store_delay_us"] / 1e6) > _LATE_SECONDS:
        waits = f"{count['store_waiting_calls']} calls and {count['store_waiting_bytes']} bytes of requests wait for it"
        found.append(
            Finding("wrong", f"the store has taken nothing for {delay:.0f} s: {waits}, and are written when it answers")
        )
    if lost := count["tap_lost_client_bytes"] + count["tap_lost_server_bytes"]:
        found.append(Finding("note", f"{lost} bytes of {count['tap_lost_flows']} connections passed unread"))
    if away := count["signatures_turned_away"]:
        found.append(Finding("note", f"{away} calls of new signatures came in a flood and were not admitted"))
    if failures := count["store_failures"]:
        found.append(
            Finding("note", f"the store refused {failures} writes; {count['store_dropped']} records were dropped")
        )
    return found
