"""What ``capture refresh --prometheus`` says after each pass. Pure.

A pass that failed says so; one that ended before it could leaves its predecessor's time, which grows old.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from capture.textfile import Row, Table
from replay.refreshing.history import Event
from replay.refreshing.job import BAD, Outcome, What

PREFIX: Final = "warmtap_refresh_"
_MODEL: Final = ("model",)
_VERSION: Final = ("model", "version")

ROWS: Final = (
    Row(f"{PREFIX}run_timestamp_seconds", "gauge", _MODEL, "Unix time of the end of the last pass"),
    Row(f"{PREFIX}success", "gauge", _MODEL, "1 if nothing of the model failed or was held back in it"),
    Row(f"{PREFIX}busy", "gauge", _MODEL, "1 if another job held the lock, and nothing was done"),
    Row(f"{PREFIX}failed_versions", "gauge", _MODEL, "Versions that failed, or were held back to not be cold"),
    Row(f"{PREFIX}records", "gauge", _VERSION, "Records in the file of a version that was written or compared"),
    Row(f"{PREFIX}left_out", "gauge", _VERSION, "Signatures that are not in it; the manifest says why"),
    Row(f"{PREFIX}published_timestamp_seconds", "gauge", _VERSION, "Unix time at which its file was last published"),
)
#: Versions of one model that are told of, the newest: every version ever is no set of labels.
MAX_VERSIONS: Final = 20


def told(models: Sequence[str], outcomes: Sequence[Outcome], events: Iterable[Event], now: float) -> Table:
    """Of one pass over these models, with the history; ``now`` in seconds since the epoch."""
    values: dict[str, dict[tuple[str, ...], float]] = {row.name: {} for row in ROWS}
    for model in models:
        values[f"{PREFIX}run_timestamp_seconds"][model,] = now
        mine = [one for one in outcomes if one.model == model]
        failed = [one for one in mine if one.what in BAD]
        values[f"{PREFIX}success"][model,] = float(not failed)
        values[f"{PREFIX}busy"][model,] = float(any(one.what is What.BUSY for one in mine))
        values[f"{PREFIX}failed_versions"][model,] = float(sum(bool(one.version) for one in failed))
        for one in [one for one in mine if one.records][-MAX_VERSIONS:]:
            values[f"{PREFIX}records"][model, one.version] = float(one.records)
            values[f"{PREFIX}left_out"][model, one.version] = float(len(one.left_out))
        published = {one.version: one.at for one in events_of(model, events)}
        for version in sorted(published, key=int)[-MAX_VERSIONS:]:
            when = datetime.fromisoformat(published[version]).timestamp()
            values[f"{PREFIX}published_timestamp_seconds"][model, version] = when
    return Table(ROWS, values)


def events_of(model: str, events: Iterable[Event]) -> list[Event]:
    """The publications of a model, oldest first."""
    return [one for one in events if one.model == model and one.event == "published"]
