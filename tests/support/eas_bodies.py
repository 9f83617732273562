"""Request bodies of every kind of EAS service, and the codings that their clients pack them with."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import cramjam

from capture.schema import messages
from tests.support.calls import eas


def fill_array(array: Any, values: Sequence[float] = (1.0, 2.0)) -> None:
    """A vector of floats."""
    array.dtype = 1
    array.array_shape.dim.append(len(values))
    array.float_val.extend(values)


def torch(inputs: int = 1, named: Sequence[str] = (), *, outputs: Sequence[int] = (), debug_level: int = 0) -> bytes:
    """A PyTorch PredictRequest of that many inputs by position, and of named ones."""
    request = messages.TorchPredictRequest(output_filter=outputs, debug_level=debug_level)
    for _ in range(inputs):
        fill_array(request.inputs.add())
    for name in named:
        fill_array(request.map_inputs[name])
    return bytes(request.SerializeToString())


def onnx(tensors: Mapping[str, tuple[int, Sequence[int], bytes]] | None = None) -> bytes:
    """An ONNX DataProto: name -> (data type, dims, raw data)."""
    request = messages.OnnxDataProto()
    for name, (data_type, dims, raw) in ({"x": (1, [2], bytes(8))} if tensors is None else tensors).items():
        request.tensors.add(name=name, dims=dims, data_type=data_type, raw_data=raw)
    return bytes(request.SerializeToString())


def easyrec(
    user: Mapping[str, Any] | None = None,
    context: Mapping[str, Sequence[Any]] | None = None,
    items: Sequence[str] = ("i1", "i2"),
    *,
    message: Any = None,
    **more: Any,
) -> bytes:
    """A PBRequest of EasyRec; of TorchEasyRec with ``message``. Values are int, float or text."""
    request = (message or messages.EasyRecRequest)(item_ids=items, **more)
    for name, value in ({"age": 7, "city": "x"} if user is None else user).items():
        _feature(request.user_features[name], value)
    for name, values in (context or {}).items():
        for value in values:
            _feature(request.context_features[name].features.add(), value)
    return bytes(request.SerializeToString())


def _feature(feature: Any, value: Any) -> None:
    field = {int: "int_feature", float: "float_feature", str: "string_feature"}[type(value)]
    setattr(feature, field, value)


#: A body of each kind, by the name of its dialect.
BODIES: Final[dict[str, bytes]] = {
    "eas-tensorflow": eas({"x": [0.5] * 40}, signature="s"),
    "eas-pytorch": torch(3, outputs=(0,)),
    "eas-onnx": onnx(),
    "eas-easyrec": easyrec(),
    "eas-torchrec": easyrec(message=messages.TorchRecRequest),
    "eas-string": b'{"user": 1, "items": [1, 2, 3]}',
}

#: What a client may do to a body without saying so.
PACK: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": lambda body: gzip.compress(body, mtime=0),
    "zlib": zlib.compress,
    "zstd": lambda body: bytes(cramjam.zstd.compress(body)),
    "lz4": lambda body: bytes(cramjam.lz4.compress(body)),
    "snappy": lambda body: bytes(cramjam.snappy.compress_raw(body)),
}
