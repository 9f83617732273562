"""Requests with another batch size, made on the wire: rows are repeated or cut, nothing else changes.

Shapes are no part of an executor's key, but XLA, TensorRT, cuDNN and in-graph batching prepare themselves for each
batch size. What the batch is, the model says: the first dimension of every input that it declares as -1. Only where all
of those agree in a request is there one batch, and only those inputs are changed: a scalar, or an input of fixed size,
stays as it was sent. Everything else is refused with the reason.

How a tensor's values are read: :mod:`capture.schema.tensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from google.protobuf.message import DecodeError

from capture.dialects.base import Unreadable
from capture.dialects.tfserving_calls import READERS
from capture.errors import UserError
from capture.schema import messages
from capture.schema.tensor_bytes import CONTENT, DT_STRING, DTYPE, SHAPE, TENSOR_VALUES, Typed, cycled
from capture.schema.tensors import read_values
from capture.schema.wire import LENGTH, VARINT, WireError, fields, length_delimited, read_varint
from capture.signature import SignatureDef, WireSignature

#: One expanded request. Servers take up to 2 GiB; a warm-up file of such records would take minutes to load.
MAX_REQUEST_BYTES: Final = 256 << 20
#: Elements that are written out one by one: Python takes some 50 bytes for each.
MAX_ELEMENTS: Final = 1 << 24
#: No server batches more rows.
MAX_BATCH: Final = 1 << 20
#: Sizes that one record may be expanded to.
MAX_SIZES: Final = 64

# Field numbers: PredictRequest.inputs, its map entries, TensorProto, Input and the lists in it.
_INPUTS, _KEY, _VALUE = 2, 1, 2
_INPUT, _EXAMPLES, _LISTS = 2, 1, frozenset({1, 2})


class Unexpandable(ValueError):
    """A request that has no one batch; the text says why."""


def batch_sizes(text: str, option: str = "--batch-sizes") -> tuple[int, ...]:
    """``1,8,32`` as numbers, ascending, each once. Raises UserError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and 0 < int(word[:20]) <= MAX_BATCH for word in words):
        raise UserError(f"{option} {text}: not a list of batch sizes such as 1,8,32 (each 1 to {MAX_BATCH})")
    if len(sizes := tuple(sorted({int(word) for word in words}))) > MAX_SIZES:
        raise UserError(f"{option}: {len(sizes)} sizes; at most {MAX_SIZES}")
    return sizes


def batch_of(body: bytes, signature: WireSignature, defs: Mapping[str, SignatureDef]) -> int:
    """The rows of a request's batch on a model with these SignatureDefs. Raises Unexpandable."""
    return _batch(body, signature, defs, _batched(signature, defs))


def expanded(body: bytes, signature: WireSignature, defs: Mapping[str, SignatureDef], size: int) -> bytes:
    """The request with a batch of ``size`` rows: its own, in turn (2 rows to 8: 0, 1, 0, 1, ...; 8 to 1: row 0). The
    same bytes where it has that many. Raises Unexpandable."""
    names = _batched(signature, defs)
    batch = _batch(body, signature, defs, names)
    if batch == size:
        return body
    # Rows are of one size, nearly: refused before it is made, with a margin for those that are not.
    if len(body) // batch * size > MAX_REQUEST_BYTES:
        raise Unexpandable(f"with a batch of {size} it would take more than {MAX_REQUEST_BYTES >> 20} MiB")
    try:
        if signature.method == "Predict":
            return _predict(body, names, size)
        return _examples(body, size)
    except (WireError, DecodeError) as error:
        raise Unexpandable(f"its bytes cannot be read ({error})") from None


# --- what the batch is ------------------------------------------------------------------------------------------------


def _batched(signature: WireSignature, defs: Mapping[str, SignatureDef]) -> frozenset[str]:
    """The inputs whose first dimension the model leaves open."""
    named = [signature.signature_name]
    if signature.method == "MultiInference":
        named = [task.partition(":")[2] for task in signature.outputs or ()]
    batched, fixed = set[str](), set[str]()
    for name in named:
        found = defs.get(name)
        for alias in signature.inputs:
            if found is None or (info := found.inputs.get(alias)) is None:
                raise Unexpandable(f"the model has no input {alias} in signature {name}")
            if info.shape is None:
                raise Unexpandable(f"input {alias} has no rank in the model: whether it has a batch is unknown")
            (batched if info.shape[:1] == (-1,) else fixed).add(alias)
    if not batched or batched & fixed:
        raise Unexpandable("no input of it has an open first dimension (-1) in the model: it has no batch")
    return frozenset(batched)


def _batch(body: bytes, signature: WireSignature, defs: Mapping[str, SignatureDef], names: frozenset[str]) -> int:
    reader = READERS.get(signature.method)
    if reader is None:
        raise Unexpandable(f"{signature.method} has no batch")
    try:
        tensors = reader(body).tensors
    except Unreadable as error:
        raise Unexpandable(f"its bytes cannot be read ({error})") from None
    rows: dict[str, int] = {}
    for tensor in tensors:
        if tensor.name in names:
            if not tensor.shape:
                rank = "no rank" if tensor.shape is None else "no dimension"
                raise Unexpandable(f"input {tensor.name} has {rank} in the request, and an open first one in the model")
            if signature.method == "Predict":
                # Of another rank its first dimension need not be the model's: a single row that was sent without a
                # batch runs on many models, and its features are no rows. Examples are rows whatever is declared.
                declared = defs[signature.signature_name].inputs[tensor.name].shape or ()
                if len(tensor.shape) != len(declared):
                    raise Unexpandable(
                        f"input {tensor.name} has rank {len(tensor.shape)} in the request, {len(declared)} in the"
                        " model: which dimension is the batch is unknown"
                    )
            rows[tensor.name] = tensor.shape[0]
    if len(set(rows.values())) != 1:
        said = ", ".join(f"{name} {count}" for name, count in sorted(rows.items()))
        raise Unexpandable(f"its inputs disagree on the batch ({said or 'none was sent'})")
    batch = next(iter(rows.values()))
    if batch < 1:
        raise Unexpandable(f"it has {batch} rows: there is nothing to repeat")
    return batch


# --- Predict ----------------------------------------------------------------------------------------------------------


def _predict(body: bytes, names: frozenset[str], size: int) -> bytes:
    out, seen = [], set[str]()
    for field in fields(body):
        if field.number != _INPUTS or field.wire_type != LENGTH:
            out.append(body[field.start : field.end])
            continue
        alias, tensor, rest = "", b"", []
        for part in fields(body, field.value, field.end):
            if part.number == _KEY and part.wire_type == LENGTH:
                alias = body[part.value : part.end].decode("utf-8", "replace")
            elif part.number == _VALUE and part.wire_type == LENGTH:
                # Occurring twice they merge, and concatenation is what merging means on the wire.
                tensor += body[part.value : part.end]
            else:
                rest.append(body[part.start : part.end])
        if alias in seen:
            raise Unexpandable(f"input {alias} is in it twice")
        seen.add(alias)
        if alias not in names:
            out.append(body[field.start : field.end])
            continue
        try:
            changed = _tensor(tensor, size)
        except Unexpandable as error:
            raise Unexpandable(f"input {alias}: {error}") from None
        entry = length_delimited(_KEY, alias.encode()) + length_delimited(_VALUE, changed) + b"".join(rest)
        out.append(length_delimited(_INPUTS, entry))
    return b"".join(out)


def _tensor(proto: bytes, size: int) -> bytes:
    """A TensorProto with ``size`` rows. Every field that says nothing of rows stays as it is."""
    dtype, shape, content = 0, b"", b""
    for field in fields(proto):
        if field.number == DTYPE and field.wire_type == VARINT:
            dtype = read_varint(proto, field.value, field.end)[0]
        elif field.number == SHAPE and field.wire_type == LENGTH:
            shape += proto[field.value : field.end]
        elif field.number == CONTENT and field.wire_type == LENGTH:
            content = proto[field.value : field.end]
    dims = messages.TensorShape.FromString(shape)
    rows = dims.dim[0].size
    row_elements = 1
    for dim in dims.dim[1:]:
        row_elements *= dim.size
    if row_elements < 0:
        raise Unexpandable("it has a negative dimension")
    dims.dim[0].size = size
    typed = TENSOR_VALUES.get(dtype)
    dropped = {SHAPE, CONTENT} | ({typed.number} if typed else set())
    out = [proto[field.start : field.end] for field in fields(proto) if field.number not in dropped]
    out.append(length_delimited(SHAPE, dims.SerializeToString()))
    if content:
        spread = _string_content if dtype == DT_STRING else _plain_content
        out.append(length_delimited(CONTENT, spread(content, rows, row_elements, size)))
    elif typed is None:
        raise Unexpandable(f"values of dtype {dtype} cannot be read")
    else:
        out.append(_spread_values(proto, typed, rows, row_elements, size))
    return b"".join(out)


def _plain_content(content: bytes, rows: int, _: int, size: int) -> bytes:
    if len(content) % rows:
        raise Unexpandable(f"{len(content)} bytes of content are no {rows} rows")
    step = len(content) // rows
    return cycled([content[at : at + step] for at in range(0, len(content), step)], size)


def _string_content(content: bytes, rows: int, row_elements: int, size: int) -> bytes:
    """All lengths as varints, then all strings (tensorflow/core/platform/coding: DecodeStringList)."""
    lengths, at = [], 0
    for _ in range(_within(rows * row_elements, len(content))):
        length, at = read_varint(content, at, len(content))
        lengths.append(length)
    ends = [at]
    for length in lengths:
        ends.append(ends[-1] + length)
    if ends[-1] != len(content):
        raise Unexpandable("its string content does not end where it should")
    heads = _string_heads(content, len(lengths))
    step = range(0, len(lengths), row_elements) if row_elements else ()
    head_rows = [b"".join(heads[begin : begin + row_elements]) for begin in step]
    text_rows = [content[ends[begin] : ends[begin + row_elements]] for begin in step]
    return cycled(head_rows, size) + cycled(text_rows, size)


def _string_heads(content: bytes, count: int) -> list[bytes]:
    """The varints of all lengths as they stand."""
    heads, at = [], 0
    for _ in range(count):
        begin, (_, at) = at, read_varint(content, at, len(content))
        heads.append(content[begin:at])
    return heads


def _within(elements: int, limit: int) -> int:
    if elements > limit:
        raise Unexpandable("it has fewer values than elements")
    return elements


def _spread_values(proto: bytes, typed: Typed, rows: int, row_elements: int, size: int) -> bytes:
    """The typed values of ``size`` rows, as a whole field or fields."""
    values = read_values(proto, typed)
    given = len(values) // typed.parts
    elements = rows * row_elements
    if typed.parts > 1:
        values = [b"".join(values[at : at + typed.parts]) for at in range(0, given * typed.parts, typed.parts)]
    if given > 1:
        # One value stands for all rows already, and none for zeros.
        if max(elements, size * row_elements) > MAX_ELEMENTS:
            raise Unexpandable(f"{max(elements, size * row_elements)} elements are too many to write out")
        values = values[:elements] + [values[-1]] * (elements - given)
        values = [value for row in range(size) for value in _row(values, row % rows, row_elements)]
    if typed.wire_type == LENGTH:
        return b"".join(length_delimited(typed.number, value) for value in values)
    packed = b"".join(values)
    return length_delimited(typed.number, packed) if packed else b""


def _row(values: list[bytes], row: int, row_elements: int) -> list[bytes]:
    return values[row * row_elements : (row + 1) * row_elements]


# --- tf.Examples ------------------------------------------------------------------------------------------------------


def _examples(body: bytes, size: int) -> bytes:
    """Classify, Regress, MultiInference: of example_list and example_list_with_context the later one counts, and parts
    of one are put together, as parsers do."""
    out: list[bytes] = []
    kind, examples = 0, list[bytes]()
    beside: list[bytes] = []
    for field in fields(body):
        if field.number != _INPUT or field.wire_type != LENGTH:
            out.append(body[field.start : field.end])
            continue
        for listed in fields(body, field.value, field.end):
            if listed.number not in _LISTS or listed.wire_type != LENGTH:
                continue
            if listed.number != kind:
                kind, examples, beside = listed.number, [], []
            for part in fields(body, listed.value, listed.end):
                if part.number == _EXAMPLES and part.wire_type == LENGTH:
                    examples.append(body[part.start : part.end])
                else:
                    beside.append(body[part.start : part.end])
    listing = cycled(examples, size) + b"".join(beside)
    out.append(length_delimited(_INPUT, length_delimited(kind, listing)))
    return b"".join(out)
