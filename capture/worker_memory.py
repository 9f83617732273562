"""What the capture worker's process may take, and how it gives back.

A worker with a defect must hit a limit of its own before it hits the container's: there one out-of-memory kill ends
every process of the container, the relay with it (Kubernetes 1.28 and later set ``memory.oom.group`` on cgroup v2).
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import resource
from pathlib import Path
from typing import Final

log = logging.getLogger("worker")

#: The kernel's choice when memory runs out falls on this process first (man 5 proc: oom_score_adj, -1000 to 1000).
OOM_SCORE: Final = 1000
#: Parameter of mallopt (malloc.h of glibc).
_M_ARENA_MAX: Final = -8
#: Allocations between two looks for cycles; and how many of the young and of the older ones between two of the next.
#: What is built for a request has none.
_GC_THRESHOLDS: Final = (20_000, 20, 50)
_PAGE: Final = os.sysconf("SC_PAGESIZE")


def one_arena() -> None:
    """Let all threads share one heap: each arena of its own takes 64 MiB of address space, and what one thread frees
    there no other can use. Does nothing where the C library is not glibc.

    The threshold above which a block is mapped by itself is left to glibc: held at 256 KiB, resident memory under
    bodies of megabytes was half (50 MB, not 100), and each megabyte cost 1 ms of CPU more.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_ARENA_MAX, 1)


def seldom_collect() -> None:
    """Look for cycles seldom, and never among what is there by now: modules and what they hold."""
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def trim() -> None:
    """Give free pages of the heap back to the system, where the C library can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def limit_address_space(size: int) -> None:
    """RLIMIT_AS: an allocation beyond ``size`` bytes fails, in Python with MemoryError. A limit that is lower already
    stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(size, *known) if known else size, hard))


def offer_to_the_oom_killer(path: Path = Path("/proc/self/oom_score_adj")) -> None:
    """Be the first to go when the container's memory runs out. Raising the score needs no privilege; where it cannot be
    raised that is said once."""
    try:
        path.write_text(str(OOM_SCORE))
    except OSError as error:
        log.warning("oom_score_adj cannot be raised", extra={"fields": {"path": path, "error": error.strerror}})


def resident_bytes() -> int:
    """Resident memory of this process, in bytes."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE
