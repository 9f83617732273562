"""How much the worker passes over while it is behind the relay.

What is passed over is whole exchanges, each drawn alike and never all of a flow: framing and header tables are read on,
so no flow loses its place, and shares of signatures stay unbiased. Counts are not scaled up; ``requests_shed`` says how
much is missing from them. Losing bytes instead would hit whoever sends when the buffer is full.
"""

from __future__ import annotations

from typing import Final

#: Something is read even in the worst case: a capture of nothing would look like a worker that hangs.
MAX_SHED: Final = 0.98
#: Shares of the tap's buffer in use between which shedding rises to its most. At one half of it the relay begins to
#: leave flows out (:class:`capture.tap_writer.TapWriter`): it must not come to that.
FILL_FROM: Final = 0.15
FILL_FULL: Final = 0.4


#: Seconds from its start in which a worker may be behind for no fault of its own: it reads what waited for it, on a
#: machine that is busy starting things. A buffer that fills counts from the first moment.
START_SECONDS: Final = 10.0
#: The share of the lag that is let pass, below which a worker has caught up.
CAUGHT_UP: Final = 0.5


class Start:
    """Whether a worker still reads what waited for it when it began: until it has caught up once, at most
    :data:`START_SECONDS`."""

    def __init__(self, now: float) -> None:
        """``now``: monotonic seconds, as below."""
        self._until = now + START_SECONDS

    def counted(self, lag: float, most: float, now: float) -> float:
        """Of this lag, in seconds, what is to be shed for, where ``most`` is let pass."""
        if lag < CAUGHT_UP * most:
            self._until = now
        return 0.0 if now < self._until else lag


def shed_share(lag: float, most: float, fill: float) -> float:
    """The share of exchanges to pass over, 0 to :data:`MAX_SHED`, for a worker ``lag`` seconds behind with ``fill`` of
    the tap's buffer in use (0 to 1). ``most`` is the lag in seconds that is let pass; 0: nothing is ever shed.

    Proportional: it rises from 0 at ``most`` to everything at twice that, so a steady overload settles at the share
    that cannot be read, in between, and it falls back to 0 as the worker catches up.
    """
    if most <= 0:
        return 0.0
    behind = max((lag - most) / most, (fill - FILL_FROM) / (FILL_FULL - FILL_FROM))
    return min(MAX_SHED, max(0.0, behind))
