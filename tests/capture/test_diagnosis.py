"""Counters in, sentences out."""

from __future__ import annotations

from capture.diagnosis import Facts, ListenerFacts, StoreFacts, diagnose

EMPTY = StoreFacts()
LISTENERS = [ListenerFacts("127.0.0.1:1", "127.0.0.1:2")]


def worst(
    *, store: StoreFacts | None = None, workers: tuple[str, ...] = ("reading",), paused: bool = False, **counts: int
) -> str:
    facts = Facts(counters=counts, store=store or StoreFacts(), listeners=LISTENERS, workers=workers, paused=paused)
    return f"{diagnose(facts)[0].severity}: {diagnose(facts)[0].text}"


def test_what_works_is_said_first_and_what_is_missing_beside_it() -> None:
    store = StoreFacts(signatures=3, models={"m": 2, "n": 1})
    counts = {"flows_opened": 9, "requests_observed": 90, "requests_proven": 90, "requests_shed": 4}
    found = diagnose(Facts(counters=counts, store=store, listeners=LISTENERS, workers=["reading"]))
    assert [finding.severity for finding in found] == ["ok", "note"]
    assert found[0].text == "3 signatures of 2 models are stored"
    assert found[1].text.startswith("4 requests were passed over at random")


def test_reasons_why_a_store_is_empty() -> None:
    assert worst() == (
        "wrong: no client has connected to 127.0.0.1:1: do clients still use the model server's own port?"
    )
    assert worst(paused=True).startswith("wrong: capture is paused")
    assert worst(workers=("none",)).startswith("wrong: no capture worker runs")
    # A disk that hangs: clients are served, and nothing is read for as long as that lasts.
    assert worst(workers=("starting",), flows_opened=5).startswith("wrong: the capture worker is starting: if it stays")
    assert worst(workers=("waiting",)).startswith("wrong: no capture worker has connected")
    assert worst(workers=("external", "waiting")).startswith("wrong: only 1 of 2 capture workers have connected")
    assert worst(store=StoreFacts(error="s: no such store")) == "wrong: the store cannot be read: s: no such store"
    assert worst(flows_opened=10, flows_closed_connect_failed=10).startswith(
        "wrong: 127.0.0.1:2 accepted none of 10 connections"
    )
    assert "are TLS, which is not terminated here" in worst(flows_opened=3, flows_undecodable=3, flows_tls=3)
    assert worst(flows_opened=3, flows_undecodable=3) == "wrong: 3 connections carry no readable HTTP"
    spoken = StoreFacts(ignored=[("flow: http/1 answer to http/2", 9), ("flow: not http", 1)])
    assert worst(store=spoken, flows_opened=3, flows_undecodable=3).startswith(
        "wrong: 3 connections: clients speak HTTP/2 (gRPC) and the model server answers in HTTP/1: is"
    )
    spoken = StoreFacts(ignored=[("flow: http/2 server, http/1 client", 2)])
    facts = Facts(counters={"flows_opened": 3, "flows_undecodable": 3}, store=spoken, workers=["reading"])
    assert [finding.text.partition(":")[0] for finding in diagnose(facts)] == [
        "2 connections",
        "1 connections carry no readable HTTP",
    ]
    ignored = StoreFacts(ignored=[("HTTP GET, other path", 7)])
    assert worst(store=ignored, flows_opened=3, requests_observed=7, requests_ignored=7).startswith(
        "wrong: all of 7 requests are no model call (mostly: HTTP GET, other path)"
    )
    refused = StoreFacts(refusals=[("unknown service", 7)])
    assert worst(store=refused, flows_opened=3, requests_observed=7, requests_refused=7).startswith(
        "wrong: all of 7 requests were refused by the model server (mostly: unknown service)"
    )
    assert worst(flows_opened=1, requests_observed=5, requests_proven=5, worker_lag_us=3_500_000) == (
        "wrong: the worker is 3.5 s behind the traffic"
    )
    assert worst(
        flows_opened=1, requests_observed=5, requests_proven=5, store_delay_us=75_200_000, store_waiting_calls=5,
        store_waiting_bytes=900,
    ) == (
        "wrong: the store has taken nothing for 75 s: 5 calls and 900 bytes of requests wait for it, and are written"
        " when it answers"
    )  # fmt: skip
