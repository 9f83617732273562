"""A SavedModel that XLA compiles (jit_compile): its executors depend on names, its compilations on shapes and values.

Run as a script (``python -m tests.models.compiled DIR VERSION``), in a process of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

WIDTH = 8  #: width of ``x``


def build(directory: str | Path, version: int = 1) -> Path:
    """Write ``directory/<version>`` and return it.

    ``serving_default``: x DT_FLOAT [batch, WIDTH] to y DT_FLOAT [batch, WIDTH]. ``top``: x, and k DT_INT32 [], to
    values DT_FLOAT [batch, k]: k must be known when it is compiled.
    """
    import tensorflow as tf

    class Compiled(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable(tf.random.Generator.from_seed(3).normal([WIDTH, WIDTH]))

        @tf.function(jit_compile=True)  # type: ignore[untyped-decorator, unused-ignore]
        def hidden(self, x: Any) -> Any:
            return tf.nn.tanh(tf.matmul(x, self.weights))

        @tf.function(jit_compile=True)  # type: ignore[untyped-decorator, unused-ignore]
        def largest(self, x: Any, k: Any) -> Any:
            return tf.math.top_k(tf.matmul(x, self.weights), k=k).values

    model = Compiled()
    x = tf.TensorSpec([None, WIDTH], tf.float32, name="x")

    @tf.function(input_signature=[x])  # type: ignore[untyped-decorator, unused-ignore]
    def default(x: Any) -> dict[str, Any]:
        return {"y": model.hidden(x)}

    @tf.function(input_signature=[x, tf.TensorSpec([], tf.int32, name="k")])  # type: ignore[untyped-decorator, unused-ignore]
    def top(x: Any, k: Any) -> dict[str, Any]:
        return {"values": model.largest(x, k)}

    path = Path(directory) / str(version)
    tf.saved_model.save(model, str(path), signatures={"serving_default": default, "top": top})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the compiled model as a SavedModel.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("version", type=int, nargs="?", default=1)
    options = parser.parse_args()
    print(build(options.directory, options.version))


if __name__ == "__main__":
    main()
