"""A real client: tensorflow-serving-api over grpcio, tensors made by TensorFlow itself, as an application would.

``python -m tests.clients.tfserving_client TARGET MODEL [--reconnect] [--tls CA]`` reads a plan on standard input and
prints ``{"sent": N, "ok": N, "errors": [...]}``. ``--reconnect`` opens a channel for each call; ``--tls`` trusts the
authority in this file; ``--dump`` prints the serialized request of each call as a line of hexadecimal digits instead
of sending it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tests.clients.plan import feeds

_TYPES = {"string": tf.string, "float": tf.float32, "int64": tf.int64}
_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
#: Seconds; a cold call takes one or two.
_TIMEOUT = 120


def request(model: str, call: dict[str, Any]) -> predict_pb2.PredictRequest:
    """One PredictRequest, as tf.make_tensor_proto writes tensors."""
    made = predict_pb2.PredictRequest()
    made.model_spec.name = model
    if call["signature"]:
        made.model_spec.signature_name = call["signature"]
    for feed in feeds(call):
        values = np.array(feed.values, dtype=object if feed.kind == "string" else None).reshape(feed.shape)
        made.inputs[feed.alias].CopyFrom(tf.make_tensor_proto(values, dtype=_TYPES[feed.kind]))
    made.output_filter.extend(call["outputs"])
    return made


def _channel(target: str, ca: Path | None) -> grpc.Channel:
    if ca is None:
        return grpc.insecure_channel(target, options=_OPTIONS)
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(ca.read_bytes()), options=_OPTIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("model")
    parser.add_argument("--reconnect", action="store_true")
    parser.add_argument("--dump", action="store_true")
    parser.add_argument("--tls", type=Path)
    options = parser.parse_args()
    ok, errors = 0, []
    plan = json.load(sys.stdin)
    if options.dump:
        for call in plan:
            print(request(options.model, call).SerializeToString().hex())
        return
    channel = None
    for call in plan:
        if channel is None:
            channel = _channel(options.target, options.tls)
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            stub.Predict(request(options.model, call), timeout=_TIMEOUT)
            ok += 1
        except grpc.RpcError as error:
            errors.append(f"{error.code().name}: {error.details()}")
        if options.reconnect:
            channel.close()
            channel = None
    print(json.dumps({"sent": len(plan), "ok": ok, "errors": errors}))


if __name__ == "__main__":
    main()
