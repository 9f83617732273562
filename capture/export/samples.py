"""The requests of a selection, as the files hold them: read from the store, and fitted to the format and the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from capture.export.base import ExportError, Format, LeftOut, Record, Selection, Unfit
from capture.signature import SignatureDef
from capture.store.base import ModelVersion, Sample, Store


def read_samples(
    source: Store,
    form: Format,
    selection: Selection,
    defs_of: Callable[[ModelVersion], Mapping[str, SignatureDef] | None],
) -> list[tuple[Record, Sample]]:
    """Each record with the best of its candidates that fits; ``selection`` is changed to what came of it. ``defs_of``
    are the SignatureDefs for a request that this version answered, None where they are not known. Raises ExportError
    where a request went since the listing."""
    found: list[tuple[Record, Sample]] = []
    for record in selection.records:
        failed: dict[str, LeftOut] = {}
        for candidate in record.candidates:
            sample = source.sample(candidate.key)
            if sample is None:
                raise ExportError(f"{candidate.key.digest}: its request was evicted just now; run the export again")
            try:
                fitted = form.fitted(candidate.signature, sample, defs_of(candidate.key.owner))
                found.append((record.replaced(candidate), fitted))
                break
            except Unfit as error:
                out = LeftOut(candidate.key, candidate.signature, candidate.hits, str(error))
                failed.setdefault(candidate.key.digest, out)
        else:
            selection.left_out += failed.values()
    selection.records = [record for record, _ in found]
    selection.left_out.sort(key=lambda one: (-one.hits, one.key.digest))
    return found
