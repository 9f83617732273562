"""Compiles ``shim.cc`` against the installed TensorFlow wheel, once, into the user's cache directory.

The result is named after everything it depends on, so a stale one is never loaded. It appears by rename: a process that
dies while compiling leaves nothing behind that another would load.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

from replay import tf_protos
from replay.executor.api import ExecutorError, one_line

COMPILERS = ("g++", "c++", "clang++")
LIBRARY = "libtensorflow_cc.so.2"
#: Seconds a compiler may take: 5 to 20 on the slowest machine seen.
COMPILE_TIMEOUT = 600


class CompilerError(ExecutorError):
    """No C++ compiler, or it failed: the executor cannot be had, the C API still can."""


def shim_path() -> Path:
    """The compiled shim; compiled now if it is not in the cache.

    Raises CompilerError if there is no compiler or it fails, ExecutorError if TensorFlow or its C++ library is missing
    or the cache directory cannot be used.
    """
    try:
        # Resolved: a wheel that is reached by two paths is one, and needs one shim.
        wheel = tf_protos.wheel_directory().resolve()
    except tf_protos.TensorFlowMissing as error:
        raise ExecutorError(str(error)) from None
    library = wheel / LIBRARY
    if not library.is_file():
        raise CompilerError(f"{library} is missing: this TensorFlow has no C++ library to link with")
    source = (resources.files("replay.executor") / "shim.cc").read_bytes()
    status = library.stat()
    key = hashlib.sha256(
        b"\0".join([source, str(library).encode(), f"{status.st_size} {status.st_mtime_ns}".encode()])
    ).hexdigest()[:24]
    directory = cache_directory()
    target = directory / f"shim-{key}.so"
    if not _usable(target):
        # One compiler at a time: several processes often start together, and each run takes a core for ten seconds.
        try:
            with open(directory / "lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _usable(target):
                    _compile(source, wheel, target)
        except OSError as error:
            remedy = "set XDG_CACHE_HOME to a writable directory"
            raise ExecutorError(f"{error.filename or directory}: {error.strerror}; {remedy}") from None
    return target


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/warmtap`` (else ``~/.cache/warmtap``), created with mode 0700.

    Raises ExecutorError if it cannot be created or others could write to it: code is loaded from it.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    directory = Path(root if os.path.isabs(root) else os.path.expanduser("~/.cache")) / "warmtap"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise ExecutorError(f"{directory}: {error.strerror}; set XDG_CACHE_HOME to a writable directory") from None
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ExecutorError(f"{directory}: others may write to it; it must belong to you with mode 0700")
    return directory


def _usable(target: Path) -> bool:
    try:
        status = target.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def _compiler() -> str:
    wanted = os.environ.get("CXX", "")
    for name in (wanted, *COMPILERS):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise CompilerError("no C++ compiler (g++, c++ or clang++) on PATH")


def tensorflow_flags() -> tuple[list[str], list[str]]:
    """The compile and link flags of the installed TensorFlow, by its own account (``tf.sysconfig``).

    Asked in a process of its own, because importing TensorFlow here would cost its start-up time and memory for good.
    """
    script = (
        "import json, tensorflow as tf; "
        "print('FLAGS' + json.dumps([tf.sysconfig.get_compile_flags(), tf.sysconfig.get_link_flags()]))"
    )
    done = subprocess.run(
        # -P: a folder named tensorflow in the current directory is not the one that is meant.
        [sys.executable, "-P", "-c", script],
        capture_output=True,
        text=True,
        timeout=COMPILE_TIMEOUT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    line = next((text for text in done.stdout.splitlines() if text.startswith("FLAGS")), None)
    if done.returncode != 0 or line is None:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise CompilerError(f"TensorFlow does not import: {last[0].strip()}")
    compile_flags, link_flags = json.loads(line.removeprefix("FLAGS"))
    return compile_flags, link_flags


def _compile(source: bytes, wheel: Path, target: Path) -> None:
    compiler = _compiler()
    compile_flags, link_flags = tensorflow_flags()
    with tempfile.TemporaryDirectory(prefix="build-", dir=target.parent) as work:
        code = Path(work) / "shim.cc"
        code.write_bytes(source)
        result = Path(work) / "shim.so"
        command = [compiler, "-w", "-O1", "-shared", "-fPIC", "-o", str(result), str(code)]
        command += [*compile_flags, *link_flags, f"-l:{LIBRARY}", f"-Wl,-rpath,{wheel}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompilerError(f"{compiler}: {error}") from None
        if done.returncode != 0 or not result.is_file():
            errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            reason = one_line("\n".join(errors or [done.stderr])) or f"exit status {done.returncode}"
            raise CompilerError(f"{compiler} failed: {reason}")
        os.chmod(result, 0o700)
        os.replace(result, target)
