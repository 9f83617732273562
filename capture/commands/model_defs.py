"""The SignatureDefs that a command fits records to: of a version directory, or as the model server told them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from capture.errors import UserError
from capture.metadata import MetadataError, read_metadata
from capture.savedmodel import read_saved_model
from capture.signature import SignatureDef
from capture.store.base import UNKNOWN_VERSION, ModelVersion, Store

#: An answer of the server; real ones have some KB.
MAX_METADATA_BYTES: Final = 64 << 20


def model_defs(saved_model: Path | None, metadata: Path | None, model: str) -> dict[str, SignatureDef] | None:
    """By signature name; None where neither source is given. Raises UserError, also for the metadata of another
    model."""
    if metadata is None:
        return None if saved_model is None else read_saved_model(saved_model).signatures
    if saved_model is not None:
        raise UserError("--metadata: leave it out, --saved-model DIR says the same and more")
    how = f"save the server's answer: curl -s http://SERVER:8501/v1/models/{model}/metadata -o {metadata}"
    try:
        with metadata.open("rb") as file:
            body = file.read(MAX_METADATA_BYTES + 1)
    except OSError as error:
        raise UserError(f"{metadata}: {error.strerror}; {how}") from None
    if len(body) > MAX_METADATA_BYTES:
        raise UserError(f"{metadata}: larger than {MAX_METADATA_BYTES >> 20} MiB; {how}")
    try:
        found = read_metadata(body)
    except MetadataError as error:
        raise UserError(f"{metadata}: {error}; {how}") from None
    if found.model not in ("", model):
        raise UserError(f"{metadata}: is the metadata of model {found.model}, not of {model}; {how}")
    return found.signatures


class Told(NamedTuple):
    """What a model server said of ``owner``."""

    owner: ModelVersion
    signatures: dict[str, SignatureDef]


def told_defs(source: Store, model: str) -> list[Told]:
    """What the sidecar was told of a model (``listeners[].status``) and can read, the highest version first."""
    found = []
    for one in source.metadata(model):
        try:
            found.append(Told(one.owner, read_metadata(one.body).signatures))
        except MetadataError:
            continue  # of a newer warmtap, or damaged: as if it had not been told
    return sorted(found, key=lambda told: _number(told.owner.version), reverse=True)


def defs_for(
    given: Mapping[str, SignatureDef] | None, source: Store, model: str
) -> Callable[[ModelVersion], Mapping[str, SignatureDef] | None]:
    """The SignatureDefs for a request that a version answered: those that are given, otherwise what the sidecar was
    told of that version, or of the highest where the version is not known."""
    if given is not None:
        return lambda _: given
    told = told_defs(source, model)
    known = {one.owner.version: one.signatures for one in told}
    highest = told[0].signatures if told else None
    return lambda owner: known.get(owner.version, highest if owner.version == UNKNOWN_VERSION else None)


def _number(version: str) -> int:
    return int(version) if version.isascii() and version.isdigit() else -1
