"""Messages between a process and its child over pipes: a line of JSON, and behind it bytes as they are.

Nothing but the standard library: the child may be the interpreter of another environment.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO, Any


def write(stream: IO[bytes], head: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """One message, flushed. Raises BrokenPipeError when nobody reads."""
    line = json.dumps({**head, "sizes": [len(blob) for blob in blobs]}, separators=(",", ":"))
    stream.write(line.encode() + b"\n" + b"".join(blobs))
    stream.flush()


def read(stream: IO[bytes]) -> tuple[dict[str, Any], list[bytes]] | None:
    """The next message; None where the stream ends, be it in the middle of one."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    head: dict[str, Any] = json.loads(line)
    blobs: list[bytes] = []
    for size in head.pop("sizes"):
        blobs.append(stream.read(size))
        if len(blobs[-1]) < size:
            return None
    return head, blobs
