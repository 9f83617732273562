"""What ``capture verify`` prints, from the same plain data that ``--json`` writes."""

from __future__ import annotations

from typing import Any

from capture.commands.tables import print_table, printable

_COLUMNS = (
    "SIGNATURE",
    "JUDGED BY",
    "COLD BUILDS",
    "FIRST MS",
    "STEADY MS",
    "HERD BUILDS",
    "SLOWEST MS",
    "WARM BUILDS",
    "XLA",
    "FIRST MS",
    "STEADY MS",
    "LINE",
)


def print_report(summary: dict[str, Any]) -> None:
    """A line for each executor key, the notes and reasons, and the verdict."""
    rows = [_row(one) for one in summary["executors"]]
    print_table(_COLUMNS, rows, right=frozenset(_COLUMNS[1:-1]))
    if len(summary["sessions"]) > 1:
        told = ", ".join(f"{one['session']}: {_number(one['graph_builds'])}" for one in summary["sessions"])
        print(f"builds by session, the first one warmed up: {told}")
    for note in summary["notes"]:
        print(f"note: {printable(note)}")
    for reason in summary["reasons"]:
        print(f"{summary['verdict']}: {printable(reason)}")
    if summary["note"]:
        print(f"note: {printable(summary['note'])}")
    print(verdict_line(summary))


def verdict_line(summary: dict[str, Any]) -> str:
    """All in one line: the verdict, the level that was reached, what was judged by what."""
    stored = summary["held_out_requests"] + summary["held_out_refused"] + summary["held_out_unreadable"]
    version = f" (TensorFlow {summary['tensorflow']})" if summary["tensorflow"] else ""
    builds = ""
    if summary["level"] != "fits":
        builds = f"; builds cold {_builds(summary['cold'])}, {_herd(summary)}warm {_builds(summary['warm'])}"
    return (
        f"verdict: {summary['verdict']} at level {summary['level']}{version}"
        f" for {printable(summary['model'])} on {summary['saved_model']}:"
        f" {summary['held_out_requests']} of {stored} held-out requests judged"
        f" ({summary['byte_identical']} byte-identical to a record), {summary['held_out_refused']} refused by it,"
        f" {summary['executor_keys']} executor keys, {summary['records']} records"
        f" ({summary['judged_by_record_only']} executors judged by their record alone){builds}"
    )


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    cold, herd, warm = one["cold"], one["herd"], one["warm"]
    return (
        one["signature"][:15],
        str(one["judged_by"]),
        *(("-", "-", "-") if cold is None else (_number(cold["graph_builds"]), *_times(cold))),
        *(("-", "-") if herd is None else (_number(herd["graph_builds"]), f"{herd['slowest_ms']:.1f}")),
        *(
            ("-", "-", "-", "-")
            if warm is None
            else (_number(warm["graph_builds"]), _number(warm["xla_compilations"]), *_times(warm))
        ),
        printable(one["line"]),
    )


def _times(figures: dict[str, Any]) -> tuple[str, str]:
    steady = figures["steady_ms"]
    return f"{figures['first_ms']:.1f}", "-" if steady is None else f"{steady:.1f}"


def _number(count: int | None) -> str:
    return "?" if count is None else str(count)


def _builds(figures: dict[str, Any]) -> str:
    return "unknown" if figures["graph_builds"] is None else str(figures["graph_builds"])


def _herd(summary: dict[str, Any]) -> str:
    if summary["herd"] is None:
        return ""
    callers = summary["executors"][0]["herd"]["callers"]
    return f"with {callers} callers at once {_builds(summary['herd'])}, "
