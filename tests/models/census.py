"""A model of tf.Examples: what Classify, Regress and MultiInference are asked of in production.

Run as a script (``python -m tests.models.census DIR VERSION``), in a process of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

LAYERS = 40  #: enough nodes that building the graph costs far more than running it
WIDTH = 8
JOBS = ("clerk", "farmer", "nurse", "teacher")
CLASSES = ("low", "high")


def build(directory: str | Path, version: int = 1, *, layers: int = LAYERS, seed: int = 11) -> Path:
    """Write ``directory/<version>`` and return it. The weights depend on ``seed`` alone.

    Each signature parses tf.Examples with the features age DT_FLOAT [1] and job DT_STRING [1] (default "", looked up in
    a vocabulary), and takes them as ``inputs`` DT_STRING [batch]: ``classify`` and ``serving_default`` (classes
    DT_STRING and scores DT_FLOAT, both [batch, 2]), ``scores`` (scores alone), ``regress`` and ``second`` (outputs
    DT_FLOAT [batch, 1]). ``wide`` returns outputs [batch, 2], which no regression may.
    """
    import tensorflow as tf

    generator = tf.random.Generator.from_seed(seed)

    class Census(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            table = tf.lookup.KeyValueTensorInitializer(tf.constant(JOBS), tf.range(1, len(JOBS) + 1, dtype=tf.int64))
            self.jobs = tf.lookup.StaticHashTable(table, default_value=0)
            self.job = tf.Variable(generator.normal([len(JOBS) + 1, WIDTH]), name="job")
            self.weights = [tf.Variable(generator.normal([WIDTH, WIDTH]), name=f"w{n}") for n in range(layers)]

        def hidden(self, examples: Any) -> Any:
            parsed = tf.io.parse_example(
                examples,
                {
                    "age": tf.io.FixedLenFeature([1], tf.float32),
                    "job": tf.io.FixedLenFeature([1], tf.string, default_value=""),
                },
            )
            job = tf.gather(self.job, tf.squeeze(self.jobs.lookup(parsed["job"]), 1))
            x = job + parsed["age"] / 100.0
            for weights in self.weights:
                x = x + 0.1 * tf.nn.tanh(tf.matmul(x, weights))
            return x

        def scores_of(self, examples: Any) -> Any:
            return tf.nn.softmax(self.hidden(examples)[:, :2])

    model = Census()

    def signature(function: Any) -> Any:
        return tf.function(function, input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])

    def classify(inputs: Any) -> dict[str, Any]:
        scores = model.scores_of(inputs)
        return {"classes": tf.tile(tf.constant([CLASSES]), [tf.shape(scores)[0], 1]), "scores": scores}

    path = Path(directory) / str(version)
    tf.saved_model.save(
        model,
        str(path),
        signatures={
            "serving_default": signature(classify),
            "classify": signature(classify),
            "scores": signature(lambda inputs: {"scores": model.scores_of(inputs)}),
            "regress": signature(lambda inputs: {"outputs": model.hidden(inputs)[:, :1]}),
            "second": signature(lambda inputs: {"outputs": model.hidden(inputs)[:, 1:2]}),
            "wide": signature(lambda inputs: {"outputs": model.hidden(inputs)[:, :2]}),
        },
    )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the model of tf.Examples as a SavedModel.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("version", type=int, nargs="?", default=1)
    options = parser.parse_args()
    print(build(options.directory, options.version))


if __name__ == "__main__":
    main()
