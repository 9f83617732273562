"""A tensor of a model, in the standard library alone: environments that have nothing but TensorFlow load this too."""

from __future__ import annotations

from typing import NamedTuple


class TensorInfo(NamedTuple):
    """One tensor of a SignatureDef: its textual name, which is what DirectSession looks up (empty for a sparse or
    composite one), its tensorflow.DataType number, and its shape as the model declares it, with -1 for a dimension and
    None for a rank that is not known. Declared shapes may be wrong; nothing that servers decide rests on them."""

    name: str
    dtype: int = 0
    shape: tuple[int, ...] | None = None
