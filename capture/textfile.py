"""Metrics of commands that end: Prometheus's text format in a file that the node exporter reads (``textfile``
collector, ``--collector.textfile.directory``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from capture.errors import UserError
from capture.export.files import write_atomically

#: The collector reads no other names (node_exporter, collector/textfile.go).
SUFFIX: Final = ".prom"
#: The node exporter runs as another user; there is nothing of a request in such a file.
MODE: Final = 0o644

#: Values of one metric, by the values of its labels.
Values = Mapping[tuple[str, ...], float]


class Row(NamedTuple):
    """One metric, for docs/metrics.md."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def markdown(rows: Iterable[Row]) -> str:
    """A table of docs/metrics.md."""
    lines = ["| metric | type | labels | what it says |", "|---|---|---|---|"]
    lines += [f"| `{row.name}` | {row.kind} | {', '.join(row.labels) or '-'} | {row.help} |" for row in rows]
    return "\n".join(lines) + "\n"


class Table(Collector):
    """Rows with their values; a row without values is left out."""

    def __init__(self, rows: Iterable[Row], values: Mapping[str, Values]) -> None:
        """``values`` are by the name of the row. Whoever scrapes sees what they are at that time."""
        self._rows = tuple(rows)
        self._values = values

    def collect(self) -> Iterator[Metric]:
        for row in self._rows:
            values = self._values.get(row.name)
            if not values:
                continue
            made = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
            family = made(row.name, row.help, labels=row.labels)
            for labels, value in values.items():
                # What came from traffic may hold half a surrogate pair.
                family.add_metric([label.encode("utf-8", "replace").decode() for label in labels], value)
            yield family


def exposition(table: Table) -> bytes:
    """The text."""
    registry = CollectorRegistry()
    registry.register(table)
    return generate_latest(registry)


def check_textfile(path: Path) -> None:
    """Raises UserError where nobody would read it, before any work is done."""
    if path.suffix != SUFFIX:
        raise UserError(f"--prometheus {path}: the node exporter reads only files that end in {SUFFIX}")
    if not path.parent.is_dir():
        raise UserError(f"--prometheus {path}: {path.parent} is no directory")


def write_textfile(path: Path, table: Table) -> None:
    """The whole file or, where it fails, the one before. Raises UserError."""
    try:
        write_atomically(path, exposition(table), check=lambda _: None, mode=MODE)
    except OSError as error:
        raise UserError(f"--prometheus {path}: {error.strerror or error}") from None
