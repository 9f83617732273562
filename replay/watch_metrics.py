"""What ``capture watch --listen`` says to Prometheus: counts of its looks and what they found. Pure."""

from __future__ import annotations

from typing import Final, get_args

from capture.textfile import Row, Table
from replay.watching import BUILDS, COMPILATIONS, Finding, Kind

PREFIX: Final = "warmtap_watch_"
#: The server could not be asked.
UNREACHABLE: Final = "unreachable"
_LOOKS, _UP, _READ = f"{PREFIX}looks_total", f"{PREFIX}up", f"{PREFIX}read_timestamp_seconds"
_SUSPECTS: Final = f"{PREFIX}suspects_total"
_RISES: Final = {BUILDS: f"{PREFIX}builds_total", COMPILATIONS: f"{PREFIX}compilations_total"}

ROWS: Final = (
    Row(_UP, "gauge", (), "1 if the last look could read the model server's count of builds"),
    Row(_READ, "gauge", (), "Unix time of the last look that could; 0 before the first"),
    Row(_LOOKS, "counter", ("event",), "Looks at the model server's metrics, by what they found"),
    Row(_RISES[BUILDS], "counter", (), "Graphs that the model server built while calls waited"),
    Row(_RISES[COMPILATIONS], "counter", (), "Clusters that XLA compiled while calls waited"),
    Row(_SUSPECTS, "counter", (), "Signatures first seen while the model server built"),
)


class WatchCounts:
    """Since this process began. All are there from the start, at 0: a rise of the first look is a rise."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple[str, ...], float]] = {row.name: {(): 0.0} for row in ROWS}
        self._values[_LOOKS] = {(event,): 0.0 for event in (*get_args(Kind), UNREACHABLE)}

    def found(self, finding: Finding) -> None:
        """One look; of a miss, with its suspects."""
        self._values[_LOOKS][finding.kind,] += 1
        told = finding.kind != "missing"
        self._values[_UP][()] = float(told)
        if told:
            self._values[_READ][()] = finding.until
        if finding.kind == "miss":
            for name, rise in finding.rises.items():
                self._values[_RISES[name]][()] += rise
            self._values[_SUSPECTS][()] += sum(not one.known for one in finding.suspects)

    def unreachable(self) -> None:
        """One that got no answer."""
        self._values[_LOOKS][UNREACHABLE,] += 1
        self._values[_UP][()] = 0.0

    def table(self) -> Table:
        """For a registry; it shows what the counts are when it is read."""
        return Table(ROWS, self._values)
