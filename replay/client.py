"""Sending one stored request to a running server, byte for byte, over the protocol that it was captured from."""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import grpc

#: A PredictRequest may be as large as a protobuf message can be.
_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of one request. ``error`` is empty on success; ``seconds`` is the wall time that the caller saw."""

    error: str
    seconds: float


class Sender(Protocol):
    """Sends bodies to one server."""

    def send(self, body: bytes) -> Sent:
        """One request; waits for its answer."""

    def close(self) -> None:
        """Give the connection back."""


class TFServingSender:
    """PredictRequest bodies over gRPC."""

    def __init__(self, target: str, timeout: float) -> None:
        """``target`` is ``host:port``, ``timeout`` seconds for each call."""
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self._timeout = timeout
        self._predict: Any = self._channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict", request_serializer=bytes, response_deserializer=bytes
        )

    def send(self, body: bytes) -> Sent:
        start = time.perf_counter()
        try:
            self._predict(body, timeout=self._timeout)
        except grpc.RpcError as error:
            text = f"{error.code().name}: {error.details()}"
            return Sent(text, time.perf_counter() - start)
        return Sent("", time.perf_counter() - start)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class EasSender:
    """EAS request bodies over HTTP, on one kept connection."""

    def __init__(self, target: str, service: str, timeout: float) -> None:
        """``target`` is ``host:port``, ``timeout`` seconds for each call."""
        host, _, port = target.rpartition(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
        self._path = f"/api/predict/{service}"

    def send(self, body: bytes) -> Sent:
        start = time.perf_counter()
        try:
            self._connection.request("POST", self._path, body, {"Content-Type": "application/octet-stream"})
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return Sent(f"{type(error).__name__}: {error}", time.perf_counter() - start)
        seconds = time.perf_counter() - start
        if response.status == 200:
            return Sent("", seconds)
        return Sent(f"HTTP {response.status}: {answer[:200].decode('utf-8', 'replace')}", seconds)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
