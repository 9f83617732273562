"""The load: wrk for HTTP/1.1, h2load for gRPC. Both say how many answers came whole and how many went wrong."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

#: wrk cannot hold a rate, but each connection can wait between answer and next request.
_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/octet-stream"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
{pace}
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("done %d failed %d\\n", summary.requests, e.connect + e.read + e.write + e.status + e.timeout))
end
"""
_PACE = "function delay() return math.random(0, {longest}) end"


class Load(NamedTuple):
    """What came of it. ``in_flight``: requests at most that were begun and cut off when the time was up."""

    completed: int
    failed: int
    in_flight: int


class LoadError(Exception):
    """The tool did not run; one line."""


def _run(command: Sequence[str], core: int, timeout: float) -> str:
    done = subprocess.run(
        ["taskset", "-c", str(core), *command], capture_output=True, text=True, timeout=timeout, check=False
    )
    if done.returncode:
        raise LoadError(f"{command[0]}: exit status {done.returncode}: {(done.stderr or done.stdout).strip()[-200:]}")
    return done.stdout


def http(url: str, body: Path, *, connections: int, rate: float, seconds: float, core: int, scratch: Path) -> Load:
    """POSTs over kept connections, some ``rate`` a second; 0 is as fast as it goes."""
    pace = _PACE.format(longest=round(2000 * connections / rate)) if rate else ""
    script = scratch / "load.lua"
    script.write_text(_SCRIPT.format(body=body, pace=pace))
    out = _run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "-s", str(script), url],
        core,
        seconds + 60,
    )
    found = re.search(r"done (\d+) failed (\d+)", out)
    if found is None:
        raise LoadError(f"wrk: no summary in {out[-200:]!r}")
    return Load(int(found[1]), int(found[2]), connections)


def grpc(url: str, message: Path, *, connections: int, streams: int, rate: float, seconds: float, core: int) -> Load:
    """Unary calls, exactly ``rate * seconds`` of them. ``message`` holds one length-prefixed message."""
    calls = round(rate * seconds / connections) * connections
    out = _run(
        [
            "h2load",
            *("-n", str(calls), "-c", str(connections), "-m", str(streams), "--rps", f"{rate / connections:g}"),
            *("-d", str(message), "-H", "content-type: application/grpc", "-H", "te: trailers", url),
        ],
        core,
        seconds + 60,
    )
    done = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", out)
    if done is None:
        raise LoadError(f"h2load: no summary in {out[-200:]!r}")
    succeeded, *wrong = map(int, done.groups())
    return Load(succeeded, sum(wrong) + calls - succeeded, 0)
