"""Bytes as a script of what happens to a flow, so that a fuzzer can mutate it, and back.

One instruction: an operation byte, then what it needs. Any bytes are a script; what is cut off is left out.

    low three bits   0, 1, 2   the client sent bytes: length u16 (big endian), bytes
                     3, 4      the server did
                     5         a gap: bit 3 is the side, length u8
                     6         EOF: bit 3 is the side
                     7         closed
    bits 4 and 5     the flow, where there are several
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from capture.wire.events import Side
from tests.support.wire_feed import Step


def steps(script: bytes) -> Iterator[tuple[int, Step]]:
    """(flow, step) for each instruction."""
    at, end = 0, len(script)
    while at < end:
        op = script[at]
        at += 1
        side, flow, what = Side(op >> 3 & 1), op >> 4 & 3, op & 7
        if what < 5:
            size = int.from_bytes(script[at : at + 2], "big")
            at += 2
            if data := script[at : at + size]:
                yield flow, ("data", Side.CLIENT if what < 3 else Side.SERVER, data)
            at += size
        elif what == 5:
            if at < end:
                yield flow, ("gap", side, script[at])
            at += 1
        elif what == 6:
            yield flow, ("eof", side)
        else:
            yield flow, ("close",)


def script(flow: Iterable[Step], number: int = 0) -> bytes:
    """The script of one flow."""
    out = bytearray()
    for step in flow:
        if step[0] == "data":
            for at in range(0, len(step[2]), 0xFFFF):
                part = step[2][at : at + 0xFFFF]
                out += bytes([(0 if step[1] == Side.CLIENT else 3) | number << 4]) + len(part).to_bytes(2, "big") + part
        elif step[0] == "gap":
            out += bytes([5 | step[1] << 3 | number << 4, min(step[2], 255)])
        elif step[0] == "eof":
            out += bytes([6 | step[1] << 3 | number << 4])
        else:
            out += bytes([7 | number << 4])
    return bytes(out)
