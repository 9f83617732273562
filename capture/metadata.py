"""The answer to ``GET /v1/models/M[/versions/V|/labels/L]/metadata``: SignatureDefs without the model's files.

The JSON is protobuf's own of GetModelMetadataResponse (model_servers/get_model_metadata_impl.cc; protobuf.dev,
"ProtoJSON"): names of fields as in the .proto, 64-bit integers as strings, enums by name.
"""

from __future__ import annotations

from typing import Final

import msgspec

from capture.signature import DTYPES, SignatureDef, TensorInfo

#: DataType by its name in JSON, ``DT_FLOAT``; of those not listed the number is not needed (0, DT_INVALID).
_NUMBERS: Final = {f"DT_{name.upper()}": number for number, name in DTYPES.items() if number > 0}


class MetadataError(ValueError):
    """The bytes are no model metadata; the text says what is wrong, on one line."""


class Metadata(msgspec.Struct, frozen=True):
    """What the server says of one version. ``version`` is the number as text, "" where the answer has none."""

    model: str
    version: str
    signatures: dict[str, SignatureDef]


# What of the document is read. Anything else in it is passed over.


class _Dim(msgspec.Struct):
    size: int | str = 0


class _Shape(msgspec.Struct):
    dim: list[_Dim] = []
    unknown_rank: bool = False


class _Info(msgspec.Struct):
    name: str = ""
    dtype: int | str = 0
    tensor_shape: _Shape | None = None


class _Definition(msgspec.Struct):
    inputs: dict[str, _Info] = {}
    outputs: dict[str, _Info] = {}
    method_name: str = ""
    defaults: dict[str, msgspec.Raw] = {}


class _Map(msgspec.Struct):
    signature_def: dict[str, _Definition]


class _Fields(msgspec.Struct):
    signature_def: _Map


class _Spec(msgspec.Struct, frozen=True):
    name: str = ""
    version: int | str = ""


class _Answer(msgspec.Struct):
    metadata: _Fields
    model_spec: _Spec = _Spec()


def read_metadata(body: bytes) -> Metadata:
    """Understand the answer. Raises MetadataError."""
    try:
        answer = msgspec.json.decode(body, type=_Answer)
        signatures = {name: _definition(one) for name, one in answer.metadata.signature_def.signature_def.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise MetadataError(f"not the metadata of a model: {error}") from None
    return Metadata(answer.model_spec.name, str(answer.model_spec.version), signatures)


def _definition(one: _Definition) -> SignatureDef:
    return SignatureDef(
        {alias: _info(info) for alias, info in one.inputs.items()},
        {alias: _info(info) for alias, info in one.outputs.items()},
        one.method_name,
        frozenset(one.defaults),
    )


def _info(info: _Info) -> TensorInfo:
    dtype = info.dtype if isinstance(info.dtype, int) else _NUMBERS.get(info.dtype, 0)
    shape = info.tensor_shape or _Shape()
    return TensorInfo(info.name, dtype, None if shape.unknown_rank else tuple(int(dim.size) for dim in shape.dim))
