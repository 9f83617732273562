"""Message classes of the schemas in ``proto/``, built from the committed descriptor set in a private pool.

Generated code would tie warmtap to one protobuf version, and the default pool would clash with the servers' own
packages, which register the same file and message names. ``make schema`` writes the descriptor set anew.
"""

from __future__ import annotations

from importlib import resources
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

DESCRIPTOR_SET: Final = "descriptors.binpb"

_pool = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(
    resources.files("capture.schema").joinpath(DESCRIPTOR_SET).read_bytes()
).file:
    _pool.Add(_file)


def _message(name: str) -> Any:
    """The class of the message with this full name; its instances are protobuf messages, untyped here."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(name))


ModelSpec: Final = _message("warmtap.tfserving.ModelSpec")
PredictRequest: Final = _message("warmtap.tfserving.PredictRequest")
Example: Final = _message("warmtap.tfserving.Example")
ExamplesRequest: Final = _message("warmtap.tfserving.ExamplesRequest")
ExamplesRequestHead: Final = _message("warmtap.tfserving.ExamplesRequestHead")
MultiInferenceRequest: Final = _message("warmtap.tfserving.MultiInferenceRequest")
MultiInferenceRequestHead: Final = _message("warmtap.tfserving.MultiInferenceRequestHead")
SessionRunRequest: Final = _message("warmtap.tfserving.SessionRunRequest")
PredictLog: Final = _message("warmtap.tfserving.PredictLog")
PredictionLog: Final = _message("warmtap.tfserving.PredictionLog")
TensorShape: Final = _message("warmtap.tfserving.TensorShape")
Tensor: Final = _message("warmtap.tfserving.Tensor")
SignatureDef: Final = _message("warmtap.tfserving.SignatureDef")
SignatureEntry: Final = _message("warmtap.tfserving.SignatureEntry")
MetaInfoDef: Final = _message("warmtap.tfserving.MetaInfoDef")
EasArrayProto: Final = _message("warmtap.eas.ArrayProto")
EasPredictRequest: Final = _message("warmtap.eas.PredictRequest")
EasPredictResponse: Final = _message("warmtap.eas.PredictResponse")
TorchPredictRequest: Final = _message("warmtap.eas.torch.PredictRequest")
TorchPredictResponse: Final = _message("warmtap.eas.torch.PredictResponse")
OnnxDataProto: Final = _message("warmtap.eas.onnx.DataProto")
EasyRecRequest: Final = _message("warmtap.eas.easyrec.PBRequest")
EasyRecResponse: Final = _message("warmtap.eas.easyrec.PBResponse")
TorchRecRequest: Final = _message("warmtap.eas.torchrec.PBRequest")
TorchRecResponse: Final = _message("warmtap.eas.torchrec.PBResponse")
