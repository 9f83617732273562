"""Opens a SavedModel on the best executor that this machine can have."""

from __future__ import annotations

import os
from collections.abc import Sequence

from replay.executor import build
from replay.executor.api import Executor, Level
from replay.executor.native import NativeExecutor

SERVE = ("serve",)


def open_executor(
    saved_model_dir: str | os.PathLike[str],
    *,
    tags: Sequence[str] = SERVE,
    level: Level | None = None,
    libraries: Sequence[str] = (),
) -> Executor:
    """Load the MetaGraph with exactly these tags, as TF Serving does.

    ``level`` asks for one implementation; None takes ``executor`` and falls back to ``runs`` (the C API, without
    counts) when there is no working C++ compiler, with the reason in ``note``. ``libraries`` are shared objects with
    custom ops. Raises ExecutorError, one line: no SavedModel there, it does not load, no such tags, TensorFlow missing;
    with ``level="executor"`` also if the compiler is missing or fails.
    """
    if level != "runs":
        try:
            return NativeExecutor(saved_model_dir, tags=tags, shim=build.shim_path(), libraries=libraries)
        except build.CompilerError as error:
            if level == "executor":
                raise
            note = f"{error}; running through TensorFlow's C API, graph builds are not counted"
    else:
        note = "asked to run through TensorFlow's C API; graph builds are not counted"
    from replay.executor.fallback import FallbackExecutor

    return FallbackExecutor(saved_model_dir, tags=tags, libraries=libraries, note=note)
