"""Real SavedModels for tests, built once in processes of their own and kept between runs.

The key is the source that builds them and the installed TensorFlow: nothing stale is ever served.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import shutil
import tempfile
from pathlib import Path

from replay import tf_protos
from tests.support.processes import ROOT
from tests.support.tf_fork import run_forked


def saved_model(cache: Path, kind: str, version: int = 1, *arguments: str) -> Path:
    """``<cache>/<kind>-<key>/<kind>/<version>``, a version directory; ``kind`` is a module of ``tests.models``.

    ``arguments`` go to that module's command line. Treat the result as read-only: other tests share it.
    """
    source = importlib.import_module(f"tests.models.{kind}").__file__
    assert source is not None
    library = (tf_protos.wheel_directory() / "libtensorflow_framework.so.2").stat()
    key = hashlib.sha256(
        Path(source).read_bytes() + repr((arguments, library.st_size, library.st_mtime_ns)).encode()
    ).hexdigest()[:12]
    base = cache / f"{kind}-{key}"
    target = base / kind / str(version)
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as work:
                done = run_forked(["-m", f"tests.models.{kind}", work, str(version), *arguments], cwd=ROOT)
                assert done.returncode == 0, done.stderr
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(work) / str(version), target)
    return target


def private_copy(version_dir: Path, base: Path, version: int = 1) -> Path:
    """A copy of a version directory that a test may write to: ``<base>/<model>/<version>``."""
    target = base / version_dir.parent.name / str(version)
    shutil.copytree(version_dir, target)
    return target
