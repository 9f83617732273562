"""``/metrics``: the table of counters as Prometheus sees it, and a few values beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from capture.counters import FLOW_END_REASONS, HISTOGRAMS, TABLE, Counter
from capture.diagnosis import StoreFacts
from capture.textfile import Row
from proxy.sidecar import Sidecar

PREFIX: Final = "warmtap_"
#: Models with a value of their own: names come from traffic, and each is a time series. The rest is ``other``.
MAX_MODELS: Final = 50
_CLOSED: Final = "flows_closed_"
_MICROSECONDS: Final = 1e6


#: What is not in the table of counters.
EXTRA: Final = (
    Row("warmtap_build_info", "gauge", ("version",), "1; the version of warmtap"),
    Row("warmtap_start_time_seconds", "gauge", (), "Unix time at which the sidecar started"),
    Row("warmtap_ready", "gauge", (), "1 while /readyz says yes"),
    Row("warmtap_paused", "gauge", (), "1 while the kill switch is on"),
    Row("warmtap_draining", "gauge", (), "1 once a stop has begun"),
    Row("warmtap_listener_accepting", "gauge", ("listener",), "1 while clients are accepted, 0 while they are refused"),
    Row("warmtap_worker_reading", "gauge", ("pair",), "1 while a capture worker reads the tap"),
    Row("warmtap_store_up", "gauge", (), "1 while the store can be read"),
    Row("warmtap_store_signatures", "gauge", ("model",), "Wire signatures stored, over all model versions"),
    Row("warmtap_store_payload_bytes", "gauge", (), "Bytes of the requests stored, held-out ones included"),
    Row("warmtap_admin_turned_away_total", "counter", (), "Requests to this server without the right token or host"),
)


def _plain(row: Counter) -> bool:
    return not row.name.startswith((_CLOSED, *(f"{name}_" for name in HISTOGRAMS)))


def _name(row: Counter) -> str:
    if row.kind == "count":
        return f"{PREFIX}{row.name}_total"
    return PREFIX + row.name.replace("_us", "_seconds") if row.name.endswith("_us") else PREFIX + row.name


def rows() -> list[Row]:
    """Every metric that ``/metrics`` has, in its order."""
    found = [
        Row(_name(row), "counter" if row.kind == "count" else "gauge", ("pair",), row.help)
        for row in TABLE
        if _plain(row)
    ]
    found.append(Row(f"{PREFIX}flows_closed_total", "counter", ("pair", "reason"), "Flows that ended, by reason"))
    found += [Row(f"{PREFIX}{name}_seconds", "histogram", ("pair",), text) for name, text in _HISTOGRAM_HELP.items()]
    return [*found, *EXTRA]


_HISTOGRAM_HELP: Final = {
    "connect": "Seconds from accept until the model server had accepted",
    "loop_lag": "Seconds that the relay's loop was late for a timer, four times a second",
}


class SidecarCollector(Collector):
    """Reads shared memory at each scrape. ``store`` and ``ready`` are set before it: they take a thread and a loop."""

    def __init__(self, sidecar: Sidecar, version: str) -> None:
        self._sidecar = sidecar
        self._version = version
        self._counters = [sidecar.counters.of(pair.number) for pair in sidecar.pairs()]
        self.store = StoreFacts()
        self.ready = False
        self.turned_away = 0

    def collect(self) -> Iterator[Metric]:
        sidecar = self._sidecar
        pairs = {
            str(pair.number): counters.values() for pair, counters in zip(sidecar.pairs(), self._counters, strict=True)
        }
        yield from self._table(pairs)
        yield from self._beside()

    def _table(self, pairs: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
        for row in TABLE:
            if not _plain(row):
                continue
            name = _name(row)
            divisor = _MICROSECONDS if row.name.endswith("_us") else 1
            family = (
                CounterMetricFamily(name, row.help, labels=["pair"])
                if row.kind == "count"
                else GaugeMetricFamily(name, row.help, labels=["pair"])
            )
            for pair, values in pairs.items():
                family.add_metric([pair], values[row.name] / divisor)
            yield family
        closed = CounterMetricFamily(
            f"{PREFIX}flows_closed_total", "Flows that ended, by reason", labels=["pair", "reason"]
        )
        for pair, values in pairs.items():
            for reason in FLOW_END_REASONS:
                closed.add_metric([pair, reason], values[_CLOSED + reason])
        yield closed
        for name, bounds in HISTOGRAMS.items():
            histogram = HistogramMetricFamily(f"{PREFIX}{name}_seconds", _HISTOGRAM_HELP[name], labels=["pair"])
            for pair, values in pairs.items():
                buckets, total = [], 0
                for number, bound in enumerate((*map(str, bounds), "+Inf")):
                    total += values[f"{name}_{number}"]
                    buckets.append((bound, total))
                histogram.add_metric([pair], buckets, values[f"{name}_us"] / _MICROSECONDS)
            yield histogram

    def _beside(self) -> Iterator[Metric]:
        sidecar, store = self._sidecar, self.store
        yield InfoMetricFamily(f"{PREFIX}build", "1; the version of warmtap", value={"version": self._version})
        help_of = {row.name: row.help for row in EXTRA}
        for name, value in (
            ("start_time_seconds", sidecar.started_at),
            ("ready", self.ready),
            ("paused", sidecar.paused),
            ("draining", sidecar.draining),
            ("store_up", not store.error),
            ("store_payload_bytes", store.payload_bytes),
        ):
            yield GaugeMetricFamily(PREFIX + name, help_of[PREFIX + name], value=float(value))
        family = GaugeMetricFamily(
            f"{PREFIX}listener_accepting", help_of[f"{PREFIX}listener_accepting"], labels=["listener"]
        )
        for listener in sidecar.listeners():
            family.add_metric([listener.name], float(listener.state == "accepting"))
        yield family
        family = GaugeMetricFamily(f"{PREFIX}worker_reading", help_of[f"{PREFIX}worker_reading"], labels=["pair"])
        for pair in sidecar.pairs():
            family.add_metric([str(pair.number)], float(pair.worker in ("reading", "external")))
        yield family
        family = GaugeMetricFamily(f"{PREFIX}store_signatures", help_of[f"{PREFIX}store_signatures"], labels=["model"])
        most = sorted(store.models.items(), key=lambda item: (-item[1], item[0]))
        for model, count in most[:MAX_MODELS]:
            family.add_metric([model.encode("utf-8", "replace").decode()], count)
        if len(most) > MAX_MODELS:
            family.add_metric(["other"], sum(count for _, count in most[MAX_MODELS:]))
        yield family
        yield CounterMetricFamily(
            f"{PREFIX}admin_turned_away_total", help_of[f"{PREFIX}admin_turned_away_total"], value=self.turned_away
        )


def registry(collector: SidecarCollector) -> CollectorRegistry:
    """With nothing in it but the sidecar: the supervisor's own Python is nobody's concern."""
    made = CollectorRegistry()
    made.register(collector)
    return made
