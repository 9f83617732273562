"""Start a child that dies with its parent: ``python launch.py PARENT_PID COMMAND...``.

PR_SET_PDEATHSIG survives execve, so any program can be started this way; a supervisor that is killed leaves no relay
and no worker behind. Imports nothing of the project and runs under ``python -I -S``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

#: <linux/prctl.h>
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Exec the command, or exit 1 if the parent is already gone."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    # The parent may have died before the call.
    if os.getppid() != parent:
        sys.exit(1)
    # The supervisor decides when a child ends; a terminal or an init system may signal the whole group. Survives exec.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    os.execv(command[0], command)  # noqa: S606 - the command is the supervisor's


if __name__ == "__main__":
    main()
