"""SignatureDefs out of ``saved_model.pb``, without TensorFlow and without reading the graph.

The file is walked field by field (tensorflow/core/protobuf/saved_model.proto, meta_graph.proto); the graph, which is
nearly all of it, is skipped with ``seek``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from google.protobuf.message import DecodeError

from capture.errors import UserError
from capture.schema import messages
from capture.schema.wire import FIXED32, FIXED64, LENGTH, MAX_VARINT_BYTES, VARINT, WireError, read_varint
from capture.signature import SignatureDef, TensorInfo

#: The tag set that TF Serving loads (saved_model/tag_constants.h: kSavedModelTagServe).
SERVE_TAGS: Final = frozenset({"serve"})
#: One SignatureDef or MetaInfoDef; a larger one is taken for a broken file.
MAX_FIELD_BYTES: Final = 64 << 20

# Field numbers: SavedModel and MetaGraphDef.
_META_GRAPHS, _META_INFO, _SIGNATURE_DEF = 2, 1, 5


class SavedModelError(UserError):
    """The directory holds no SavedModel that can be read; the text names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class SavedModel:
    """What warmtap needs of a SavedModel: its SignatureDefs by key, and the TensorFlow version that wrote it."""

    signatures: dict[str, SignatureDef]
    tensorflow_version: str


def read_saved_model(directory: Path, tags: Iterable[str] = SERVE_TAGS) -> SavedModel:
    """The meta graph with exactly these tags, as the loader chooses it (cc/saved_model/reader.cc: FindMetaGraphDef).
    Raises SavedModelError."""
    path = directory / "saved_model.pb"
    wanted = frozenset(tags)
    seen = []
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            for number, wire_type, length in walk(file, size):
                if number != _META_GRAPHS or wire_type != LENGTH:
                    file.seek(length, 1)
                    continue
                found_tags, model = _meta_graph(file, file.tell() + length)
                if found_tags == wanted:
                    return model
                seen.append("{" + ", ".join(sorted(found_tags)) + "}")
    except FileNotFoundError:
        raise SavedModelError(_absent(directory)) from None
    except OSError as error:
        raise SavedModelError(f"{path}: {error.strerror}") from None
    except (WireError, DecodeError) as error:
        raise SavedModelError(f"{path}: not a SavedModel ({error}); was it copied completely?") from None
    have = f"it has {', '.join(seen)}" if seen else "it has no meta graph"
    raise SavedModelError(f"{path}: no meta graph with tags {{{', '.join(sorted(wanted))}}}; {have}")


def _absent(directory: Path) -> str:
    if not directory.is_dir():
        return f"{directory}: no such directory; give the version directory that holds saved_model.pb"
    for other in ("saved_model.cpb", "saved_model.pbtxt"):
        if (directory / other).exists():
            return f"{directory}: holds {other}, which warmtap cannot read; save the model as saved_model.pb"
    versions = sorted(path.name for path in directory.iterdir() if path.name.isdigit())
    if versions:
        return f"{directory}: no saved_model.pb; did you mean {directory / versions[-1]}?"
    return f"{directory}: no saved_model.pb; give the version directory that holds it"


def _meta_graph(file: BinaryIO, end: int) -> tuple[frozenset[str], SavedModel]:
    info = messages.MetaInfoDef()
    signatures = {}
    for number, wire_type, length in walk(file, end):
        if wire_type == LENGTH and number in (_META_INFO, _SIGNATURE_DEF):
            if length > MAX_FIELD_BYTES:
                raise WireError(f"field {number} of {length} bytes at byte {file.tell()}")
            payload = file.read(length)
            if number == _META_INFO:
                info.MergeFromString(payload)
            else:
                entry = messages.SignatureEntry.FromString(payload)
                signatures[entry.key] = signature_def(entry.value)
        else:
            file.seek(length, 1)
    return frozenset(info.tags), SavedModel(signatures, info.tensorflow_version)


def signature_def(message: Any) -> SignatureDef:
    """A SignatureDef message as the plain value that executor keys and conversions are made from. TF Serving feeds and
    fetches ``TensorInfo.name`` alone (predict_util.cc); it is empty for a sparse or composite input."""
    return SignatureDef(
        inputs={alias: _tensor_info(info) for alias, info in message.inputs.items()},
        outputs={alias: _tensor_info(info) for alias, info in message.outputs.items()},
        method_name=message.method_name,
        defaults=frozenset(message.defaults),
    )


def _tensor_info(info: Any) -> TensorInfo:
    shape = info.tensor_shape
    return TensorInfo(info.name, info.dtype, None if shape.unknown_rank else tuple(dim.size for dim in shape.dim))


def walk(file: BinaryIO, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, wire type, payload length) of each field up to ``end``. The caller moves past every payload."""
    while (start := file.tell()) < end:
        head = file.read(2 * MAX_VARINT_BYTES)
        tag, at = read_varint(head, 0, len(head))
        wire_type = tag & 7
        if wire_type == LENGTH:
            length, at = read_varint(head, at, len(head))
        elif wire_type == VARINT:
            _, behind = read_varint(head, at, len(head))
            length = behind - at
        elif wire_type in (FIXED32, FIXED64):
            length = 4 if wire_type == FIXED32 else 8
        else:
            raise WireError(f"wire type {wire_type} at byte {start}")
        if start + at + length > end:
            raise WireError(f"field {tag >> 3} at byte {start} runs past the end")
        file.seek(start + at)
        yield tag >> 3, wire_type, length
