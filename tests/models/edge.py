"""A SavedModel of corner cases: shared tensors, defaults, every dtype, classify and regress, a run that fails.

Run as a script (``python -m tests.models.edge DIR VERSION``), in a process of its own.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

#: dtypes that both protocols carry, by the input alias of signature ``types``.
TYPES = (
    "float32",
    "float64",
    "int32",
    "uint8",
    "int16",
    "int8",
    "string",
    "complex64",
    "int64",
    "bool",
    "bfloat16",
    "uint16",
    "complex128",
    "float16",
)


def build(directory: str | Path, version: int = 1) -> Path:
    """Write ``directory/<version>`` and return it.

    ``serving_default``: x DT_FLOAT [None, 3] to sum [None] and double [None, 3]. ``aliases``: the same x to ``a`` and
    ``b``, which are one tensor, and ``c``. ``with_default``: x and ``scale``, which has a default of 2.
    ``types``: one input [None] of each of TYPES, returned as it is. ``checked``: x to ``positive``, fails where x is
    negative. ``classify``, ``regress``: ``inputs`` DT_STRING [None] of tf.Example with a float feature ``x``.
    """
    import tensorflow.compat.v1 as tf

    path = Path(directory) / str(version)
    shutil.rmtree(path, ignore_errors=True)
    info = tf.saved_model.build_tensor_info
    define = tf.saved_model.build_signature_def
    predict = "tensorflow/serving/predict"
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.float32, [None, 3], name="x")
        scale = tf.placeholder(tf.float32, [], name="scale")
        total = tf.reduce_sum(x, axis=1, name="total")
        double = tf.multiply(x, 2.0, name="twice")
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, message="x must not be negative")]):
            positive = tf.identity(x, name="positive")
        typed = {name: tf.placeholder(tf.dtypes.as_dtype(name), [None], name=f"in_{name}") for name in TYPES}
        returned = {name: tf.identity(tensor, name=f"out_{name}") for name, tensor in typed.items()}
        examples = tf.placeholder(tf.string, [None], name="examples")
        parsed = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
        scores = tf.concat([parsed, 1.0 - parsed], axis=1, name="scores")
        classes = tf.tile(tf.constant([["yes", "no"]]), [tf.shape(examples)[0], 1], name="classes")
        inputs = {"x": info(x)}
        with_default = define(
            {"x": info(x), "scale": info(scale)}, {"scaled": info(tf.multiply(x, scale, name="scaled"))}, predict
        )
        with_default.defaults["scale"].CopyFrom(tf.make_tensor_proto(2.0))
        signatures: dict[str, Any] = {
            "serving_default": define(inputs, {"sum": info(total), "double": info(double)}, predict),
            "aliases": define(inputs, {"a": info(total), "b": info(total), "c": info(double)}, predict),
            "with_default": with_default,
            "types": define(
                {name: info(tensor) for name, tensor in typed.items()},
                {name: info(tensor) for name, tensor in returned.items()},
                predict,
            ),
            "checked": define(inputs, {"positive": info(positive)}, predict),
            "classify": define(
                {"inputs": info(examples)},
                {"classes": info(classes), "scores": info(scores)},
                "tensorflow/serving/classify",
            ),
            "regress": define({"inputs": info(examples)}, {"outputs": info(parsed)}, "tensorflow/serving/regress"),
        }
        builder = tf.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
        builder.save()
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the corner-case model as a SavedModel.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("version", type=int, nargs="?", default=1)
    options = parser.parse_args()
    print(build(options.directory, options.version))


if __name__ == "__main__":
    main()
