"""A ranking model: small, but a real SavedModel with everything that production signatures have.

Run as a script (``python -m tests.models.ranking DIR VERSION``), because importing TensorFlow takes nine seconds and
the tests themselves need none of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DENSE = 16  #: width of ``dense``, float32 [batch, DENSE]
EMBEDDING = 8  #: width of the embeddings
CATEGORIES = tuple(f"category-{n}" for n in range(64))
TOP = 3  #: width of ``top_ids``, int64 [batch, TOP]
LAYERS = 40  #: enough nodes that building the graph costs far more than running it


def build(directory: str | Path, version: int = 1, *, layers: int = LAYERS, seed: int = 7) -> Path:
    """Write ``directory/<version>`` and return it. The weights depend on ``seed`` alone.

    Inputs of ``serving_default``: user_id DT_STRING [batch], category DT_STRING [batch], dense DT_FLOAT [batch, 16],
    item_ids DT_INT64 [batch, n] with n >= 3. Outputs: score DT_FLOAT [batch], probabilities DT_FLOAT [batch, n],
    top_ids DT_INT64 [batch, 3], embedding DT_FLOAT [batch, 8], model_version_id DT_STRING [].
    ``explain`` has no item_ids and returns attribution DT_FLOAT [batch, 16], score and model_version_id.
    """
    import tensorflow as tf

    generator = tf.random.Generator.from_seed(seed)

    class Ranking(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            table = tf.lookup.KeyValueTensorInitializer(
                tf.constant(CATEGORIES), tf.range(1, len(CATEGORIES) + 1, dtype=tf.int64)
            )
            self.vocabulary = tf.lookup.StaticHashTable(table, default_value=0)
            self.category = tf.Variable(generator.normal([len(CATEGORIES) + 1, EMBEDDING]), name="category")
            self.user = tf.Variable(generator.normal([1000, EMBEDDING]), name="user")
            self.item = tf.Variable(generator.normal([5000, EMBEDDING]), name="item")
            self.weights = [
                tf.Variable(generator.normal([DENSE, DENSE], stddev=0.3), name=f"w{n}") for n in range(layers)
            ]
            self.biases = [tf.Variable(generator.normal([DENSE], stddev=0.1), name=f"b{n}") for n in range(layers)]
            self.out = tf.Variable(generator.normal([DENSE + 2 * EMBEDDING, EMBEDDING], stddev=0.3), name="out")

        def tower(self, user_id: Any, category: Any, dense: Any) -> tuple[Any, Any]:
            x = dense
            for w, b in zip(self.weights, self.biases, strict=True):
                x = x + 0.1 * tf.nn.tanh(tf.matmul(x, w) + b)
            user = tf.gather(self.user, tf.strings.to_hash_bucket_fast(user_id, 1000))
            kind = tf.gather(self.category, self.vocabulary.lookup(category))
            return tf.matmul(tf.concat([x, user, kind], axis=1), self.out), x

        @tf.function(  # type: ignore[untyped-decorator, unused-ignore]
            input_signature=[
                tf.TensorSpec([None], tf.string, name="user_id"),
                tf.TensorSpec([None], tf.string, name="category"),
                tf.TensorSpec([None, DENSE], tf.float32, name="dense"),
                tf.TensorSpec([None, None], tf.int64, name="item_ids"),
            ]
        )
        def rank(self, user_id: Any, category: Any, dense: Any, item_ids: Any) -> dict[str, Any]:
            embedding, _ = self.tower(user_id, category, dense)
            items = tf.gather(self.item, tf.math.floormod(item_ids, 5000))
            logits = tf.einsum("be,bne->bn", embedding, items)
            top = tf.math.top_k(logits, k=TOP)
            return {
                "score": tf.reduce_max(logits, axis=1),
                "probabilities": tf.nn.softmax(logits),
                "top_ids": tf.gather(item_ids, top.indices, batch_dims=1),
                "embedding": embedding,
                "model_version_id": tf.constant(f"ranking-{version}"),
            }

        @tf.function(  # type: ignore[untyped-decorator, unused-ignore]
            input_signature=[
                tf.TensorSpec([None], tf.string, name="user_id"),
                tf.TensorSpec([None], tf.string, name="category"),
                tf.TensorSpec([None, DENSE], tf.float32, name="dense"),
            ]
        )
        def explain(self, user_id: Any, category: Any, dense: Any) -> dict[str, Any]:
            embedding, x = self.tower(user_id, category, dense)
            return {
                "attribution": x * dense,
                "score": tf.reduce_sum(embedding, axis=1),
                "model_version_id": tf.constant(f"ranking-{version}"),
            }

    model = Ranking()
    path = Path(directory) / str(version)
    tf.saved_model.save(model, str(path), signatures={"serving_default": model.rank, "explain": model.explain})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the ranking model as a SavedModel.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("version", type=int, nargs="?", default=1)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    print(build(options.directory, options.version, layers=options.layers, seed=options.seed))


if __name__ == "__main__":
    main()
