"""PAI-EAS's ONNX processor: a list of named tensors.

Messages: hie_processor_data.proto of the EAS SDKs (``OnnxRequest.add_tensor``).
"""

from __future__ import annotations

from math import prod
from typing import Any, Final

from capture.dialects.base import MAX_DIMENSIONS, Route, Unreadable
from capture.dialects.eas import EasDialect, parsed
from capture.schema import messages
from capture.signature import Call, TensorSpec, wire_signature

_MESSAGE: Final = "EAS ONNX DataProto"
#: TensorProto.DataType -> (TensorFlow's number, for display; bytes of an element in raw_data).
ELEMENTS: Final = {
    1: (1, 4),
    2: (4, 1),
    3: (6, 1),
    4: (17, 2),
    5: (5, 2),
    6: (3, 4),
    7: (9, 8),
    10: (19, 2),
    11: (2, 8),
    12: (22, 4),
    13: (23, 8),
}


class EasOnnx(EasDialect):
    """The ONNX processor. Key: the names of the tensors; all outputs are always computed."""

    name = "eas-onnx"
    family = "eas-onnx"
    #: tensors.
    begins = b"\x0a"

    def read(self, route: Route, body: bytes) -> Call:
        request = parsed(messages.OnnxDataProto, body, _MESSAGE)
        if not request.tensors:
            raise Unreadable("no inputs")
        tensors = tuple(sorted(map(_tensor, request.tensors)))
        names = [tensor.name for tensor in tensors]
        return Call(wire_signature(self.family, route.model, route.method, "DataProto", names, ()), tensors)


def _tensor(tensor: Any) -> TensorSpec:
    """Raises Unreadable where data, type and shape disagree: then these bytes are another message that happens to
    parse."""
    if tensor.data_type not in ELEMENTS:
        raise Unreadable(f"not an {_MESSAGE} (data_type)")
    if len(tensor.dims) > MAX_DIMENSIONS:
        raise Unreadable("too many dimensions")
    dtype, size = ELEMENTS[tensor.data_type]
    shape = tuple(tensor.dims)
    if any(dim < 0 for dim in shape) or len(tensor.raw_data) != prod(shape) * size:
        raise Unreadable("values and shape disagree")
    return TensorSpec(tensor.name, dtype, shape)
