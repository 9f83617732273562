"""PAI-EAS's TorchEasyRec processor: features, of items too, and candidate items.

Messages: torchrec_predict.proto, as in the EAS SDKs (``TorchRecRequest``).
"""

from __future__ import annotations

from capture.dialects.eas_features import EasFeatures
from capture.schema import messages


class EasTorchRec(EasFeatures):
    """The processor ``easyrec-torch``. Its PBResponse has no status: HTTP's counts."""

    name = "eas-torchrec"
    family = "eas-torchrec"
    message = messages.TorchRecRequest
    what = "EAS TorchEasyRec PBRequest"
    lists = ("context_features", "item_features")
    texts = ("meta_data",)
