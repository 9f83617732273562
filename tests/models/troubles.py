"""A SavedModel of what makes names insufficient: XLA, convolutions, in-graph batching, state that a run changes.

Run as a script (``python -m tests.models.troubles DIR VERSION``), in a process of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def build(directory: str | Path, version: int = 1) -> Path:
    """Write ``directory/<version>`` and return it. A signature of x DT_FLOAT for each trouble: ``compiled``,
    ``convolves`` ([None, 8, 8, 3]), ``batches``, ``counts`` (a variable), ``learns`` (a hash table), ``draws``; and
    ``plain`` without any."""
    import tensorflow as tf

    class Troubles(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.count = tf.Variable(0.0)
            self.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, 0.0)

    model = Troubles()
    row = tf.TensorSpec([None, 3], tf.float32, name="x")
    scalar = tf.TensorSpec([], tf.int32, name="k")
    compiled = tf.function(lambda x, k: tf.math.top_k(x, k).values, jit_compile=True)

    @tf.nondifferentiable_batch_function(1, 8, 10, allowed_batch_sizes=[2, 8])  # type: ignore[untyped-decorator, unused-ignore]
    def batched(x: Any) -> Any:
        return x * 2.0

    def learns(x: Any) -> Any:
        model.table.insert(tf.strings.as_string(x[:, 0]), x[:, 1])
        return x

    def signature(function: Any, *specs: Any) -> Any:
        return tf.function(lambda *inputs: {"y": function(*inputs)}, input_signature=specs)

    signatures = {
        "plain": signature(lambda x: x + 1.0, row),
        "compiled": signature(compiled, row, scalar),
        "convolves": signature(
            lambda x: tf.nn.conv2d(x, tf.ones([3, 3, 3, 1]), 1, "SAME"), tf.TensorSpec([None, 8, 8, 3], name="x")
        ),
        "batches": signature(batched, row),
        "counts": signature(lambda x: x + model.count.assign_add(1.0), row),
        "learns": signature(learns, row),
        "draws": signature(lambda x: x + tf.random.uniform([3]), row),
    }
    path = Path(directory) / str(version)
    tf.saved_model.save(model, str(path), signatures=signatures)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the model of troubles as a SavedModel.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("version", type=int, nargs="?", default=1)
    options = parser.parse_args()
    print(build(options.directory, options.version))


if __name__ == "__main__":
    main()
