"""CPU time of processes, and the cores they run on. Linux."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

NANOSECONDS = 1_000_000_000


def family(pid: int) -> list[int]:
    """A process and all that it started, and they started, and still run."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, look = [], [pid]
    while look:
        one = look.pop()
        found.append(one)
        look += children.get(one, [])
    return found


def seconds(pids: Iterable[int]) -> float:
    """CPU time that the threads of these processes have had, from the scheduler (nanoseconds; ``stat`` has 10 ms).

    A thread that ended is missing: take two looks while the same threads live. The relay and nginx have one.
    """
    spent = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            spent += int((task / "schedstat").read_text().split()[0])
    return spent / NANOSECONDS


def pin(pids: Iterable[int], core: int) -> None:
    """Keep all threads of these processes on one core; on a machine with one there is nothing to do."""
    if (os.cpu_count() or 1) < 2:
        return
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {core})
