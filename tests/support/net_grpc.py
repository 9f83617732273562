"""A real grpcio server that proves what it received, and a real grpcio channel that checks what it gets."""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any, Final

import grpc

from tests.support.waiting import PATIENCE, until

#: No model call: what is stored of these is nothing, and a small disk stays as full as a test makes it.
METHOD: Final = "/warmtap.Test/Digest"
#: Seconds between two calls: what is tested is that none fails, and others need the CPU too.
PAUSE: Final = 0.005


def digest(body: bytes) -> bytes:
    """SHA-256, as long as the answers of models are: the relay takes no less than 100 bytes for one."""
    return hashlib.sha256(body).digest() * 8


class _Digest(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Any method answers with the digest of its message."""

    def service(self, _: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda body, _: digest(body))


@contextlib.contextmanager
def grpc_server() -> Iterator[str]:
    """``host:port`` of the server."""
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[_Digest()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


class GrpcLoad:
    """One channel that stays open, and calls on it until told to stop."""

    def __init__(self, port: int, ca: bytes = b"") -> None:
        """``ca``: over TLS, and this PEM is what is trusted."""
        target = f"127.0.0.1:{port}"
        self._channel = (
            grpc.secure_channel(target, grpc.ssl_channel_credentials(ca)) if ca else grpc.insecure_channel(target)
        )
        self._state: Any = None
        self._channel.subscribe(self._changed)
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self.answered = 0
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        rng = random.Random(0)
        call = self._channel.unary_unary(METHOD)
        while not self._stop.wait(PAUSE):
            body = rng.randbytes(rng.choice((10, 1_000, 50_000)))
            try:
                with self._turn:
                    answer = call(body, timeout=PATIENCE)
            except grpc.RpcError as error:
                self.failures.append(f"{error.code()}: {error.details()}")
                break
            if answer != digest(body):
                self.failures.append(f"{len(body)} bytes: wrong answer")
            self.answered += 1

    def _changed(self, state: Any) -> None:
        self._state = state

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """No call while the body runs, in which the server must close the connection, nor until that is known here."""
        with self._turn:
            yield
            until(lambda: self._state != grpc.ChannelConnectivity.READY, "a channel without its connection")

    def more(self, calls: int) -> None:
        """Wait until so many more were answered."""
        goal = self.answered + calls
        until(lambda: self.answered >= goal or self.failures)
        assert not self.failures

    def __enter__(self) -> GrpcLoad:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._channel.close()
