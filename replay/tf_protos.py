"""TensorFlow's and TF Serving's own message classes, without the nine seconds of ``import tensorflow``.

The generated modules (``tensorflow.core.framework.tensor_pb2``, ...) need nothing but protobuf; only the package they
live in runs TensorFlow's start-up on import. :func:`load` therefore imports them under a bare package object that has
the wheel's path, and takes that object away again, so that a later real ``import tensorflow`` still works.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
import types
from pathlib import Path
from typing import Any

from capture.errors import UserError

_lock = threading.Lock()


class TensorFlowMissing(UserError):
    """TensorFlow is not installed in this environment."""


def wheel_directory() -> Path:
    """The directory of the installed ``tensorflow`` package, found without importing it.

    Raises TensorFlowMissing.
    """
    loaded = sys.modules.get("tensorflow")
    if loaded is not None and loaded.__spec__ is not None and loaded.__spec__.submodule_search_locations:
        return Path(loaded.__spec__.submodule_search_locations[0])
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or not spec.submodule_search_locations:
        raise TensorFlowMissing("TensorFlow is not installed here: pip install 'warmtap[tensorflow]'")
    return Path(spec.submodule_search_locations[0])


def load(module: str) -> Any:
    """One generated module by its full name, such as ``tensorflow_serving.apis.predict_pb2``.

    Raises TensorFlowMissing if TensorFlow is not installed, ModuleNotFoundError for an unknown module.
    """
    with _lock:
        if module in sys.modules:
            return sys.modules[module]
        if "tensorflow" in sys.modules:
            return importlib.import_module(module)
        bare = types.ModuleType("tensorflow")
        bare.__path__ = [str(wheel_directory())]
        sys.modules["tensorflow"] = bare
        try:
            return importlib.import_module(module)
        finally:
            # The packages go, the generated modules stay: they are registered in protobuf's pool once and for all.
            for name in [n for n in sys.modules if n == "tensorflow" or n.startswith("tensorflow.")]:
                if not name.endswith("_pb2"):
                    del sys.modules[name]
