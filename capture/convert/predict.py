"""The body of a REST predict call as the PredictRequest that the server makes of it (util/json_tensor.cc:
FillPredictRequestFromJson; http_rest_api_handler.cc: GetInfoMap)."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from capture.convert.json_value import Absent, Members, Value
from capture.convert.values import (
    UNIMPLEMENTED,
    ConversionError,
    decode_base64,
    document,
    is_base64,
    json_type,
    signature_name,
)
from capture.schema.wire import length_delimited, write_varint
from capture.signature import DEFAULT_SIGNATURE, DTYPES, SignatureDef, TensorInfo

# Field numbers: PredictRequest, ModelSpec, a map's entry, TensorProto, TensorShapeProto and its Dim.
_MODEL_SPEC, _INPUTS = 1, 2
_NAME, _SIGNATURE_NAME = 1, 3
_KEY, _VALUE = 1, 2
_DTYPE, _SHAPE = 1, 2
_DIM, _SIZE = 2, 1
_STRING_VAL: Final = 8


@dataclass(slots=True)
class _Tensor:
    """A tensor while it is filled. ``size`` and ``element`` are those of its first element, for rows."""

    dtype: int
    shape: tuple[int, ...] = ()
    values: list[Any] = field(default_factory=list)
    size: int = -1
    element: tuple[int, ...] = ()


def predict_request(body: bytes, model: str, defs: Mapping[str, SignatureDef]) -> bytes:
    """A serialized PredictRequest for this model, which has these SignatureDefs. Raises ConversionError."""
    found = document(body)
    name = signature_name(found)
    infos = _infos(name, defs)
    instances, inputs = found.first(b"instances"), found.first(b"inputs")
    if not isinstance(instances, Absent):
        if not isinstance(inputs, Absent):
            raise ConversionError(
                "JSON Value: ... Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist"
            )
        if not isinstance(instances, list):
            raise ConversionError("JSON Value: ... Excepting 'instances' to be an list/array")
        if not instances:
            raise ConversionError("JSON Value: ... No values in 'instances' array")
        tensors = _from_rows(instances, infos)
    elif not isinstance(inputs, Absent):
        tensors = _from_columns(inputs, infos)
    else:
        raise ConversionError("Missing 'inputs' or 'instances' key")
    spec = length_delimited(_NAME, model.encode()) + (length_delimited(_SIGNATURE_NAME, name) if name else b"")
    entries = (
        length_delimited(_INPUTS, length_delimited(_KEY, alias) + length_delimited(_VALUE, _tensor_proto(tensor)))
        for alias, tensor in sorted(tensors.items())
    )
    return length_delimited(_MODEL_SPEC, spec) + b"".join(entries)


def _infos(name: bytes, defs: Mapping[str, SignatureDef]) -> dict[bytes, TensorInfo]:
    wanted = name.decode("utf-8", "replace") or DEFAULT_SIGNATURE
    if wanted not in defs:
        raise ConversionError(f'Serving signature name: "{wanted}" not found in signature def')
    if not defs[wanted].inputs:
        raise ConversionError(f"Failed to get input map for signature: {name.decode('utf-8', 'replace') or 'DEFAULT'}")
    return {alias.encode(): info for alias, info in defs[wanted].inputs.items()}


def _from_rows(instances: list[Value], infos: Mapping[bytes, TensorInfo]) -> dict[bytes, _Tensor]:
    if not isinstance(instances[0], Members) and len(infos) > 1:
        raise ConversionError(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per"
            " tensorinfo_map"
        )
    named = _is_object(instances[0])
    tensors: dict[bytes, _Tensor] = {}
    only = next(iter(infos))
    if not named:
        # Rows that are taken are, put together, what a column of them is; why others are not is said row by row.
        with suppress(ConversionError):
            return {only: _column(instances, infos[only].dtype)}
    for place, element in enumerate(instances):
        if not named:
            if _is_object(element):
                raise ConversionError(f"Expecting value/list but got object at item {place} of input list")
            try:
                _add_instance(element, only, infos, tensors)
            except ConversionError as error:
                raise ConversionError(
                    f"Failed to process element: {place} of 'instances' list. Error: {error.status()}"
                ) from None
            continue
        if not _is_object(element) or not isinstance(element, Members):
            raise ConversionError(f"Expecting object but got list at item {place} of input list")
        keys = set()
        for key, value in element.items:
            # A name ends at a NUL: the server reads it as a C string. One that is there twice is added twice, and what
            # is too much is cut when the tensor is made.
            alias = key.partition(b"\0")[0]
            keys.add(alias)
            try:
                _add_instance(value, alias, infos, tensors)
            except ConversionError as error:
                raise ConversionError(
                    f"Failed to process element: {place} key: {_text(alias)} of 'instances' list."
                    f" Error: {error.status()}"
                ) from None
        if keys != infos.keys():
            raise ConversionError(
                f"Failed to process element: {place} of 'instances' list. JSON object: ... keys must be equal to:"
                f" {','.join(sorted(map(_text, infos)))}"
            )
    for tensor in tensors.values():
        tensor.shape = (len(instances), *tensor.element)
    return tensors


def _is_object(value: Value) -> bool:
    return isinstance(value, Members) and not is_base64(value)


def _add_instance(value: Value, alias: bytes, infos: Mapping[bytes, TensorInfo], tensors: dict[bytes, _Tensor]) -> None:
    if alias not in infos:
        raise ConversionError(f"JSON object: does not have named input: {_text(alias)}")
    tensor = tensors.setdefault(alias, _Tensor(infos[alias].dtype))
    shape = _shape(value)
    size = _fill(value, shape, tensor)
    if tensor.size < 0:
        tensor.size, tensor.element = size, shape
    elif size != tensor.size:
        raise ConversionError(f"Expecting tensor size: {tensor.size} but got: {size}")
    elif shape != tensor.element:
        raise ConversionError(f"Expecting shape {_dims(tensor.element)} but got: {_dims(shape)}")


def _from_columns(inputs: Value, infos: Mapping[bytes, TensorInfo]) -> dict[bytes, _Tensor]:
    if not _is_object(inputs) or not isinstance(inputs, Members):
        if len(infos) > 1:
            raise ConversionError(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per"
                " tensorinfo_map"
            )
        ((alias, info),) = infos.items()
        return {alias: _column(inputs, info.dtype)}
    tensors = {}
    for alias, info in sorted(infos.items()):
        value = inputs.first(alias)
        if isinstance(value, Absent):
            raise ConversionError(f"Missing named input: {_text(alias)} in 'inputs' object.")
        tensors[alias] = _column(value, info.dtype)
    return tensors


def _column(value: Value, dtype: int) -> _Tensor:
    tensor = _Tensor(dtype, _shape(value))
    _fill(value, tensor.shape, tensor)
    return tensor


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _dims(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


# --- values -----------------------------------------------------------------------------------------------------------


def _shape(value: Value) -> tuple[int, ...]:
    """Along the first elements; what the others are is checked while they are added."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _fill(value: Value, shape: tuple[int, ...], tensor: _Tensor) -> int:
    """Append the values to ``tensor``; their number. Raises ConversionError at the first that does not fit."""
    add = _ADDERS.get(tensor.dtype, _unimplemented)
    rank = len(shape)
    before = len(tensor.values)
    waiting: list[Iterable[Value]] = [iter((value,))]
    while waiting:
        level = len(waiting) - 1
        for one in waiting[-1]:
            if isinstance(one, list):
                if level >= rank:
                    raise ConversionError(f"Encountered list at unexpected level: {level} expected < {rank}")
                if len(one) != shape[level]:
                    raise ConversionError(
                        f"Encountered list at unexpected size: {len(one)} at level: {level}"
                        f" expected size: {shape[level]}"
                    )
                if level == rank - 1 and _takes_all(one, tensor.dtype):
                    tensor.values += one
                    continue
                waiting.append(iter(one))
                break
            if level != rank:
                raise ConversionError(
                    f"JSON Value: ... found at incorrect level: {level + 1} in the JSON DOM. Expected at level: {rank}"
                )
            tensor.values.append(add(one, tensor.dtype))
        else:
            waiting.pop()
    return len(tensor.values) - before


def _takes_all(values: list[Value], dtype: int) -> bool:
    """Whether all of these are taken as they are: then nothing need be said of any."""
    kinds, lowest, highest = _PLAIN.get(dtype, _NONE)
    if not kinds or not kinds.issuperset(map(type, values)):
        return False
    return lowest is None or not values or (min(values) >= lowest and max(values) <= highest)  # type: ignore[type-var, operator]


def _type_error(value: Value, dtype: int) -> ConversionError:
    return ConversionError(f"JSON Value: ... Type: {json_type(value)} is not of expected type: {_dtype_name(dtype)}")


def _dtype_name(dtype: int) -> str:
    return DTYPES.get(dtype, f"dtype{dtype}")


def _number(value: Value, dtype: int) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _type_error(value, dtype)
    return float(value)


def _integer(lowest: int, highest: int) -> Callable[[Value, int], int]:
    def check(value: Value, dtype: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise _type_error(value, dtype)
        return value

    return check


def _string(value: Value, dtype: int) -> bytes:
    if isinstance(value, Members):
        return decode_base64(value)
    if not isinstance(value, bytes):
        raise _type_error(value, dtype)
    return value


def _truth(value: Value, dtype: int) -> bool:
    if not isinstance(value, bool):
        raise _type_error(value, dtype)
    return value


def _unimplemented(value: Value, dtype: int) -> Any:
    if isinstance(value, Members):
        raise _type_error(value, dtype)
    raise ConversionError(f"Conversion of JSON Value: ... to type: {_dtype_name(dtype)}", UNIMPLEMENTED)


#: The narrow types are checked as int32, so that 300 for a uint8 goes through, and wraps in the tensor.
_INT32: Final = _integer(-(1 << 31), (1 << 31) - 1)

#: DataType -> how a value is taken (AddValueToTensor). Others the server does not take at all.
_ADDERS: Final[dict[int, Callable[[Value, int], Any]]] = {
    1: _number,
    2: _number,
    3: _INT32,
    4: _INT32,
    5: _INT32,
    6: _INT32,
    7: _string,
    9: _integer(-(1 << 63), (1 << 63) - 1),
    10: _truth,
    22: _integer(0, (1 << 32) - 1),
    23: _integer(0, (1 << 64) - 1),
}


_Plain = tuple[frozenset[type], int | None, int | None]
_NONE: Final[_Plain] = (frozenset(), None, None)
_INT: Final = frozenset({int})
#: DataType -> the types of values that are taken as they are, and their bounds.
_PLAIN: Final[dict[int, _Plain]] = {
    **dict.fromkeys((1, 2), (frozenset({int, float}), None, None)),
    **dict.fromkeys((3, 4, 5, 6), (_INT, -(1 << 31), (1 << 31) - 1)),
    7: (frozenset({bytes}), None, None),
    9: (_INT, -(1 << 63), (1 << 63) - 1),
    10: (frozenset({bool}), None, None),
    22: (_INT, 0, (1 << 32) - 1),
    23: (_INT, 0, (1 << 64) - 1),
}


# --- the message ------------------------------------------------------------------------------------------------------


def _packed(code: str) -> Callable[[list[Any]], bytes]:
    def pack(values: list[Any]) -> bytes:
        # As C casts them: a double beyond float's range becomes infinite.
        made = array(code, values)
        if sys.byteorder == "big":
            made.byteswap()
        return made.tobytes()

    return pack


def _varints(values: list[Any]) -> bytes:
    if min(values) >= 0 and max(values) < 128:
        return bytes(values)
    return b"".join([write_varint(value if value >= 0 else value + (1 << 64)) for value in values])


#: DataType -> (TensorProto's field, how its values are packed).
_FIELDS: Final[dict[int, tuple[int, Callable[[list[Any]], bytes]]]] = {
    1: (5, _packed("f")),
    2: (6, _packed("d")),
    **dict.fromkeys((3, 4, 5, 6), (7, _varints)),
    9: (10, _varints),
    10: (11, bytes),
    22: (16, _varints),
    23: (17, _varints),
}


def _tensor_proto(tensor: _Tensor) -> bytes:
    sizes = (write_varint(_SIZE << 3) + write_varint(size) if size else b"" for size in tensor.shape)
    dims = [length_delimited(_DIM, size) for size in sizes]
    head = write_varint(_DTYPE << 3) + write_varint(tensor.dtype) + length_delimited(_SHAPE, b"".join(dims))
    if not tensor.values:
        return head
    if tensor.dtype not in _FIELDS:
        return head + b"".join(length_delimited(_STRING_VAL, value) for value in tensor.values)
    number, pack = _FIELDS[tensor.dtype]
    return head + length_delimited(number, pack(tensor.values))
