"""Hostile clients against the real worker process: it goes on reading, holds what is stated, and counts what it cannot
take. ``docs/limits.md`` says what bounds each attack and what it costs."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest

from capture.admission import MAX_MODEL_VERSIONS, NEW_VERSIONS_PER_HOUR
from capture.config import Limits
from capture.store.base import open_store
from proxy.settings import Capture
from tests.support.calls import predict, predict_response
from tests.support.hostile import ATTACKS
from tests.support.processes import ROOT
from tests.support.tap_frames import START, GrpcFlow, encode, time_frame
from tests.support.waiting import until
from tests.support.worker_process import Worker

#: Rows that may remain in the store: the signatures of the worst attack on each bound.
MOST_ROWS = max(Limits().signatures_per_version, MAX_MODEL_VERSIONS + NEW_VERSIONS_PER_HOUR) + 1
GOOD = "Predict good/serving_default (x) -> (y)"


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, to 10 ms."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(ticks[11]) + int(ticks[12])) / 100


@pytest.mark.server
@pytest.mark.parametrize("name", ATTACKS)
def test_hostile(name: str, tmp_path: Path) -> None:
    """Prints its figures: ``pytest -rP`` shows them."""
    attack = ATTACKS[name]
    worker = Worker(tmp_path / "s", memory_bytes=Capture().memory_bytes, shed_lag=0.0, flush_interval=1.0)
    worker.greet()
    # Another client, before the attack, during it and after it.
    good = GrpcFlow(1 << 30)

    def other(seconds: int) -> None:
        good.call(predict(outputs=["y"], model="good"), predict_response(model="good"))
        worker.socket.sendall(encode([time_frame(START + seconds)]))
        worker.send(good)

    other(0)
    worker.wait_for("requests_proven", 1)
    worker.wait_for("store_writes", 2)
    idle, before = worker.memory("VmRSS"), cpu_seconds(worker.process.pid)
    sent, others = 0, 1
    for flow in attack.flows():
        if flow is None:
            other(others)
            others += 1
        else:
            sent += sum(len(payload) for _, _, _, payload in flow.frames)
            worker.send(flow)
    other(others)
    others += 1
    worker.wait_for("requests_proven", attack.counted.get("requests_proven", 0) + others)
    spent, peak = cpu_seconds(worker.process.pid) - before, worker.memory("VmHWM") - idle
    until(lambda: worker.counters.total()["worker_open_flows"] >= attack.open_flows, f"{attack.open_flows} open flows")
    code, text = worker.end()
    assert code == 0, text
    assert "level=error" not in text
    print(f"{name}: {sent / 1e6:.1f} MB, {spent:.2f} s, {1e9 * spent / sent:.0f} ns/byte, peak {peak / 2**20:.0f} MiB")
    counted = worker.counters.total()
    more = {"requests_proven": others, "requests_observed": others}
    expected = {key: value + more.get(key, 0) for key, value in attack.counted.items()}
    assert {key: counted[key] for key in expected} == expected
    for key, value in attack.at_least.items():
        assert counted[key] >= value, key
    assert peak < attack.peak
    with closing(open_store(str(tmp_path / "s"))) as store:
        rows = store.signatures()
        assert {str(row.signature): row.hits for row in rows}[GOOD] == others
        assert len(rows) <= MOST_ROWS


def test_the_page_names_every_attack_and_no_other() -> None:
    page = (ROOT / "docs" / "limits.md").read_text()
    assert re.findall(r"`test_hostile\[([a-z-]+)\]`", page) == list(ATTACKS)
