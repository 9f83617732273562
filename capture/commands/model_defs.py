"""The SignatureDefs that a command fits records to: of a version directory, or as the model server tells them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from capture.errors import UserError
from capture.metadata import MetadataError, read_metadata
from capture.savedmodel import read_saved_model
from capture.signature import SignatureDef

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
