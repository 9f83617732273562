"""``make bench``: CPU per request of relay and worker against nginx and a proxy written by hand with aiohttp.

All contenders run at once and are measured in turn, round by round; the core that they are on is theirs, load and
origin have another. A round counts only if every answer came, and with capture only if every request was hashed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from capture.schema.wire import length_delimited
from tests.bench import cpu, load
from tests.bench.contenders import Contender, Ports, aiohttp_proxy, nginx, origin, warmtap
from tests.bench.report import Measured, summarise, table, verdict
from tests.support import calls
from tests.support.certificates import Authority

TOOLS: Final = {"wrk": "wrk", "h2load": "nghttp2-client", "nginx": "nginx", "taskset": "util-linux"}
BODY_BYTES: Final = 10_240
RATE: Final = 2000.0
CONNECTIONS: Final = 32
GRPC_CONNECTIONS, GRPC_STREAMS = 8, 16
PATH: Final = "/api/predict/ranking"
METHOD: Final = "/tensorflow.serving.PredictionService/Predict"

Run = Callable[[Contender], load.Load]


def payload(encode: Callable[[int], bytes]) -> bytes:
    """A request body of BODY_BYTES or a few less."""
    size = BODY_BYTES
    while len(body := encode(size)) > BODY_BYTES:
        size -= len(body) - BODY_BYTES
    return body


def scenarios(scratch: Path, seconds: float, core: int) -> dict[str, tuple[str, Run]]:
    """Name to the port that it uses and how it is run."""
    body, message = scratch / "body", scratch / "message"
    body.write_bytes(payload(lambda size: calls.eas({"x": [1.0] * (size // 4)})))
    call = payload(lambda size: calls.predict({"x": (1, (size // 4,))}, fill=bytes(size)))
    message.write_bytes(b"\0" + len(call).to_bytes(4, "big") + call)

    def post(rate: float, scheme: str = "http") -> Run:
        return lambda contender: load.http(
            f"{scheme}://127.0.0.1:{getattr(contender.ports, scheme)}{PATH}",
            body,
            connections=CONNECTIONS,
            rate=rate,
            seconds=seconds,
            core=core,
            scratch=scratch,
        )

    def unary(contender: Contender) -> load.Load:
        return load.grpc(
            f"http://127.0.0.1:{contender.ports.grpc}{METHOD}",
            message,
            connections=GRPC_CONNECTIONS,
            streams=GRPC_STREAMS,
            rate=RATE,
            seconds=seconds,
            core=core,
        )

    return {
        f"10 KB POST, {RATE:.0f}/s": ("http", post(RATE)),
        f"10 KB gRPC Predict, {RATE:.0f}/s": ("grpc", unary),
        "10 KB POST, as fast as it goes": ("http", post(0.0)),
        f"10 KB POST over TLS, {RATE:.0f}/s": ("https", post(RATE, "https")),
        "10 KB POST over TLS, as fast as it goes": ("https", post(0.0, "https")),
    }


def measure(scenario: str, run: Run, contender: Contender, number: int) -> Measured:
    """One contender, one round."""
    contender.begin()
    before, began = contender.parts(), time.monotonic()
    got = run(contender)
    seconds = time.monotonic() - began
    fault = contender.faults(got.completed, got.in_flight)
    if got.failed or not got.completed:
        fault = f"{got.failed} requests failed of {got.completed}"
    # With capture this is after the last request was hashed.
    spent = {part: value - before[part] for part, value in contender.parts().items()}
    return Measured(scenario, contender.name, number, got.completed, seconds, spent, fault)


def bench(rounds: int, seconds: float, scratch: Path) -> list[Measured]:
    """All scenarios. The order of the contenders changes from round to round."""
    theirs, ours = (0, 1) if (os.cpu_count() or 1) > 1 else (0, 0)
    answer = calls.predict_response(7, "m")
    own = Authority(scratch).issue("proxy")
    measured: list[Measured] = []
    with contextlib.ExitStack() as stack:
        to: Ports = stack.enter_context(
            origin(scratch, length_delimited(1, b""), b"\0" + len(answer).to_bytes(4, "big") + answer, ours)
        )
        contenders = [
            stack.enter_context(nginx(scratch, to, own)),
            stack.enter_context(warmtap(scratch, to, own, captures=False)),
            stack.enter_context(warmtap(scratch, to, own, captures=True)),
            stack.enter_context(aiohttp_proxy(to)),
        ]
        for contender in contenders:
            cpu.pin(contender.pids, theirs)
        for scenario, (kind, run) in scenarios(scratch, seconds, ours).items():
            # At full speed a worker on the relay's core gets what is left of it: nothing to compare.
            flat_out = "as fast" in scenario
            taking_part = [
                one
                for one in contenders
                if getattr(one.ports, kind) and not (flat_out and one.name == "relay + worker")
            ]
            for one in taking_part:
                measure(scenario, run, one, -1)  # warm
            for number in range(rounds):
                turn = number % len(taking_part)
                for one in taking_part[turn:] + taking_part[:turn]:
                    measured.append(measure(scenario, run, one, number))
                print(f"{scenario}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return measured


def main() -> int:
    """Exit status: 0 as promised, 1 not, 2 a tool is missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of load, for each contender and round")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    options = parser.parse_args()
    if missing := [tool for tool in TOOLS if shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin") is None]:
        packages = " ".join(TOOLS[tool] for tool in missing)
        print(f"bench: missing: {', '.join(missing)}; on Debian: apt-get install {packages}", file=sys.stderr)
        return 2
    options.out.mkdir(exist_ok=True)
    began = time.time()
    try:
        with tempfile.TemporaryDirectory(prefix="warmtap-bench-") as scratch:
            measured = bench(options.rounds, options.seconds, Path(scratch))
    except load.LoadError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    summary = summarise(measured)
    wrong = verdict(summary)
    machine = {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    result = {
        "began": began,
        "machine": machine,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "summary": summary,
        "wrong": wrong,
        "measured": [one._asdict() for one in measured],
    }
    (options.out / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(summary))
    for line in wrong:
        print(f"NOT as promised: {line}")
    if not wrong:
        print(f"As promised: the relay alone costs no more than nginx. All figures: {options.out}/bench.json")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
