"""Level ``server``: a model server of one's own, started with the warm-up file in place, and asked what production was.

The command is the user's; ``tensorflow_model_server`` and what wraps it are meant. It serves a directory made for it,
on ports that were free, is waited for until its version is AVAILABLE, and is stopped with everything it started.
"""

from __future__ import annotations

import http.client
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote

import grpc

from capture.errors import UserError
from capture.export.tfrecord import WARMUP_PATH, strip_version
from capture.signature import REST_METHODS
from replay import tf_protos
from replay.calls import Counts
from replay.discretion import NodeNames, withheld
from replay.executor.api import GRAPH_BUILDS, XLA_COMPILATIONS, one_line
from replay.figures import Herd, Pass
from replay.passes import herd, serial
from replay.traffic import Judged
from replay.verify import How, Passes, WarmupFile

#: TF Serving's own path, and the file that turns it on (model_servers/main.cc: --monitoring_config_file).
METRICS_PATH: Final = "/monitoring/prometheus/metrics"
MONITORING: Final = f'prometheus_config {{ enable: true, path: "{METRICS_PATH}" }}\n'
#: ModelVersionStatus.State (get_model_status.proto).
AVAILABLE: Final = 30
#: Seconds between two looks at a server that is loading, and for one call to it.
POLL, CALL_TIMEOUT = 0.2, 600.0
#: Seconds that it gets to end after SIGTERM.
GRACE: Final = 30.0
_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
_LOOPBACK = "127.0.0.1"


class ServerError(UserError):
    """The server does not start, or the command is none."""


def on_server(how: How, saved_model: Path, warmup: WarmupFile, judged: Sequence[Judged], model: str) -> Passes:
    """All passes, each on a server started anew. Raises ServerError where it does not come up without the file."""
    with _running(how, saved_model, b"", model) as server:
        cold = serial(server, judged)
        note = (
            ""
            if server.counts().builds is not None
            else f"no graph builds at {{rest_port}}{METRICS_PATH}: does the command use {{monitoring_config}}?"
        )
    herds: dict[str, Herd] = {}
    if how.herd:
        with _running(how, saved_model, b"", model) as server:
            herds = herd(server, judged, how.herd)
    started = time.perf_counter()
    try:
        with _running(how, saved_model, warmup.data, model) as server:
            seconds = time.perf_counter() - started
            # What the load and the warm-up built cannot be told apart from out here.
            warm = serial(server, judged)
            warm.warmup_builds, warm.warmup_seconds = None, seconds
    except ServerError as error:
        text = "the server did not come up with this file; what it says may quote values and is withheld"
        warm = Pass(warmup_builds=None, warmup_seconds=time.perf_counter() - started)
        warm.load_error = text if how.discreet else str(error)
    return Passes("server", "", note, cold, herds, warm)


class PrivateServer:
    """A server that is AVAILABLE. See :class:`replay.passes.Target`."""

    def __init__(self, grpc_port: int, rest_port: int, nodes: NodeNames | None = None) -> None:
        """``nodes``: those of the model, where no error may quote a value."""
        self._nodes = nodes
        self._rest_port = rest_port
        self._channel = grpc.insecure_channel(f"{_LOOPBACK}:{grpc_port}", options=_OPTIONS)

    def call(self, one: Judged) -> str:
        error = self._call(one)
        if not error or self._nodes is None:
            return one_line(error)
        code, _, text = error.partition(": ")
        return f"{code}: {withheld(text, self._nodes)}"

    def _call(self, one: Judged) -> str:
        """The error with all its lines."""
        method = one.signature.method
        if method in REST_METHODS:
            # Always the newest version, here as over gRPC: what production named is not what is served here.
            return self._post(
                f"/v1/models/{quote(one.signature.model, safe='')}:{REST_METHODS[method].lower()}", one.body
            )
        service = "SessionService" if method == "SessionRun" else "PredictionService"
        return self._send(f"/tensorflow.serving.{service}/{method}", strip_version(one.body, method))[0]

    def _post(self, path: str, body: bytes) -> str:
        connection = http.client.HTTPConnection(_LOOPBACK, self._rest_port, timeout=CALL_TIMEOUT)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            connection.close()
        return "" if answer.status == 200 else f"HTTP {answer.status}: {text.lstrip()}"

    def _send(self, path: str, body: bytes, timeout: float = CALL_TIMEOUT) -> tuple[str, bytes]:
        """The error, "" on success, and the answer."""
        call: Any = self._channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
        try:
            return "", call(body, timeout=timeout)
        except grpc.RpcError as error:
            return f"{error.code().name}: {(error.details() or '').lstrip()}", b""

    def counts(self) -> Counts:
        try:
            connection = http.client.HTTPConnection(_LOOPBACK, self._rest_port, timeout=CALL_TIMEOUT)
            connection.request("GET", METRICS_PATH)
            text = connection.getresponse().read().decode()
            connection.close()
        except (OSError, http.client.HTTPException, UnicodeDecodeError):
            return Counts(None, None)
        return read_counts(text)

    def state(self, model: str) -> tuple[int, str]:
        """Of its only version: ModelVersionStatus.State, and the load's error; 0 where it does not answer yet."""
        messages = tf_protos.load("tensorflow_serving.apis.get_model_status_pb2")
        request = messages.GetModelStatusRequest()
        request.model_spec.name = model
        error, answer = self._send(
            "/tensorflow.serving.ModelService/GetModelStatus", request.SerializeToString(), timeout=10
        )
        versions = [] if error else messages.GetModelStatusResponse.FromString(answer).model_version_status
        return next(((int(one.state), str(one.status.error_message)) for one in versions), (0, ""))

    def close(self) -> None:
        self._channel.close()


def read_counts(text: str) -> Counts:
    """The two counters in TF Serving's Prometheus text (util/prometheus_exporter.cc: odd characters become colons),
    summed over their labels. A counter that never moved is absent; None where no counter of TensorFlow is there."""
    if ":tensorflow:" not in text:
        return Counts(None, None)
    return Counts(_sum(text, GRAPH_BUILDS), _sum(text, XLA_COMPILATIONS))


def _sum(text: str, name: str) -> int:
    mangled = re.escape(re.sub(r"\W", ":", name))
    return sum(int(float(value)) for value in re.findall(rf"^{mangled}(?:{{.*}})? (\S+)", text, re.MULTILINE))


@contextmanager
def _running(how: How, saved_model: Path, warmup: bytes, model: str) -> Iterator[PrivateServer]:
    with tempfile.TemporaryDirectory(prefix="warmtap-") as work:
        name = saved_model.resolve().name
        version = name if name.isascii() and name.isdigit() else "1"
        base = Path(work) / "model"
        place_model(saved_model, base / version, warmup)
        config = Path(work) / "monitoring.config"
        config.write_text(MONITORING)
        grpc_port, rest_port = _free_ports()
        command = filled(
            how.server,
            model_name=model,
            model_base_path=str(base),
            model_version=version,
            grpc_port=str(grpc_port),
            rest_port=str(rest_port),
            monitoring_config=str(config),
        )
        with (Path(work) / "log").open("w+b") as log, _process(command, log) as process:
            server = PrivateServer(grpc_port, rest_port, NodeNames(saved_model) if how.discreet else None)
            try:
                _wait(server, process, log, model, how.server_timeout)
                yield server
            finally:
                server.close()


def filled(command: str, **values: str) -> list[str]:
    """The command's words with the placeholders filled in. Raises ServerError."""
    try:
        words = [word.format_map(values) for word in shlex.split(command)]
    except KeyError as error:
        known = ", ".join(f"{{{name}}}" for name in values)
        raise ServerError(f"--server-cmd: no placeholder {{{error.args[0]}}}; there are {known}") from None
    except (ValueError, IndexError) as error:
        raise ServerError(f"--server-cmd: {error}; write {{{{ and }}}} for braces") from None
    if not words:
        raise ServerError("--server-cmd: is empty")
    return words


def place_model(saved_model: Path, target: Path, warmup: bytes) -> None:
    """The version directory, with this warm-up file or, where it is empty, with none. Files are hard links where that
    is possible: a model may be large."""
    shutil.copytree(saved_model, target, copy_function=_link)
    path = target / WARMUP_PATH
    path.unlink(missing_ok=True)
    if warmup:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(warmup)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind((_LOOPBACK, 0))
        other.bind((_LOOPBACK, 0))
        return one.getsockname()[1], other.getsockname()[1]


@contextmanager
def _process(command: list[str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        # A group of its own: a wrapper's children are stopped with it.
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        raise ServerError(f"--server-cmd {command[0]}: {error.strerror}") from None
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(
    server: PrivateServer, process: subprocess.Popen[bytes], log: IO[bytes], model: str, timeout: float
) -> None:  # fmt: skip
    """Until the version is AVAILABLE. Raises ServerError."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if (status := process.poll()) is not None:
            raise ServerError(f"the server ended with exit status {status}: {_last_line(log)}")
        state, error = server.state(model)
        if state == AVAILABLE:
            return
        if error:
            raise ServerError(f"the server could not load it: {one_line(error)}")
        time.sleep(POLL)
    raise ServerError(f"the server was not AVAILABLE within {timeout:g} s: {_last_line(log)}")


def _last_line(log: IO[bytes]) -> str:
    log.flush()
    size = log.seek(0, os.SEEK_END)
    log.seek(max(size - 4096, 0))
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it wrote nothing")
