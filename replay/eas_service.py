"""What PAI-EAS's TensorFlow processor does with a request, on a servable: the protocol without its transport.

The stock processor is closed. What is documented is followed (URL, authorization, status codes, one warm-up file sent
``warm_up_count`` times); where nothing is documented the closest public code is (DeepRec's processor): aliases become
tensor names, an empty filter is all outputs, an input that is not sent is not fed. Two choices are ours: a bad request
is answered with 400 where DeepRec ends the process, and a failing warm-up fails the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from capture.schema import messages
from capture.signature import DEFAULT_SIGNATURE
from replay import tf_protos
from replay.eas_tensors import ArrayError, fill_array, to_tensor
from replay.executor.api import CODE_NAMES
from replay.host_warmup import WarmupError
from replay.predict import Plan, RequestError
from replay.servable import Servable


class EasService:
    """Request body in, status and response body out."""

    def __init__(self, servable: Servable) -> None:
        self._servable = servable
        self._tensor = tf_protos.load("tensorflow.core.framework.tensor_pb2").TensorProto

    def answer(self, body: bytes) -> tuple[int, bytes]:
        """One PredictRequest. 200 with a PredictResponse, or 400 with a line of text."""
        request = messages.EasPredictRequest()
        try:
            request.ParseFromString(body)
        except DecodeError:
            return 400, b"the body is no PredictRequest"
        try:
            plan = self._plan(request)
            outputs = self._servable.run(plan)
            response = messages.EasPredictResponse()
            for alias, output in zip(plan.output_aliases, outputs, strict=True):
                array = response.outputs[alias]
                array.Clear()  # an output may be asked for twice
                fill_array(array, self._tensor.FromString(output))
        except RequestError as error:
            return 400, f"{CODE_NAMES[error.code]}: {error.message}".encode()
        except ArrayError as error:
            return 400, str(error).encode()
        return 200, response.SerializeToString()

    def _plan(self, request: Any) -> Plan:
        signatures = self._servable.executor.signature_defs
        name = request.signature_name or DEFAULT_SIGNATURE
        if name not in signatures:
            raise ArrayError(f"signature {name!r} not found; the model has {_names(signatures)}")
        signature = signatures[name]
        feeds = []
        for alias in request.inputs:
            if alias not in signature.inputs:
                raise ArrayError(f"input {alias!r} not found; signature {name!r} has {_names(signature.inputs)}")
            try:
                tensor = to_tensor(request.inputs[alias])
            except ArrayError as error:
                raise ArrayError(f"input {alias!r}: {error}") from None
            feeds.append((signature.inputs[alias].name, tensor.SerializeToString()))
        for alias in request.output_filter:
            if alias not in signature.outputs:
                raise ArrayError(f"output {alias!r} not found; signature {name!r} has {_names(signature.outputs)}")
        outputs = tuple(request.output_filter) or tuple(signature.outputs)
        return Plan(feeds, [signature.outputs[alias].name for alias in outputs], tuple(request.inputs), outputs)


def _names(table: Mapping[str, object]) -> str:
    return ", ".join(sorted(table)) or "none"


def warm_up(service: EasService, path: Path, count: int) -> None:
    """Send the body in ``path`` ``count`` times, as ``warm_up_data_path`` and ``metadata.rpc.warm_up_count`` do.

    Raises WarmupError if the file cannot be read or a request fails.
    """
    if path.suffix == ".txt":
        raise WarmupError(f"{path}: .txt warm-up files are for string input; the TensorFlow processor takes a .bin")
    try:
        body = path.read_bytes()
    except OSError as error:
        raise WarmupError(f"{path}: {error.strerror}") from None
    warm_up_body(service, body, path, count)


def warm_up_body(service: EasService, body: bytes, path: Path, count: int) -> None:
    """The same for a body that was read from ``path`` already."""
    for place in range(1, count + 1):
        status, answer = service.answer(body)
        if status != 200:
            text = " ".join(answer.decode("utf-8", "replace").split())
            raise WarmupError(f"{path}: request {place} of {count} was answered with {status}: {text}")
