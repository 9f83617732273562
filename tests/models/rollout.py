"""A model whose second version differs from the first: it drops one output, adds one, and adds an input that has a
default.

Run as a script (``python -m tests.models.rollout DIR VERSION``), in a process of its own.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path


def build(directory: str | Path, version: int = 1) -> Path:
    """Write ``directory/<version>`` and return it. ``serving_default``: x DT_FLOAT [None, 3] to ``sum`` and ``double``;
    version 1 has ``old`` besides; later ones ``new`` instead, and ``scale``, whose default is 2."""
    import tensorflow.compat.v1 as tf

    path = Path(directory) / str(version)
    shutil.rmtree(path, ignore_errors=True)
    info = tf.saved_model.build_tensor_info
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.float32, [None, 3], name="x")
        inputs = {"x": x}
        outputs = {"sum": tf.reduce_sum(x, axis=1), "double": x * 2.0}
        if version == 1:
            outputs["old"] = tf.reduce_max(x, axis=1)
        else:
            inputs["scale"] = tf.placeholder(tf.float32, [], name="scale")
            outputs["new"] = x * inputs["scale"]
        signature = tf.saved_model.build_signature_def(
            {name: info(tensor) for name, tensor in inputs.items()},
            {name: info(tensor) for name, tensor in outputs.items()},
            "tensorflow/serving/predict",
        )
        if version != 1:
            signature.defaults["scale"].CopyFrom(tf.make_tensor_proto(2.0))
        builder = tf.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map={"serving_default": signature})
        builder.save()
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the model of a rollout as a SavedModel.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("version", type=int, nargs="?", default=1)
    options = parser.parse_args()
    print(build(options.directory, options.version))


if __name__ == "__main__":
    main()
