"""What the real clients are told to send: a plan is a JSON list of calls, the same for every client.

Standard library only: the EAS SDK reads it in an environment of its own. A call is ``{"signature", "outputs", "inputs",
"batch", "items", "seed"}``; values are drawn from the seed, so that no two calls carry the same bytes unless they share
one.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

#: Width of the ranking model's ``dense`` input.
DENSE = 16


class Feed(NamedTuple):
    """One input: alias, kind (``string``, ``float``, ``int64``), shape, and flat values in row order."""

    alias: str
    kind: str
    shape: list[int]
    values: list[Any]


def feeds(call: dict[str, Any]) -> list[Feed]:
    """The inputs of one call, in the order in which the call names them."""
    draw = random.Random(call["seed"])
    batch, items = call["batch"], call["items"]
    known = {
        "user_id": lambda: Feed("user_id", "string", [batch], [f"user-{draw.randrange(10**6)}" for _ in range(batch)]),
        "category": lambda: Feed(
            "category", "string", [batch], [f"category-{draw.randrange(80)}" for _ in range(batch)]
        ),
        "dense": lambda: Feed(
            "dense", "float", [batch, DENSE], [round(draw.gauss(0, 1), 4) for _ in range(batch * DENSE)]
        ),
        "item_ids": lambda: Feed(
            "item_ids", "int64", [batch, items], [draw.getrandbits(60) for _ in range(batch * items)]
        ),
    }
    return [known[alias]() for alias in call["inputs"]]
