"""``capture watch``."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Final
from urllib.parse import quote, urlsplit

import typer
from prometheus_client import CollectorRegistry, start_http_server

from capture.commands.options import DEFAULT_STORE, ModelOption, SharedOption, StoreOption
from capture.commands.tables import printable
from capture.errors import UserError
from capture.logline import value
from capture.store.base import StoredSignature, open_store
from replay.listen_option import listen_at
from replay.watch_metrics import UNREACHABLE, WatchCounts
from replay.watching import BUILDS, METRICS_PATH, WATCHED, Finding, Scrape, judge, read_counters, read_status, suspects

#: Exit codes of ``--once``: nothing was built for calls; something was; it cannot be told.
QUIET, MISSED, UNUSABLE = 0, 1, 2
#: Seconds for one answer, and bytes of it.
ANSWER_SECONDS: Final = 5.0
MAX_ANSWER: Final = 16 << 20
#: Models whose status is asked for.
MAX_MODELS: Final = 64
#: Suspects that are named.
MAX_SUSPECTS: Final = 10


def watch(
    metrics: Annotated[
        str,
        typer.Option("--metrics", help=f"The model server's metrics; path default {METRICS_PATH}.", metavar="URL"),
    ],
    store: StoreOption = DEFAULT_STORE,
    model: ModelOption = None,
    interval: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds from one look to the next.")] = 30.0,
    once: Annotated[bool, typer.Option("--once", help="Two looks, then end: 0 quiet, 1 a miss, 2 unknown.")] = False,
    settle: Annotated[
        float, typer.Option("--settle", min=0, help="Seconds until the store has what was called; then it is read.")
    ] = 5.0,
    listen: Annotated[
        str,
        typer.Option(help="Serve metrics of the watch itself to Prometheus here.", metavar="[HOST:]PORT"),
    ] = "",
    allow_shared_store: SharedOption = False,
) -> None:
    """Watch production: the model server's own count of built graphs, and which new signatures it rose with.

    One line for each look that found something; a line with event=miss is a user who waited. Builds of a load and a
    restart of the server are told apart. Sends nothing to the model.
    """
    try:
        url = _url(metrics)
        if once and listen:
            raise UserError("--listen: is for a watch that goes on; leave out --once")
        counts = WatchCounts()
        # What is wrong from the start ends it.
        _read(store, model, allow_shared_store)
        if listen:
            _serve(listen, counts)
        before, finding = None, None
        while True:
            try:
                after = _scrape(url, _models(_read(store, model, allow_shared_store)))
            except UserError as error:
                # Who is watched by Prometheus waits for a server that starts later.
                if once or (before is None and not listen):
                    raise
                counts.unreachable()
                print(f"event={UNREACHABLE} msg={value(error)}", flush=True)
                time.sleep(interval)
                continue
            finding = judge(before, after)
            unnamed = ""
            if finding.kind == "miss":
                time.sleep(settle)
                try:
                    rows = _read(store, model, allow_shared_store)
                    finding = replace(finding, suspects=suspects(finding, rows, time.time()))
                except UserError as error:
                    unnamed = f"{error}"
            counts.found(finding)
            _tell(finding, unnamed, once=once)
            if once and before is not None:
                break
            before = after
            time.sleep(interval)
    except UserError as error:
        typer.echo(f"capture: error: {printable(str(error))}", err=True)
        raise typer.Exit(UNUSABLE) from None
    raise typer.Exit({"quiet": QUIET, "miss": MISSED}.get(finding.kind, UNUSABLE))


def _serve(listen: str, counts: WatchCounts) -> None:
    """In a thread of its own, until the process ends. Raises UserError."""
    host, port = listen_at("--listen", listen)
    registry = CollectorRegistry()
    registry.register(counts.table())
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise UserError(f"--listen {listen}: {error.strerror or error}") from None
    named = f"[{host}]" if ":" in host else host
    print(f"listening http://{named}:{server.server_port}/metrics", flush=True)


def _url(text: str) -> str:
    url = urlsplit(text if "//" in text else f"http://{text}")
    if url.scheme not in ("http", "https") or not url.netloc:
        raise UserError(f"--metrics {text}: no address; write http://host:port, the REST port of the model server")
    return url._replace(path=url.path if url.path.strip("/") else METRICS_PATH, query="", fragment="").geturl()


def _read(store: str, model: str | None, allow_shared: bool) -> list[StoredSignature]:
    source = open_store(store, allow_shared=allow_shared)
    try:
        return source.signatures(model)
    finally:
        source.close()


def _models(rows: list[StoredSignature]) -> list[str]:
    return list(dict.fromkeys(row.key.owner.model for row in rows if row.key.owner.family == "tfserving"))[:MAX_MODELS]


def _scrape(url: str, models: list[str]) -> Scrape:
    """Status first: what began to load after it shows in the counters of loads, or in the next status."""
    serving: frozenset[str] = frozenset()
    moving, told = False, False
    for name in models:
        body = _status(url, name)
        found = None if body is None else read_status(name, body)
        if found is not None:
            told = True
            serving, moving = serving | found[0], moving or found[1]
    try:
        text = _get(url).decode(errors="replace")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"{url}: {_why(error)}; is this the REST port, and monitoring on (--monitoring_config_file)?"
        ) from None
    return Scrape(time.time(), read_counters(text), serving if told else None, moving)


def _why(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"{(reason.strerror if isinstance(reason, OSError) else None) or error}"


def _status(url: str, model: str) -> bytes | None:
    """None where the server does not tell: builds of its loads are then known by the counters alone."""
    place = urlsplit(url)._replace(path=f"/v1/models/{quote(model, safe='')}").geturl()
    try:
        return _get(place)
    except (OSError, http.client.HTTPException, ValueError):
        return None


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as response:  # noqa: S310
        body: bytes = response.read(MAX_ANSWER)
        return body


#: What is said of each kind beside the figures.
_SAID: Final = {
    "first": "watching",
    "quiet": "nothing was built",
    "loading": "the server loaded or unloaded a model: builds of that time are not attributed",
    "restarted": "the server is another process: its count begins anew",
    "missing": f"the server does not export {BUILDS}: it has built nothing yet, or is no TensorFlow",
}


def _tell(finding: Finding, unnamed: str, *, once: bool) -> None:
    """Of a stretch without anything only where it is the last word. ``unnamed``: why a miss has no suspects."""
    if finding.kind == "quiet" and not once:
        return
    fields = {"event": finding.kind, "since": _stamp(finding.since), "until": _stamp(finding.until)}
    fields |= {name.rpartition(":")[2]: str(rise) for name, rise in finding.rises.items()}
    if finding.kind == "miss":
        what = " and ".join(_counted(rise, WATCHED[name]) for name, rise in finding.rises.items())
        if unnamed:
            msg = f"{what} while calls waited; for what is unknown: {unnamed}"
        elif not finding.suspects:
            msg = f"{what} while calls waited; no signature was called then: what was called passed unseen"
        elif finding.suspects[0].known:
            msg = (
                f"{what} while calls waited; no signature was first seen then: this server had not built one of"
                f" {_counted(len(finding.suspects), 'signature')} called then, or what was called passed unseen"
            )
        else:
            msg = f"{what} while calls waited; first seen then: {_counted(len(finding.suspects), 'signature')}"
    else:
        msg = _SAID[finding.kind]
    print(" ".join(f"{key}={value(text)}" for key, text in {**fields, "msg": msg}.items()), flush=True)
    for row, explained, known in finding.suspects[:MAX_SUSPECTS]:
        told = {
            "event": "suspect",
            "signature": row.key.digest,
            "on": str(row.key.owner),
            "first_seen": _stamp(row.first_seen),
            "hits": str(row.hits),
            "senders": ", ".join(row.senders),
            "line": str(row.signature),
            "differs": explained or f"from nothing: it {'was called before' if known else 'is the first of its model'}",
        }
        print(" ".join(f"{key}={value(text)}" for key, text in told.items()), flush=True)
    if (more := len(finding.suspects) - MAX_SUSPECTS) > 0:
        print(f"event=suspect msg={value(f'{more} more; capture ls lists them')}", flush=True)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
