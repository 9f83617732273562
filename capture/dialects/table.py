"""The table of dialects: the one place that knows them all."""

from __future__ import annotations

import re
from typing import Final

from capture.config import ListenerConfig
from capture.dialects.base import Dialect, Ignored, Route
from capture.dialects.eas_tensorflow import EasTensorFlow
from capture.dialects.tfserving_grpc import TFServingGrpc

#: In the order in which they are asked under ``dialect: auto``.
DIALECTS: Final[tuple[Dialect, ...]] = (TFServingGrpc(), EasTensorFlow())
BY_NAME: Final = {dialect.name: dialect for dialect in DIALECTS}

_STORED: Final = {"tfserving": "Predict", "eas": "predict"}
_TOKEN: Final = re.compile(r"[A-Z]{1,16}")


def stored_route(family: str, model: str, path: str = "", method: str = "") -> Route | None:
    """Where a stored request of this family went; ``path`` and ``method`` as far as they are known. None for a family
    that no dialect reads."""
    listener = ListenerConfig("", service=model)
    first = None
    for dialect in DIALECTS:
        if dialect.family == family:
            found = dialect.route(b"POST", path, listener) if path else None
            if isinstance(found, Route):
                return Route(dialect, method or found.method, model, path)
            first = first or dialect
    return None if first is None else Route(first, method or _STORED.get(family, ""), model, path)


def route(http_method: bytes, path: str, grpc: bool, listener: ListenerConfig) -> Route | Ignored:
    """Which dialect reads a request, from its head alone. ``path`` is the target without its query; ``grpc`` says
    that the content type is application/grpc."""
    candidates = DIALECTS if listener.dialect == "auto" else (BY_NAME[listener.dialect],)
    framing = "grpc" if grpc else "body"
    for dialect in candidates:
        if dialect.framing == framing and (found := dialect.route(http_method, path, listener)) is not None:
            return found
    if grpc:
        return Ignored("gRPC, other service")
    method = http_method.decode("latin-1")
    return Ignored(f"HTTP {method if _TOKEN.fullmatch(method) else 'request'}, other path")
