"""Mixed traffic for long: memory stays flat. ``make soak`` runs it for ten minutes, the suite for less."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Start
from tests.faults.test_peers import resident
from tests.support.net_http import Load

pytestmark = pytest.mark.server
SECONDS = float(os.environ.get("SOAK_SECONDS", "20"))
#: Bytes a minute that a slope may be, over the second half of the run: one kilobyte leaked a connection would be tens
#: of megabytes. In a short run the allocator's steps are larger than that; it may grow by so many bytes in all.
SLOPE = 1 << 20
STEP = 8 << 20
WINDOWS = 10


def floor(samples: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """The least of each of some windows in the second half: what the tap's queue holds for a moment is no leak."""
    half = samples[len(samples) // 2 :]
    size = max(1, len(half) // WINDOWS)
    return [min(half[at : at + size], key=lambda sample: sample[1]) for at in range(0, len(half), size)]


def slope(samples: list[tuple[float, int]]) -> float:
    """Least squares, bytes a minute."""
    n = len(samples)
    mean_t, mean_v = sum(t for t, _ in samples) / n, sum(v for _, v in samples) / n
    below = sum((t - mean_t) ** 2 for t, _ in samples)
    return 60 * sum((t - mean_t) * (v - mean_v) for t, v in samples) / below


def test_memory_is_flat(start: Start) -> None:
    # What waits for a worker that gets no CPU is no leak: it stays well below STEP.
    front = start(tap={"buffer_bytes": 2 << 20})
    front.sidecar.wait_for("msg=reading")
    pids = {
        "relay": front.sidecar.pid("relay"),
        "worker": front.sidecar.pid("worker"),
        "supervisor": front.sidecar.process.pid,
    }
    samples: dict[str, list[tuple[float, int]]] = {name: [] for name in pids}
    stop = threading.Event()
    threading.Timer(SECONDS, stop.set).start()
    with front.unharmed() as kept, Load(front.port, keep_alive=False) as fresh:
        began, answered = time.monotonic(), kept.answered + fresh.answered
        number = 0
        while not stop.wait(0.5):
            number += 1
            front.call(tuple(f"n{number % 50}x{i}" for i in range(number % 5 + 1)))
            for name, pid in pids.items():
                samples[name].append((time.monotonic() - began, resident(pid)))
        answered = kept.answered + fresh.answered - answered
    assert not fresh.failures
    result = {
        name: {
            "first_bytes": found[0][1],
            "last_bytes": found[-1][1],
            "slope_bytes_per_minute": round(slope(floor(found))),
            "mebibytes": [round(value / 2**20, 1) for _, value in found[:: max(1, len(found) // 30)]],
        }
        for name, found in samples.items()
    }
    report = {"seconds": SECONDS, "requests": answered, "processes": result}
    out = Path(os.environ.get("SOAK_OUT", "faults-out"))
    out.mkdir(exist_ok=True)
    (out / "soak.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    for name, found in samples.items():
        grown = max(value for _, value in floor(found)) - floor(found)[0][1]
        assert slope(floor(found)) < SLOPE or grown < STEP, f"{name}: {result[name]}"
