"""Services that run no TensorFlow: nothing here can be run for them."""

from __future__ import annotations

from capture.errors import UserError
from capture.signature import TENSORFLOW
from capture.store.base import Store


def refuse_other_services(source: Store, model: str | None) -> None:
    """Raises UserError where what the store knows of this model, of all models without one, is such a service."""
    owners = {row.key.owner for row in source.signatures(model)}
    families = sorted({owner.family for owner in owners})
    if families and not TENSORFLOW.intersection(families):
        names = ", ".join(sorted({owner.model for owner in owners}))
        raise UserError(
            f"{names}: not a TensorFlow service (captured as {', '.join(families)}): there is no graph to verify;"
            " `capture export` and `capture inspect` do what can be done for it"
        )
