"""``capture`` as a container of docker-compose.yml runs it: another user without capabilities, and a root file system
that is read-only but for one directory. ``python -m tests.support.confined DIRECTORY USER WORDS...``; needs root. The
program is this repository's, or that of the interpreter that IMAGE_PYTHON names (``make images``)."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from tests.support.processes import ROOT

#: <linux/sched.h>
CLONE_NEWNS: Final = 0x00020000
#: <linux/prctl.h>
PR_SET_MDWE: Final = 65
PR_MDWE_REFUSE_EXEC_GAIN: Final = 1
#: The kernel's own; a container has them writable as well.
KERNEL: Final = ("/proc", "/sys", "/dev/pts", "/dev/mqueue")


def open_up(needed: set[Path]) -> None:
    """Let others reach these directories, where one above them (/root, for one) lets only its owner in."""
    held = {path: os.open(path, os.O_PATH) for path in needed}
    for path, fd in held.items():
        for above in reversed(path.parents):
            if path.exists() and not above.stat().st_mode & stat.S_IXOTH:
                subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(above)], check=True)
        if not path.exists():
            path.mkdir(parents=True)
            bind = ["mount", "--no-canonicalize", "--bind", f"/proc/self/fd/{fd}", str(path)]
            subprocess.run(bind, check=True, pass_fds=[fd])


def main() -> None:
    """Exec the command, or exit 1."""
    directory, user, *words = sys.argv[1:]
    # Not below a directory that is about to be covered.
    os.chdir("/")
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    program = os.environ.get("IMAGE_PYTHON")
    needed = (sys.base_prefix, sys.prefix, msgspec.__path__[0], ROOT) if program is None else (sys.base_prefix,)
    open_up({Path(one).resolve() for one in needed})
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    for line in Path("/proc/self/mounts").read_text().splitlines():
        mounted = line.split()[1]
        if mounted != directory and not any(f"{mounted}/".startswith(f"{one}/") for one in KERNEL):
            subprocess.run(["mount", "-o", "remount,bind,ro", mounted], check=mounted == "/", stderr=subprocess.DEVNULL)
    os.chdir(directory)
    # As under MemoryDenyWriteExecute= of config/systemd/warmtap.service, where the kernel can (Linux 6.3).
    ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    command += ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", program or sys.executable]
    if program is not None:
        command.append("-P")
        os.environ.pop("PYTHONPATH", None)
    command += ["-m", "capture", *words]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
