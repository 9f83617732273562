"""Small SavedModels of different kinds, all written by one process: importing TensorFlow costs more than they do.

Run as a script (``python -m tests.models.kinds DIR VERSION``).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

WIDTH = 4  #: of every dense input, DT_FLOAT [batch, WIDTH]
TOKENS = ("red", "green", "blue")
IMAGE = 8  #: images are DT_FLOAT [batch, IMAGE, IMAGE, 3]


def build(directory: str | Path, version: int = 1) -> Path:
    """Write ``directory/<version>/<kind>`` for each kind, and return ``directory/<version>``."""
    path = Path(directory) / str(version)
    for kind in (tf2, tf1, lookup, jit, conv):
        kind(path / kind.__name__)
    return path


def tf2(path: Path) -> None:
    """``serving_default``: x to a [batch, 4] and b [batch]. ``pair``: x and y to sum and product."""
    import tensorflow as tf

    model = tf.Module()
    model.weights = tf.Variable(tf.ones([WIDTH, WIDTH]))

    def single(x: Any) -> dict[str, Any]:
        return {"a": tf.tanh(tf.matmul(x, model.weights)), "b": tf.reduce_sum(x, axis=1)}

    def pair(x: Any, y: Any) -> dict[str, Any]:
        return {"sum": x + y, "product": tf.matmul(x * y, model.weights)}

    _save(model, path, serving_default=_of(single, x=tf.float32), pair=_of(pair, x=tf.float32, y=tf.float32))


def tf1(path: Path) -> None:
    """As TensorFlow 1 wrote them, with a session, variables and a legacy builder: x to y and z, both [batch, 4]."""
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.float32, [None, WIDTH], name="x")
        weights = tf.get_variable("weights", [WIDTH, WIDTH], initializer=tf.ones_initializer())
        y = tf.matmul(x, weights, name="y")
        z = tf.nn.relu(y, name="z")
        session.run(tf.global_variables_initializer())
        tf.saved_model.simple_save(session, str(path), inputs={"x": x}, outputs={"y": y, "z": z})


def lookup(path: Path) -> None:
    """Strings through a vocabulary: ``serving_default``: token DT_STRING [batch] to embedding [batch, 4] and id.
    ``tokens``: id DT_INT64 [batch] to token, through another table."""
    import tensorflow as tf

    model = tf.Module()
    ids = tf.range(len(TOKENS), dtype=tf.int64)
    model.forward = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.constant(TOKENS), ids), -1)
    model.backward = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(ids, tf.constant(TOKENS)), "?")
    model.vectors = tf.Variable(tf.ones([len(TOKENS) + 1, WIDTH]))

    def embed(token: Any) -> dict[str, Any]:
        found = model.forward.lookup(token)
        return {"embedding": tf.gather(model.vectors, found + 1), "id": found}

    def tokens(id: Any) -> dict[str, Any]:
        return {"token": model.backward.lookup(id)}

    _save(
        model,
        path,
        serving_default=_of(embed, shape=(), token=tf.string),
        tokens=_of(tokens, shape=(), id=tf.int64),
    )


def jit(path: Path) -> None:
    """Compiled by XLA, anew for each batch size: x to dense [batch, 4] and top [batch]."""
    import tensorflow as tf

    model = tf.Module()
    model.weights = tf.Variable(tf.ones([WIDTH, WIDTH]))

    @tf.function(jit_compile=True)  # type: ignore[untyped-decorator, unused-ignore]
    def compiled(x: Any, weights: Any) -> Any:
        return tf.tanh(tf.matmul(x, weights))

    def serve(x: Any) -> dict[str, Any]:
        dense = compiled(x, model.weights)
        return {"dense": dense, "top": tf.reduce_max(dense, axis=1)}

    _save(model, path, serving_default=_of(serve, x=tf.float32))


def conv(path: Path) -> None:
    """A convolutional net: image to features [batch, 16] and logits [batch, 5]."""
    import tensorflow as tf

    model = tf.Module()
    model.kernels = [tf.Variable(tf.ones([3, 3, 3, 16]) / 27), tf.Variable(tf.ones([3, 3, 16, 16]) / 144)]
    model.out = tf.Variable(tf.ones([16, 5]))

    def serve(image: Any) -> dict[str, Any]:
        x = image
        for kernel in model.kernels:
            x = tf.nn.relu(tf.nn.conv2d(x, kernel, strides=2, padding="SAME"))
        features = tf.reduce_mean(x, axis=[1, 2])
        return {"features": features, "logits": tf.matmul(features, model.out)}

    _save(model, path, serving_default=_of(serve, shape=(IMAGE, IMAGE, 3), image=tf.float32))


def _of(function: Any, *, shape: tuple[int, ...] = (WIDTH,), **inputs: Any) -> Any:
    """A signature of these inputs, each [batch, *shape]."""
    import tensorflow as tf

    specs = [tf.TensorSpec([None, *shape], dtype, name=name) for name, dtype in inputs.items()]
    return tf.function(function, input_signature=specs)


def _save(model: Any, path: Path, **signatures: Any) -> None:
    import tensorflow as tf

    tf.saved_model.save(model, str(path), signatures=signatures)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write small SavedModels of different kinds.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("version", type=int, nargs="?", default=1)
    options = parser.parse_args()
    print(build(options.directory, options.version))


if __name__ == "__main__":
    main()
