"""What ``capture coverage --prometheus`` says, by the judged file. Pure.

A run that judged nothing says so, and nothing else: no figure of an earlier run stands beside its failure. A run that
ended before it could say even that leaves its predecessor's time, which grows old.
"""

from __future__ import annotations

from typing import Final

from capture.coverage import Coverage
from capture.forward import Bound
from capture.textfile import Row, Table, Values

PREFIX: Final = "warmtap_coverage_"
_RUN: Final = ("warmup",)
_JUDGED: Final = ("model", "version", "warmup")

#: All of them. ``version`` is empty where the calls of every version were judged.
ROWS: Final = (
    Row(f"{PREFIX}run_timestamp_seconds", "gauge", _RUN, "Unix time of the end of the last run"),
    Row(f"{PREFIX}run_success", "gauge", _RUN, "1 if it could judge, whatever it found; 0: all below is absent"),
    Row(f"{PREFIX}reached", "gauge", _JUDGED, "1 if at least the share that was asked for is covered (exit code 0)"),
    Row(f"{PREFIX}share", "gauge", _JUDGED, "Share of production's calls that the file covers, 0 to 1"),
    Row(f"{PREFIX}least_share", "gauge", _JUDGED, "The share that was asked for (`--least`)"),
    Row(f"{PREFIX}calls", "gauge", _JUDGED, "Calls that were judged"),
    Row(f"{PREFIX}excluded_calls", "gauge", _JUDGED, "Calls that this model refuses before it looks for an executor"),
    Row(f"{PREFIX}keys", "gauge", _JUDGED, "Executor keys that production used"),
    Row(f"{PREFIX}missing_keys", "gauge", _JUDGED, "Of those, the ones that no record of the file has"),
    Row(f"{PREFIX}bound_share", "gauge", _JUDGED, "At most this share of calls will miss, if traffic stays like this"),
    Row(f"{PREFIX}bound_blocks", "gauge", _JUDGED, "What the bound is judged by; 0: nothing yet, and it is 1"),
    Row(f"{PREFIX}lost_share", "gauge", _JUDGED, "Share of calls that were lost or unreadable, counted in the bound"),
    Row(f"{PREFIX}file_timestamp_seconds", "gauge", _JUDGED, "Unix time up to which the file could know of traffic"),
)


def failed(warmup: str, now: float) -> Table:
    """Of a run that had nothing usable to judge."""
    return _table({(warmup,): now}, {(warmup,): 0.0}, {}, ())


def judged(
    warmup: str, model: str, version: str, coverage: Coverage, bound: Bound, least: float, made_at: float, now: float
) -> Table:
    """Of one that could; times are seconds since the epoch."""
    figures = {
        "reached": float(coverage.reaches(least)),
        "share": coverage.share,
        "least_share": least,
        "calls": coverage.calls,
        "excluded_calls": sum(one.hits for one in coverage.excluded),
        "keys": coverage.keys_covered + len(coverage.missing),
        "missing_keys": len(coverage.missing),
        "bound_share": bound.total,
        "bound_blocks": bound.held.blocks,
        "lost_share": bound.lost,
        "file_timestamp_seconds": made_at,
    }
    return _table({(warmup,): now}, {(warmup,): 1.0}, figures, (model, version, warmup))


def _table(at: Values, success: Values, figures: dict[str, float], labels: tuple[str, ...]) -> Table:
    values: dict[str, Values] = {f"{PREFIX}run_timestamp_seconds": at, f"{PREFIX}run_success": success}
    values |= {PREFIX + name: {labels: value} for name, value in figures.items()}
    return Table(ROWS, values)
