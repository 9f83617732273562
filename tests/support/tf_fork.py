"""Programs that import TensorFlow, without the four seconds of a core that each import takes.

One process imports it, once in a run of the tests; each program gets a fork of that process, made before TensorFlow has
started a thread or gRPC a channel. So nothing that a program does is seen by the next.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Seconds after which a program is given up.
_TIMEOUT = 300.0
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.tf_loaded"])


def run_forked(
    arguments: Sequence[str], *, cwd: Path, stdin: str = "", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS``, which are ``-m MODULE ...`` or ``-c PROGRAM ...``, to its end; any exit status.

    ``env`` is the whole environment, as for a process of its own; what TensorFlow reads when it is imported is set.
    """
    with tempfile.TemporaryDirectory() as scratch:
        streams = [Path(scratch, name) for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(stdin)
        process = _context.Process(
            target=_run, args=(arguments, cwd, dict(os.environ if env is None else env), streams)
        )
        process.start()
        process.join(_TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(arguments), _TIMEOUT)
        status = process.exitcode
        process.close()
        return subprocess.CompletedProcess(list(arguments), status, *(path.read_text() for path in streams[1:]))


def _run(arguments: Sequence[str], cwd: Path, env: Mapping[str, str], streams: Sequence[Path]) -> None:
    """In the fork."""
    for fd, path in enumerate(streams):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, fd)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode) for fd, mode in enumerate("rww"))
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    kind, program, *rest = arguments
    sys.argv = [program if kind == "-m" else kind, *rest]
    sys.path[0] = str(cwd)
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
