"""PAI-EAS's PyTorch processor: inputs by position or by name, outputs by position.

Messages: pytorch_predict.proto of the EAS SDKs (``TorchRequest.add_feed``, ``add_feed_map``, ``add_fetch``). What the
closed processor does with a request that has inputs of both kinds is not known; such a request is a kind of its own.
"""

from __future__ import annotations

from typing import Final

from capture.dialects.base import Route, Unreadable
from capture.dialects.eas import EasDialect, parsed
from capture.dialects.eas_arrays import array_spec
from capture.schema import messages
from capture.signature import Call, wire_signature

_MESSAGE: Final = "EAS PyTorch PredictRequest"


class EasPyTorch(EasDialect):
    """The processors ``pytorch_*``. Key: how many inputs by position, the names of the others, output_filter,
    debug_level.

    Inputs by position are named ``[0]``, ``[1]``, ...; the fields that were used stand in the place of a signature
    name, with a debug_level where there is one."""

    name = "eas-pytorch"
    family = "eas-pytorch"
    #: inputs, output_filter (packed), map_inputs.
    begins = b"\x0a\x12\x1a"

    def read(self, route: Route, body: bytes) -> Call:
        request = parsed(messages.TorchPredictRequest, body, _MESSAGE)
        tensors = [array_spec(f"[{place}]", array, _MESSAGE) for place, array in enumerate(request.inputs)]
        tensors += [array_spec(name, array, _MESSAGE) for name, array in request.map_inputs.items()]
        tensors.sort(key=lambda tensor: tensor.name)
        if not tensors:
            raise Unreadable("no inputs")
        used = "+".join(field for field in ("inputs", "map_inputs") if getattr(request, field))
        if request.debug_level:
            used += f" debug_level={request.debug_level}"
        signature = wire_signature(
            self.family,
            route.model,
            route.method,
            used,
            [tensor.name for tensor in tensors],
            map(str, request.output_filter),
        )
        return Call(signature, tuple(tensors))
