"""Running stored requests on a SavedModel, as the server that they were sent to would."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from google.protobuf.message import DecodeError

from capture.convert.rest import grpc_request
from capture.convert.values import ConversionError
from capture.signature import REST_METHODS, SignatureDef
from replay import eas_service, host_warmup, inference
from replay.executor.api import CODE_NAMES, XLA_COMPILATIONS, Executor
from replay.predict import RequestError
from replay.servable import Servable


@dataclass(frozen=True, slots=True)
class Ran:
    """One request that was run. ``builds`` are the graphs that were built meanwhile and ``compilations`` the clusters
    that XLA compiled, None where they cannot be counted; ``seconds`` is the wall time of the whole call."""

    ok: bool
    message: str
    seconds: float
    builds: int | None
    compilations: int | None = None


class Counts(NamedTuple):
    """Two of a process's counters; None where one cannot be read."""

    builds: int | None
    compilations: int | None

    def since(self, before: Counts) -> Counts:
        """What was added after ``before``."""
        return Counts(_added(self.builds, before.builds), _added(self.compilations, before.compilations))


def _added(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else now - before


class Caller(Protocol):
    """One server family's way from a request body to Session::Run."""

    def call(self, body: bytes, method: str) -> str:
        """Run one request of this method; "" on success, otherwise the server's error on one line."""

    def warm_up(self, data: bytes, path: Path, count: int) -> None:
        """Apply a warm-up file that holds ``data`` as the server does on start. Raises host_warmup.WarmupError."""


class TFServingCaller:
    """Requests of every method that reaches Session::Run, over gRPC and over REST."""

    def __init__(self, executor: Executor) -> None:
        self._servable = Servable("", 0, executor)
        self._defs = signature_defs(executor)

    def call(self, body: bytes, method: str) -> str:
        try:
            if method in REST_METHODS:
                body, method = grpc_request(method, body, "", self._defs), REST_METHODS[method]
            request = inference.request_class(method).FromString(body)
            if method == "SessionRun":
                inference.session_run(self._servable, request)
            else:
                inference.METHODS[method][2](self._servable, request, live=False)
        except ConversionError as error:
            return error.status()
        except DecodeError:
            return f"INVALID_ARGUMENT: not a request of {method}"
        except RequestError as error:
            return f"{CODE_NAMES[error.code]}: {error.message}"
        return ""

    def warm_up(self, data: bytes, path: Path, count: int) -> None:
        host_warmup.warm_up_records(self._servable, io.BytesIO(data), path, count)


class EasCaller:
    """EAS TensorFlow PredictRequest bodies."""

    def __init__(self, executor: Executor) -> None:
        self._service = eas_service.EasService(Servable("", 0, executor))

    def call(self, body: bytes, method: str) -> str:
        status, answer = self._service.answer(body)
        return "" if status == 200 else answer.decode("utf-8", "replace").splitlines()[0]

    def warm_up(self, data: bytes, path: Path, count: int) -> None:
        eas_service.warm_up_body(self._service, data, path, count)


#: Server family -> its caller.
CALLERS: Mapping[str, type[TFServingCaller] | type[EasCaller]] = {"tfserving": TFServingCaller, "eas": EasCaller}


def counts(executor: Executor) -> Counts:
    """Of the process that the executor is in."""
    return Counts(executor.builds(), executor.counter(XLA_COMPILATIONS))


def counted(call: Callable[[], str], count: Callable[[], Counts]) -> Ran:
    """Make one call, which returns its error, and count what was built meanwhile."""
    before = count()
    start = time.perf_counter()
    message = call()
    seconds = time.perf_counter() - start
    return Ran(not message, message, seconds, *count().since(before))


def run_counted(executor: Executor, caller: Caller, body: bytes, method: str = "Predict") -> Ran:
    """Run one request alone and count what it built. EAS has one method, whatever its name."""
    return counted(lambda: caller.call(body, method), lambda: counts(executor))


def signature_defs(executor: Executor) -> dict[str, SignatureDef]:
    """The loaded model's signatures as executor keys are made from."""
    return {
        key: SignatureDef(
            inputs=signature.inputs,
            outputs=signature.outputs,
            method_name=signature.method_name,
            defaults=frozenset(signature.defaults),
        )
        for key, signature in executor.signature_defs.items()
    }
