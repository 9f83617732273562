"""The bound on what a warm-up file misses, by forward hold-out: the file as of a time, judged by what came after it.

Requests are no independent trials: one new release of one client sends its new signature a million times. So what is
counted are **blocks**, the calls of one client program within one stretch of time (a day, so that a nightly job is one
event): a block is missed if a single call of it is. If blocks are independent, or alike within each client and stretch,
the number of missed ones is at most as spread as a binomial (Hoeffding 1956), and the interval of Clopper and Pearson
holds. Calls that nobody saw are no blocks: their share is added in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import floor
from typing import Final

from capture.binomial import clopper_pearson
from capture.coverage import Call
from capture.store.base import HOUR

BLOCK_HOURS: Final = 24
#: Said with every bound.
CONDITION: Final = "if traffic stays like this window"
#: A part of the window, at its end, that is looked at by itself: what began late is not thinned by the time before.
RECENT: Final = 0.25


@dataclass(frozen=True, slots=True)
class HoldOut:
    """Blocks after ``since_hour`` (hours since the epoch) up to ``until_hour``, of ``block_hours`` each. ``recent_*``
    are those in the last quarter."""

    since_hour: int
    until_hour: int
    block_hours: int
    blocks: int
    missed: int
    recent_blocks: int
    recent_missed: int
    calls: int
    calls_missed: int

    @property
    def upper(self) -> float:
        """The upper end of the 95 % interval of the share of missed blocks: of the whole window, or of its last quarter
        where that clearly missed more. 1 without any block."""
        whole = clopper_pearson(self.missed, self.blocks).high
        recent = clopper_pearson(self.recent_missed, self.recent_blocks)
        risen = self.blocks > 0 and recent.low > self.missed / self.blocks
        return max(whole, recent.high) if risen else whole


def hold_out(calls: Iterable[Call], since: float, now: float, block_hours: int = BLOCK_HOURS) -> HoldOut:
    """Count blocks from the first whole hour after ``since`` on; both times in seconds since the epoch. The last
    stretch, which is not over, counts where it is missed and not where it is not."""
    start, end = floor(since / HOUR) + 1, floor(now / HOUR)
    whole = max(0, end - start) // block_hours
    blocks: dict[tuple[int, str], bool] = {}
    seen = missed_calls = 0
    for call in calls:
        if call.hour < start:
            continue
        seen += call.calls
        missed_calls += call.calls if call.missed else 0
        place = ((call.hour - start) // block_hours, call.client)
        blocks[place] = blocks.get(place, False) or call.missed
    counted = {place: missed for place, missed in blocks.items() if place[0] < whole or missed}
    newest = max(whole, 1 + max((stretch for stretch, _ in counted), default=0))
    recent = {place: missed for place, missed in counted.items() if place[0] >= newest * (1 - RECENT)}
    return HoldOut(
        since_hour=start,
        until_hour=max(start, end),
        block_hours=block_hours,
        blocks=len(counted),
        missed=sum(counted.values()),
        recent_blocks=len(recent),
        recent_missed=sum(recent.values()),
        calls=seen,
        calls_missed=missed_calls,
    )


#: Counters of calls that were made and that no signature stands for.
LOST_CALLS: Final = (
    "requests_lost",
    "requests_shed",
    "requests_missed",
    "requests_undecodable",
    "requests_oversized",
    "store_dropped",
)


def lost_share(counted: Mapping[str, int]) -> float:
    """The share of calls that were lost, undecodable, oversized or turned away, by the counters of the window (see
    COUNTED): by number or, where that is more, by bytes, because large calls are lost first; and flows that could not
    be read at all as their share of the flows."""
    got = counted.get
    known = got("requests_proven", 0) + got("requests_unproven", 0)
    lost = sum(got(name, 0) for name in LOST_CALLS)
    # These are counted as proven or unproven before they are turned away.
    by_number = _share(lost + got("signatures_turned_away", 0), known + lost)
    lost_bytes = got("tap_lost_client_bytes", 0)
    by_bytes = _share(lost_bytes, got("tap_client_bytes", 0) + lost_bytes)
    unread = got("flows_undecodable", 0) + got("flows_blind", 0)
    # Flows that were open before the window are not among those opened.
    by_flows = _share(unread, max(unread, got("flows_opened", 0)))
    return min(1.0, max(by_number, by_bytes) + by_flows)


def _share(part: int, whole: int) -> float:
    return min(1.0, part / whole) if whole else float(part > 0)


@dataclass(frozen=True, slots=True)
class Bound:
    """``total`` is at least the share of calls that miss, each block weighing the same, ``CONDITION``: the upper end of
    the interval, and in full what was lost or excluded."""

    held: HoldOut
    lost: float
    excluded: float

    @property
    def total(self) -> float:
        """At most 1."""
        return min(1.0, self.held.upper + self.lost + self.excluded)


def bound(held: HoldOut, counted: Mapping[str, int], excluded_calls: int) -> Bound:
    """Put it together. ``counted`` are counters and ``excluded_calls`` calls of the same window."""
    return Bound(held, lost_share(counted), _share(excluded_calls, held.calls + excluded_calls))
