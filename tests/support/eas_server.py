"""A stand-in for EAS's gateway and processors.

The processors are closed and none can run here, so this small HTTP server answers as they are documented to: the right
message for each kind of service, which the real SDK then parses. What they compute it does not.
"""

from __future__ import annotations

import gzip
from collections import Counter
from typing import ClassVar

from capture.schema import messages
from tests.support.eas_bodies import fill_array
from tests.support.net_http import Echo


def _torch() -> bytes:
    answer = messages.TorchPredictResponse()
    fill_array(answer.outputs.add())
    return bytes(answer.SerializeToString())


def _onnx() -> bytes:
    answer = messages.OnnxDataProto()
    answer.tensors.add(name="output", dims=[2], data_type=1, raw_data=bytes(8))
    return bytes(answer.SerializeToString())


def _easyrec(status: int) -> bytes:
    answer = messages.EasyRecResponse(status_code=status, item_ids=["a"], outputs=["probs"])
    if status:
        answer.error_msg = "an exception"
    else:
        answer.results["a"].scores.append(0.5)
    return bytes(answer.SerializeToString())


def _torchrec() -> bytes:
    answer = messages.TorchRecResponse(item_ids=["a"])
    fill_array(answer.map_outputs["probs"])
    return bytes(answer.SerializeToString())


#: Service -> its answer.
ANSWERS = {
    "eas-pytorch": _torch(),
    "eas-pytorch-packed": _torch(),
    "eas-pytorch-flaky": _torch(),
    "eas-onnx": _onnx(),
    "eas-easyrec": _easyrec(0),
    "eas-easyrec-failing": _easyrec(2),
    "eas-torchrec": _torchrec(),
    "eas-string": b'{"ok": true}',
}
#: How often eas-pytorch-flaky fails before it answers.
FAILURES = 2
#: A body that every processor refuses.
NONSENSE = b"\xff\xfe nonsense"


class EasServer(Echo):
    """POST /api/predict/<service>; at the root a PyTorch service."""

    calls: ClassVar[Counter[str]] = Counter()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        service = self.path.removeprefix("/api/predict/").removeprefix("/") or "eas-pytorch"
        self.calls[service] += 1
        if service not in ANSWERS:
            self._answer(404, b"unknown service")
        elif body == NONSENSE:
            self._answer(400, b"parse error")
        elif service.endswith("-flaky") and self.calls[service] <= FAILURES:
            self._answer(500, b"try again")
        else:
            self._answer(200, ANSWERS[service])

    def _answer(self, status: int, answer: bytes) -> None:
        self.send_response(status)
        if "gzip" in self.headers.get("Accept-Encoding", "").split(", "):
            self.send_header("Content-Encoding", "gzip")
            answer = gzip.compress(answer)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
