"""The traffic of the demonstration: what a ranking model's clients might send, mixed and repeatable."""

from __future__ import annotations

import random
from typing import Any

RANK_INPUTS = ["user_id", "category", "dense", "item_ids"]
EXPLAIN_INPUTS = ["user_id", "category", "dense"]

#: (weight, signature, inputs, outputs): what kinds of calls there are, and how often they come.
_KINDS: list[tuple[int, str, list[str], list[str]]] = [
    (40, "", RANK_INPUTS, ["score"]),
    (25, "", RANK_INPUTS, ["top_ids", "probabilities"]),
    (12, "", RANK_INPUTS, []),
    (8, "", RANK_INPUTS, ["score", "model_version_id"]),
    (6, "serving_default", RANK_INPUTS, ["embedding"]),
    (5, "explain", EXPLAIN_INPUTS, []),
    (4, "explain", EXPLAIN_INPUTS, ["attribution"]),
]
#: Every output by name: another wire signature than an empty filter, the same executor.
_ALL_OUTPUTS = ["embedding", "model_version_id", "probabilities", "score", "top_ids"]


def traffic(calls: int, seed: int, *, every_output_by_name: bool, refused: int = 0) -> list[dict[str, Any]]:
    """A plan (tests/clients/plan.py) of ``calls`` calls: each kind at least three times, then by weight; names in any
    order, batches and values of their own. ``refused`` calls ask for an output that the model does not have."""
    draw = random.Random(seed)
    kinds = [*_KINDS, (5, "", RANK_INPUTS, _ALL_OUTPUTS)] if every_output_by_name else _KINDS
    chosen = [kind for kind in kinds for _ in range(3)]
    chosen += draw.choices(kinds, [kind[0] for kind in kinds], k=max(0, calls - refused - len(chosen)))
    chosen += [(0, "", RANK_INPUTS, ["confidence"])] * refused
    draw.shuffle(chosen)
    plan = []
    for number, (_, signature, inputs, outputs) in enumerate(chosen):
        plan.append(
            {
                "signature": signature,
                "inputs": draw.sample(inputs, len(inputs)),
                "outputs": draw.sample(outputs, len(outputs)),
                "batch": draw.choice([1, 1, 2, 4, 8, 16]),
                "items": draw.choice([5, 10, 20]),
                "seed": 1_000_000 * seed + number,
            }
        )
    return plan
