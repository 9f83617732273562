"""The real eas_prediction SDK against a service of each kind, in its own environment (requirements.txt beside this
file).

``python tests/clients/eas/kinds.py ENDPOINT`` sends one request of each class of the SDK to the service that is named
after its dialect, and prints a line of JSON for each: ``{"service": ..., "sent": HEX, "answer": TEXT, "error": TEXT}``.
``--parse DIALECT`` reads lines of hexadecimal digits instead, parses each with the SDK's message for that dialect and
prints it again."""

import json
import sys

import numpy
from eas_prediction import OnnxDataHelper, OnnxRequest, PredictClient, StringRequest, TorchRequest
from eas_prediction.easyrec_request import EasyRecRequest
from eas_prediction.exception import PredictException
from eas_prediction.torchrec_request import TorchRecRequest

_TIMEOUT = 120000


def torch(flag=False, named=False):
    made = TorchRequest(flag)
    if named:
        made.add_feed_map("image", [2, 2], TorchRequest.DT_FLOAT, [1.0, 2.0, 3.0, 4.0])
        made.add_feed_map("ids", [3], TorchRequest.DT_INT64, [7, 8, 9])
    else:
        made.add_feed(0, [1, 40], TorchRequest.DT_FLOAT, [0.5] * 40)
        made.add_feed(1, [2], TorchRequest.DT_INT32, [1, 2])
        made.add_fetch(0)
    return made


def onnx():
    made = OnnxRequest()
    made.add_tensor(OnnxDataHelper.from_array(numpy.ones((1, 3), numpy.float32), "input"))
    made.add_tensor(OnnxDataHelper.from_array(numpy.zeros((2,), numpy.int64), "mask"))
    return made


def easyrec():
    made = EasyRecRequest()
    made.add_user_fea_int("age", 30)
    made.add_user_fea_str("city", "hz")
    made.add_user_fea_flt("score", 0.5)
    made.request_data.item_ids.extend(["a", "b"])
    for price in (1.0, 2.0):
        made.request_data.context_features["price"].features.add().float_feature = price
    return made


def torchrec():
    made = TorchRecRequest()
    made.add_user_fea("age", 30, "INT")
    made.add_user_fea("tags", ["x", "y"], "LIST<STRING>")
    made.add_user_fea("weights", {"a": 0.5}, "MAP<STRING,FLOAT>")
    made.add_user_fea("matrix", [[1.0], [2.0, 3.0]], "ARRAY<ARRAY<FLOAT>>")
    made.add_context_fea("hour", 7, "INT64")
    made.add_item_fea("title", "t", "STRING")
    made.add_item_id("a")
    made.add_meta_data("scene", "home")
    return made


#: (service, request). Services are named after their dialects, with more behind a dash where one is not enough.
REQUESTS = [
    ("eas-pytorch", torch),
    ("eas-pytorch", lambda: torch(named=True)),
    ("eas-pytorch-packed", lambda: torch(flag=True)),
    ("eas-onnx", onnx),
    ("eas-easyrec", easyrec),
    ("eas-easyrec-failing", easyrec),
    ("eas-torchrec", torchrec),
    ("eas-string", lambda: StringRequest('{"question": "ü", "n": [1, 2]}')),
    ("eas-string", lambda: StringRequest("plain text")),
    # Answers 500 twice: the SDK sends it again by itself.
    ("eas-pytorch-flaky", torch),
]
MESSAGES = {
    "eas-pytorch": TorchRequest,
    "eas-onnx": OnnxRequest,
    "eas-easyrec": EasyRecRequest,
    "eas-torchrec": TorchRecRequest,
}


def send(endpoint, service, request):
    client = PredictClient(endpoint, service)
    client.set_token("a-secret-token")
    client.set_timeout(_TIMEOUT)
    client.init()
    sent = request.to_string()
    told = {
        "service": service,
        "sent": (sent.encode() if isinstance(sent, str) else sent).hex(),
        "answer": "",
        "error": "",
    }
    try:
        answer = client.predict(request)
        response = getattr(answer, "response", answer)
        told["answer"] = str(response)
    except PredictException as error:
        told["error"] = str(error)
    print(json.dumps(told))


def main():
    if sys.argv[1] == "--parse":
        for line in sys.stdin:
            message = MESSAGES[sys.argv[2]]().request_data
            message.ParseFromString(bytes.fromhex(line))
            print(message.SerializeToString().hex())
        return
    for service, make in REQUESTS:
        send(sys.argv[1], service, make())


if __name__ == "__main__":
    main()
