"""SignatureDefs that a model server told of its versions and the store keeps: for commands that are given no files."""

from __future__ import annotations

from typing import NamedTuple

from capture.metadata import MetadataError, read_metadata
from capture.signature import SignatureDef
from capture.store.base import ModelVersion, Store


class Told(NamedTuple):
    """What the server said of ``owner``."""

    owner: ModelVersion
    signatures: dict[str, SignatureDef]


def told_defs(source: Store, model: str, version: str | None = None) -> Told | None:
    """Those of this version, without one of the highest that is known. None where the store has none that can be
    read."""
    found = {one.owner: one.body for one in source.metadata(model) if one.owner.version.isdigit()}
    for owner in sorted(found, key=lambda owner: int(owner.version), reverse=True):
        if version is None or owner.version == version:
            try:
                return Told(owner, read_metadata(found[owner]).signatures)
            except MetadataError:
                continue  # of a newer warmtap, or damaged: as if it had not been told
    return None
