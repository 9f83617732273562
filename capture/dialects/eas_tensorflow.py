"""PAI-EAS's TensorFlow processor: a protobuf PredictRequest in the body.

Messages: tf_request.proto of the EAS SDKs. A TF Serving PredictRequest parses as one of these; what fits badly is
refused.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from capture.dialects.base import Route, Unreadable
from capture.dialects.eas import EasDialect, parsed
from capture.dialects.eas_arrays import array_spec
from capture.dialects.skeletons import Skeletons, tensor_contents
from capture.schema import messages
from capture.signature import Call, wire_signature

_MESSAGE: Final = "EAS TensorFlow PredictRequest"
#: float_val and double_val, packed, and string_val: whatever is in them, they parse, and their lengths say how many
#: they are. Of integers the bytes decide how many.
_SKELETONS: Final = Skeletons(tensor_contents(frozenset((3, 4, 6)).__contains__))
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class EasTensorFlow(EasDialect):
    """The processors ``tensorflow_cpu_*`` and ``tensorflow_gpu_*``. Key: signature name, inputs, output filter."""

    name = "eas-tensorflow"
    family = "eas"
    #: signature_name, inputs, output_filter.
    begins = b"\x0a\x12\x1a"

    def read(self, route: Route, body: bytes) -> Call:
        return _SKELETONS.read((route.model, route.method), body, partial(self._read, route))

    def _read(self, route: Route, body: bytes) -> Call:
        request = parsed(messages.EasPredictRequest, body, _MESSAGE)
        if _CONTROL.search(request.signature_name):
            raise Unreadable(f"not an {_MESSAGE} (signature_name)")
        if not request.inputs:
            # An empty body is a valid message and means nothing.
            raise Unreadable("no inputs")
        tensors = [array_spec(alias, array, _MESSAGE) for alias, array in request.inputs.items()]
        tensors.sort(key=lambda tensor: tensor.name)
        signature = wire_signature(
            self.family, route.model, route.method, request.signature_name, request.inputs, request.output_filter
        )
        return Call(signature, tuple(tensors))
