"""A REST call as the gRPC request that TF Serving itself makes of it: what runs, and what a warm-up file holds."""

from __future__ import annotations

from collections.abc import Mapping

from capture.convert.examples import examples_request
from capture.convert.predict import predict_request
from capture.signature import REST_METHODS, SignatureDef


def grpc_request(method: str, body: bytes, model: str, defs: Mapping[str, SignatureDef]) -> bytes:
    """The serialized request of ``REST_METHODS[method]`` for a model with these SignatureDefs. Raises
    capture.convert.values.ConversionError where the server would refuse the body."""
    if REST_METHODS[method] == "Predict":
        return predict_request(body, model, defs)
    return examples_request(body, model)
