"""What a model server's own counters say of a stretch of time, and which signatures it concerns. Pure.

TensorFlow counts the graphs that it builds for the whole process (tensorflow/core/framework/metrics.cc), those of a
load too. So a rise is a miss only where the server loaded nothing meanwhile; and a count that falls is another process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import msgspec

from capture.differences import nearest
from capture.signature import WireSignature
from capture.store.base import RecordKey, StoredSignature

#: TF Serving's path (util/prometheus_exporter.h: kPrometheusPath).
METRICS_PATH: Final = "/monitoring/prometheus/metrics"
#: Names as TF Serving mangles them (util/prometheus_exporter.cc).
BUILDS: Final = ":tensorflow:core:graph_build_calls"
COMPILATIONS: Final = ":tensorflow:core:xla_compilations"
#: What users wait for, one of each in words.
WATCHED: Final = {BUILDS: "graph build", COMPILATIONS: "XLA compilation"}
#: These rise with every load (cc/saved_model/loader.cc): by one, and by the microseconds that it took, which no two
#: processes share. (session_created, next to them, is a flag that is exported as 0: core/common_runtime/session.cc.)
LOADS: Final = (":tensorflow:cc:saved_model:load_attempt_count", ":tensorflow:cc:saved_model:load_latency")
#: This one rises with every call (core/common_runtime/direct_session.cc).
CALLS: Final = ":tensorflow:core:direct_session_runs"
#: Seconds by which the clocks of this machine and the sidecar's may differ.
CLOCKS: Final = 1.0

_SAMPLE: Final = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{.*\})?[ \t]+([0-9.eE+-]+)(?:[ \t]+-?\d+)?$")

#: ``first``: nothing to compare with. ``quiet``: nothing was built. ``miss``: something was, for calls. ``loading``:
#: the server loaded or unloaded a model, and what was built meanwhile may be of that. ``restarted``: counts fell.
#: ``missing``: the server does not tell how many graphs it built.
Kind = Literal["first", "quiet", "miss", "loading", "restarted", "missing"]


@dataclass(frozen=True, slots=True)
class Scrape:
    """What the server said at one time, in seconds since the epoch. ``counters`` are those of TensorFlow, summed over
    their labels. ``serving`` are MODEL/VERSION that are available, None where nobody told; ``moving``: another one was
    on its way in or out."""

    at: float
    counters: Mapping[str, float]
    serving: frozenset[str] | None = None
    moving: bool = False


class Suspect(NamedTuple):
    """A signature that was first seen on a model version when the server built. ``explained``: how it differs from the
    nearest one seen before, "" if there is none. ``known``: it was seen before and called then, by a server that had
    not built it: one that was restarted, or another one in front of which the same store is filled."""

    row: StoredSignature
    explained: str
    known: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """What happened up to ``until``. ``rises`` are by name of the counter; only of a miss there are ``suspects``."""

    kind: Kind
    since: float
    until: float
    rises: Mapping[str, int]
    suspects: tuple[Suspect, ...] = ()


def read_counters(text: str) -> dict[str, float]:
    """TensorFlow's samples in Prometheus text, summed over their labels; any other line is passed over."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if (sample := _SAMPLE.match(line)) and sample[1].startswith(":tensorflow:"):
            try:
                found[sample[1]] = found.get(sample[1], 0.0) + float(sample[2])
            except ValueError:
                continue
    return found


class _Version(msgspec.Struct):
    version: str
    state: str


class _Status(msgspec.Struct):
    model_version_status: list[_Version]


def read_status(model: str, body: bytes) -> tuple[frozenset[str], bool] | None:
    """(available MODEL/VERSION, whether another one is on its way) by ``GET /v1/models/M``; None if it is no such
    answer."""
    try:
        told = msgspec.json.decode(body, type=_Status).model_version_status
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    serving = frozenset(f"{model}/{one.version}" for one in told if one.state == "AVAILABLE")
    return serving, any(one.state not in ("AVAILABLE", "END") for one in told)


def judge(before: Scrape | None, after: Scrape) -> Finding:
    """Compare two scrapes of one server; ``after`` is the later one. Suspects are for :func:`suspects` to find."""
    since = after.at if before is None else before.at
    if BUILDS not in after.counters:
        return Finding("missing", since, after.at, {})
    if before is None or BUILDS not in before.counters:
        return Finding("first", since, after.at, {})
    fallen = [
        name for name in (*WATCHED, *LOADS, CALLS) if after.counters.get(name, 0.0) < before.counters.get(name, 0.0)
    ]  # fmt: skip
    if fallen:
        return Finding("restarted", since, after.at, {})
    rises = {name: rise for name in WATCHED if (rise := _rise(name, before, after))}
    loaded = any(_rise(name, before, after) for name in LOADS)
    told = before.serving is not None and after.serving is not None
    if loaded or before.moving or after.moving or (told and before.serving != after.serving):
        return Finding("loading", since, after.at, rises)
    return Finding("miss" if rises else "quiet", since, after.at, rises)


def _rise(name: str, before: Scrape, after: Scrape) -> int:
    # One that has not counted yet is not exported.
    return round(after.counters.get(name, 0.0) - before.counters.get(name, 0.0))


def suspects(finding: Finding, rows: Iterable[StoredSignature], until: float) -> tuple[Suspect, ...]:
    """The signatures first seen on their model version while a miss happened, or up to ``until``: a call is seen when
    it has ended, and it may have built long before that. Those of most calls first. Where there is none, those that
    were called then, of fewest calls first: what is called all the time was built long ago."""
    rows = list(rows)
    begin = finding.since - CLOCKS
    older: dict[RecordKey, WireSignature] = {row.key: row.signature for row in rows if row.first_seen < begin}
    found = []
    for row in rows:
        if begin <= row.first_seen <= until:
            others = [one for key, one in older.items() if key.owner[:2] == row.key.owner[:2]]
            near = nearest(row.signature, others)
            found.append(Suspect(row, "" if near is None else f"than {near[0].digest[:15]}: {'; '.join(near[1])}"))
    if found:
        return tuple(sorted(found, key=lambda one: (-one.row.hits, one.row.key)))
    called = [Suspect(row, "", known=True) for row in rows if row.first_seen < begin <= row.last_seen]
    return tuple(sorted(called, key=lambda one: (one.row.hits, one.row.key)))
