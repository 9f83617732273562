"""Libraries for LD_PRELOAD that make a slow disk and a clock that jumps, where neither can be had for real: a test must
not set the machine's clock."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

#: Writing to regular files takes 50 ms a call, flushing 200 ms. The tap and the connections are sockets.
SLOW_DISK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/types.h>
#include <unistd.h>
#define SLOW(type, name, args, pass, us) type name args { \\
    static type (*next) args; if (!next) next = dlsym(RTLD_NEXT, #name); usleep(us); return next pass; }
SLOW(ssize_t, pwrite64, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), 50000)
SLOW(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), 50000)
SLOW(int, fsync, (int fd), (fd), 200000)
SLOW(int, fdatasync, (int fd), (fd), 200000)
"""
#: CLOCK_REALTIME and time() are shifted by the seconds in the file CLOCK_OFFSET.
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <stdio.h>
#include <time.h>
static long offset(void) {
    const char *path = getenv("CLOCK_OFFSET"); long seconds = 0; FILE *file = path ? fopen(path, "r") : 0;
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds; }
int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*next)(clockid_t, struct timespec *); if (!next) next = dlsym(RTLD_NEXT, "clock_gettime");
    int status = next(id, at); if (id == CLOCK_REALTIME && !status) at->tv_sec += offset(); return status; }
"""


def build(source: str, directory: Path, name: str) -> str:
    """Compile; the path of the library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (directory / f"{name}.c").write_text(source)
    library = directory / f"{name}.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(directory / f"{name}.c"), "-ldl"]
    subprocess.run(command, check=True)
    return str(library)
