"""Waiting for what must happen, without a word about how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

#: Seconds after which a test gives up on something that must happen. Far above what any needs: nothing is timed here.
PATIENCE = 120.0


def until(condition: Callable[[], Any], what: str = "condition") -> Any:
    """Poll where no event exists; the value of the condition once it is true."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.002)
    raise AssertionError(f"{what}: not within {PATIENCE} s")
