"""A capture worker that only reads the tap and insists on its law: offset = start + data + gaps."""

from __future__ import annotations

import argparse
import socket
import sys

import msgspec

from capture import tap
from capture.config import WorkerConfig
from capture.counters import Counters


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("tap", "counters", "config"):
        parser.add_argument(f"--{name}-fd", type=int, required=True)
    parser.add_argument("--pair", type=int, default=0)
    parser.add_argument("--state-fd")  # not used: it gets a tap of its own at each start
    parser.add_argument("--status-fd")  # nor this
    options = parser.parse_args()
    with open(options.config_fd, "rb") as file:
        msgspec.json.decode(file.read(), type=WorkerConfig)
    counters = Counters(options.counters_fd, options.pair)
    reader = tap.TapReader(socket.socket(fileno=options.tap_fd), counters.slots)
    counters.add("worker_ready")
    position: dict[tuple[int, int], int] = {}
    while (frames := reader.read()) is not None:
        for kind, flow, offset, payload in frames:
            if kind == tap.OPEN:
                opened = msgspec.json.decode(payload, type=tap.FlowOpen)
                position[flow, tap.CLIENT] = opened.client_start
                position[flow, tap.SERVER] = opened.server_start
            elif kind == tap.GAP:
                for side, lost in zip((tap.CLIENT, tap.SERVER), tap.GAP_PAYLOAD.unpack(payload), strict=True):
                    position[flow, side] += lost
            elif kind in (tap.CLIENT, tap.SERVER):
                if position[flow, kind] != offset:
                    sys.exit(f"flow {flow}: {position[flow, kind]} bytes before offset {offset}")
                position[flow, kind] += len(payload)
            elif kind == tap.CLOSED:
                del position[flow, tap.CLIENT], position[flow, tap.SERVER]


if __name__ == "__main__":
    main()
