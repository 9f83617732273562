"""PAI-EAS's EasyRec processor: features and candidate items; its answer says itself whether it succeeded.

Messages: predict.proto of EasyRec, as in the EAS SDKs (``EasyRecRequest``).
"""

from __future__ import annotations

from typing import Final

from capture.dialects.base import Judgement, Outcome, Response, Route
from capture.dialects.eas_features import EasFeatures
from capture.schema import messages
from capture.schema.wire import LENGTH, VARINT, FieldProbe

#: PBResponse: every field of it has a length but status_code.
_STATUS_CODE: Final = 6
_FIELDS: Final = dict.fromkeys(range(1, 11), LENGTH) | {_STATUS_CODE: VARINT}
#: enum StatusCode.
_NAMES: Final = {b"\1": "INPUT_EMPTY", b"\2": "EXCEPTION"}


class EasEasyRec(EasFeatures):
    """The processor ``easyrec``."""

    name = "eas-easyrec"
    family = "eas-easyrec"
    message = messages.EasyRecRequest
    what = "EAS EasyRec PBRequest"
    lists = ("context_features",)
    success = b"\x30\x00"

    def response_probe(self, route: Route) -> FieldProbe | None:
        return FieldProbe(_STATUS_CODE, wire_type=VARINT, known=_FIELDS)

    def judge(self, route: Route, response: Response) -> Judgement:
        """HTTP's word, and where that is success, PBResponse.status_code: OK is 0, which proto3 does not send."""
        judged = super().judge(route, response)
        if judged.outcome is not Outcome.PROVEN:
            return judged
        if not response.probed:
            return Judgement(Outcome.UNPROVEN, "no PBResponse that can be read")
        code = response.probe or b""
        if code.strip(b"\0\x80"):
            return Judgement(Outcome.UNPROVEN, f"EasyRec status_code {_NAMES.get(code, 'unknown')}")
        return judged
