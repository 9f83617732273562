"""What a replay says at its end: a line a record, or one JSON document. No payload, no credential."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from capture.commands.tables import print_table, printable
from replay.player import Played, Player


def document(target: str, player: Player) -> dict[str, Any]:
    """All of it as plain data; latencies in milliseconds, None where there is none."""
    return {
        "target": target,
        "records": [_record(one) for one in player.played],
        "sent": player.sent,
        "failed": sum(one.failed for one in player.played),
        "failed_records": sum(bool(one.failed) for one in player.played),
        "skipped_records": sum(one.record.elsewhere for one in player.played),
        "seconds": round(player.seconds, 3),
    }


def _record(one: Played) -> dict[str, Any]:
    return {
        "number": one.record.number,
        "place": one.record.place,
        "signature": one.record.identity,
        "line": one.record.line or None,
        "status": status(one),
        "sent": one.sent,
        "failed": one.failed,
        "first_ms": _milliseconds(one.first),
        "steady_ms": _milliseconds(one.steady),
        "reasons": dict(one.failures.most_common()),
    }


def status(one: Played) -> str:
    """``ok``: all were answered well; ``failed``: one was not; ``skipped``: it is for a server of another protocol;
    ``unsent``: none was sent."""
    if one.failed:
        return "failed"
    if one.record.elsewhere:
        return "skipped"
    return "ok" if one.sent else "unsent"


def print_report(target: str, player: Player, *, as_json: bool) -> None:
    """To standard output; why records failed, and the sum, to standard error."""
    found = document(target, player)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return
    print_table(
        ("RECORD", "STATUS", "SENT", "FAILED", "FIRST MS", "STEADY MS", "SIGNATURE", "LINE"),
        (
            (
                str(one.record.number),
                status(one),
                str(one.sent),
                str(one.failed),
                _cell(one.first),
                _cell(one.steady),
                one.record.identity[:15] if one.record.line else one.record.identity[:22],
                printable(one.record.line) or "-",
            )
            for one in player.played
        ),
        right=frozenset({"RECORD", "SENT", "FAILED", "FIRST MS", "STEADY MS"}),
    )
    for one in player.played:
        if one.record.elsewhere:
            print(f"skipped: {one.record.place}: {one.record.fault}", file=sys.stderr)
        for reason, count in one.failures.most_common():
            print(f"failed: {one.record.place}: {printable(reason)} ({count} times)", file=sys.stderr)
    print(
        f"{target}: records {len(player.played)}, sent {found['sent']}, failed {found['failed']},"
        f" {found['seconds']:.1f} s",
        file=sys.stderr,
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)


def _cell(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}"
