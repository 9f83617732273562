"""The table of dialects: the one place that knows them all."""

from __future__ import annotations

import re
from typing import Final

from capture.config import ListenerConfig
from capture.dialects.base import Dialect, Ignored, Route
from capture.dialects.eas import EasDialect
from capture.dialects.eas_easyrec import EasEasyRec
from capture.dialects.eas_onnx import EasOnnx
from capture.dialects.eas_pytorch import EasPyTorch
from capture.dialects.eas_string import EasString
from capture.dialects.eas_tensorflow import EasTensorFlow
from capture.dialects.eas_torchrec import EasTorchRec
from capture.dialects.tfserving_grpc import TFServingGrpc
from capture.dialects.tfserving_rest import TFServingRest
from capture.signature import REST_METHODS

#: In the order in which they are asked under ``dialect: auto``.
_AUTO: Final[tuple[Dialect, ...]] = (TFServingGrpc(), TFServingRest(), EasTensorFlow())
#: Those that a listener's settings name: nothing on the wire tells them from one another.
_CONFIGURED: Final[tuple[Dialect, ...]] = (EasPyTorch(), EasOnnx(), EasEasyRec(), EasTorchRec(), EasString())
DIALECTS: Final = (*_AUTO, *_CONFIGURED)
BY_NAME: Final = {dialect.name: dialect for dialect in DIALECTS}
#: The dialects that a service of PAI-EAS may speak, by name.
EAS: Final = {dialect.name: dialect for dialect in DIALECTS if isinstance(dialect, EasDialect)}

_STORED: Final = {"tfserving": "Predict"} | {dialect.family: "predict" for dialect in EAS.values()}
_TOKEN: Final = re.compile(r"[A-Z]{1,16}")


def stored_route(family: str, model: str, path: str = "", method: str = "") -> Route | None:
    """Where a stored request of this family went; ``path`` and ``method`` as far as they are known. None for a family
    that no dialect reads."""
    first = None
    for dialect in DIALECTS:
        if dialect.family == family and (not method or (method in REST_METHODS) is isinstance(dialect, TFServingRest)):
            listener = ListenerConfig("", dialect=dialect.name, service=model)
            found = dialect.route(b"POST", path, listener) if path else None
            if isinstance(found, Route):
                return Route(dialect, method or found.method, model, path)
            first = first or dialect
    return None if first is None else Route(first, method or _STORED.get(family, ""), model, path)


def _configured(found: Route | Ignored, listener: ListenerConfig) -> Route | Ignored:
    """The same with the dialect that the settings name for this service."""
    if isinstance(found, Route) and isinstance(found.dialect, EasDialect) and found.model in listener.services:
        found.dialect = EAS[listener.services[found.model]]
    return found


def route(http_method: bytes, path: str, grpc: bool, listener: ListenerConfig) -> Route | Ignored:
    """Which dialect reads a request, from its head alone. ``path`` is the target without its query; ``grpc`` says
    that the content type is application/grpc. Dialects decode what is percent-encoded in it."""
    candidates = _AUTO if listener.dialect == "auto" else (BY_NAME[listener.dialect],)
    framing = "grpc" if grpc else "body"
    for dialect in candidates:
        if dialect.framing == framing and (found := dialect.route(http_method, path, listener)) is not None:
            return _configured(found, listener)
    if grpc:
        return Ignored("gRPC, other service")
    method = http_method.decode("latin-1")
    return Ignored(f"HTTP {method if _TOKEN.fullmatch(method) else 'request'}, other path")
