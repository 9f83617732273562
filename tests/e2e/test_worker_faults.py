"""The capture worker is killed and stopped under load from real clients: no request fails, capture resumes, and what
was missed is said."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capture.schema import messages
from replay.client import EasSender, TFServingSender
from tests.e2e.conftest import SERVICE, Front, front
from tests.support.net_sidecar import Sidecar, balanced
from tests.support.tf_host import HostProcess
from tests.support.tf_requests import DT_FLOAT, predict_request, tensor
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server

JS = Path(__file__).parents[1] / "clients" / "js"
SUM = "Predict edge/serving_default (x) -> (sum)"
DOUBLE = "Predict edge/serving_default (x) -> (double)"


def grpc_body(outputs: list[str], rows: int = 2, signature: str = "") -> bytes:
    inputs = {"x": tensor(DT_FLOAT, [rows, 3], [1.0] * rows * 3)}
    request = predict_request(inputs, model="edge", outputs=outputs, signature=signature)
    return bytes(request.SerializeToString())


def eas_body(outputs: list[str], rows: int = 2) -> bytes:
    request = messages.EasPredictRequest(signature_name="serving_default", output_filter=outputs)
    request.inputs["x"].dtype = 1
    request.inputs["x"].array_shape.dim.extend([rows, 3])
    request.inputs["x"].float_val.extend([1.0] * rows * 3)
    return bytes(request.SerializeToString())


class Load:
    """Clients that send until told to stop; ``errors`` is what any of them was told."""

    def __init__(self, place: Front) -> None:
        self.errors: list[str] = []
        self.sent = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        grpc, eas = grpc_body(["sum"]), eas_body(["sum"])
        jobs: list[Callable[[], Any]] = [
            lambda: self._keep(TFServingSender(place.grpc, 60), grpc),
            lambda: self._keep(EasSender(place.eas, SERVICE, 60), eas),
            lambda: self._reconnect(lambda: EasSender(place.eas, SERVICE, 60), eas),
        ]
        self._threads = [threading.Thread(target=job, daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    def _note(self, error: str) -> None:
        with self._lock:
            self.sent += 1
            if error:
                self.errors.append(error)

    def _keep(self, sender: TFServingSender | EasSender, body: bytes) -> None:
        with sender:
            while not self._stop.is_set():
                self._note(sender.send(body).error)

    def _reconnect(self, make: Callable[[], EasSender], body: bytes) -> None:
        while not self._stop.is_set():
            with make() as sender:
                self._note(sender.send(body).error)

    def more(self, requests: int) -> None:
        """Wait until so many more were answered."""
        goal = self.sent + requests
        until(lambda: self.sent >= goal, f"{requests} more requests")

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def lines(place: Front) -> set[str]:
    """The gRPC signatures in the store, as users read them."""
    if not place.path.exists():
        return set()
    store = place.store()
    found = {str(row.signature) for row in store.signatures("edge")}
    store.close()
    return found


def test_killing_the_worker_fails_no_request_and_capture_resumes(edge_host: HostProcess, tmp_path: Path) -> None:
    place = front(edge_host, tmp_path)
    with place.sidecar:
        load = Load(place)
        load.more(100)
        # Before the worker has read anything, its store may be a file that is still empty.
        place.wait_observed(1)
        until(lambda: SUM in lines(place), "the first signature in the store")
        for start in (1, 2):
            os.kill(place.sidecar.pid("worker", start), signal.SIGKILL)
            place.sidecar.pid("worker", start + 1)
            load.more(100)
        load.stop()
        assert load.errors == []
        before = place.count("requests_observed")
        with TFServingSender(place.grpc, 60) as sender:
            assert sender.send(grpc_body(["double"])).error == ""
        place.wait_observed(before + 1)
        until(lambda: balanced(place.counters.snapshot()), "every byte seen or counted as lost")
        assert place.count("worker_starts") == 3
        # The tap outlives the worker: nothing is lost but what a worker held when it died.
        assert place.count("tap_detached") == 0
        assert place.count("tap_lost_client_bytes") == 0
    # What was stored before the kills, what was sent behind them, and nothing that no client sent.
    assert lines(place) == {SUM, DOUBLE}


def test_a_stopped_worker_costs_bytes_not_requests_and_the_channel_is_read_again(
    edge_host: HostProcess, tmp_path: Path
) -> None:
    """The tap's buffers overflow while the worker is stopped; the channel that stays open is aligned again."""
    place = front(edge_host, tmp_path)
    large = grpc_body(["sum"], rows=100_000)
    with place.sidecar:
        worker = place.sidecar.pid("worker")
        with TFServingSender(place.grpc, 60) as sender:
            for _ in range(50):
                assert sender.send(grpc_body(["sum"])).error == ""
            place.wait_observed(50)
            os.kill(worker, signal.SIGSTOP)
            for _ in range(100):
                assert sender.send(large).error == ""
            assert place.count("tap_lost_client_bytes") > 0
            os.kill(worker, signal.SIGCONT)

            # The same channel goes on; the gap lies behind what was buffered, so it takes some requests to pass it.
            def found() -> bool:
                assert sender.send(grpc_body(["double"])).error == ""
                return DOUBLE in lines(place)

            until(found, "a signature that was first sent behind the gap")
        until(lambda: balanced(place.counters.snapshot()), "every byte seen or counted as lost")
        counters = place.counters.snapshot()
        assert counters["requests_lost"] + counters["requests_missed"] > 0
        assert counters["worker_starts"] == 1
    assert lines(place) == {SUM, DOUBLE}


def counted_behind_kills(place: Front) -> dict[str, int]:
    """The counters, once what was sent last is stored and every byte accounted for."""
    until(lambda: DOUBLE in lines(place), "a signature that was first sent behind the kills")
    until(lambda: balanced(place.counters.snapshot()), "every byte seen or counted as lost")
    return place.counters.snapshot()


def read_on(place: Front, now: dict[str, int], sent: list[bytes], kills: int) -> None:
    """``sent`` and one call more. At most one call was open at each kill; each is read right, or counted as lost."""
    assert now["requests_lost"] <= kills
    assert now["requests_observed"] + now["requests_lost"] == len(sent) + 1
    assert (now["requests_missed"], now["flows_unsynced"], now["tap_lost_client_bytes"]) == (0, 0, 0)
    assert lines(place) == {SUM, DOUBLE}
    # A wrong body would not be one of those that were sent.
    assert stored_bodies(place) <= {*sent, grpc_body(["double"])}


def test_a_channel_that_stays_open_across_kills_is_read_on(edge_host: HostProcess, tmp_path: Path) -> None:
    """A warm grpcio channel names its path by an index into a table that only the dead worker had seen being built."""
    place = front(edge_host, tmp_path, sheds=False)
    kills, calls = 4, 40
    with place.sidecar, TFServingSender(place.grpc, 60) as sender:
        sent = [grpc_body(["sum"], rows=1 + number) for number in range(kills * calls)]
        for number, body in enumerate(sent):
            assert sender.send(body).error == ""
            if number % calls == calls // 2:
                start = 1 + number // calls
                place.wait_observed(1)  # the worker has begun to read
                os.kill(place.sidecar.pid("worker", start), signal.SIGKILL)
                place.sidecar.pid("worker", start + 1)
        assert sender.send(grpc_body(["double"])).error == ""
        now = counted_behind_kills(place)
    read_on(place, now, sent, kills)


def test_a_channel_is_read_on_by_the_next_worker_of_another_container(edge_host: HostProcess, tmp_path: Path) -> None:
    """The same where the worker is not started by the sidecar, is killed, and the next one connects: nothing waits for
    it but the tap."""
    path = tmp_path / "worker.sock"
    place = front(edge_host, tmp_path, sheds=False, worker_socket=str(path))
    kills, calls = 2, 40
    sent = [grpc_body(["sum"], rows=1 + number) for number in range(kills * calls)]
    with place.sidecar, TFServingSender(place.grpc, 60) as sender, contextlib.ExitStack() as ends:

        def connect(start: int) -> Sidecar:
            worker = Sidecar("worker", "--connect", f"unix:{path}", cwd=tmp_path, module="capture")
            ends.callback(worker.stop, signal.SIGKILL)
            place.sidecar.wait_for("worker connected", start)
            return worker

        worker = connect(1)
        worker.wait_for("msg=reading")
        for number, body in enumerate(sent):
            assert sender.send(body).error == ""
            if number % calls == calls // 2:
                place.wait_observed(1 + number // calls * calls)
                assert worker.stop(signal.SIGKILL) == -signal.SIGKILL
            if number % calls == calls - 1:
                worker = connect(2 + number // calls)
        assert sender.send(grpc_body(["double"])).error == ""
        now = counted_behind_kills(place)
    read_on(place, now, sent, kills)


class JsChannel:
    """A real grpc-js client with one channel, in a process of its own."""

    def __init__(self, target: str, ca: str = "") -> None:
        """``ca``: over TLS, and this is whom it trusts."""
        node = shutil.which("node")
        if node is None or not (JS / "node_modules").is_dir():
            pytest.skip("node is missing, or `make setup` has not installed tests/clients/js")
        self._process = subprocess.Popen(
            [node, str(JS / "client.js"), target, *filter(None, [ca])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, body: bytes, path: str = "/tensorflow.serving.PredictionService/Predict") -> int:
        """The status code of one call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path} {base64.b64encode(body).decode()}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __enter__(self) -> JsChannel:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=PATIENCE)


def test_a_grpc_js_channel_that_stays_open_across_kills_is_read_on(edge_host: HostProcess, tmp_path: Path) -> None:
    """Its encoder changes the header table with every call. Calls of another method are not taken for them."""
    place = front(edge_host, tmp_path, sheds=False)
    kills, calls = 4, 40
    other = "/tensorflow.serving.PredictionService/GetModelMetadata"
    with place.sidecar, JsChannel(place.grpc) as channel:
        sent = [grpc_body(["sum"], rows=1 + number) for number in range(kills * calls)]
        others = 0
        for number, body in enumerate(sent):
            assert channel.send(body) == 0
            if number % 5 == 0:
                # Its body would parse as a PredictRequest, of an input that no Predict ever had.
                channel.send(grpc_body(["never"]), other)
                others += 1
            if number % calls == calls // 2:
                start = 1 + number // calls
                place.wait_observed(1)
                os.kill(place.sidecar.pid("worker", start), signal.SIGKILL)
                place.sidecar.pid("worker", start + 1)
        assert channel.send(grpc_body(["double"])) == 0
        until(lambda: DOUBLE in lines(place), "a signature that was first sent behind the kills")
        until(lambda: balanced(place.counters.snapshot()), "every byte seen or counted as lost")
        now = place.counters.snapshot()
    assert now["requests_lost"] <= kills
    assert now["requests_observed"] + now["requests_lost"] == len(sent) + others + 1
    assert (now["requests_missed"], now["flows_unsynced"], now["tap_lost_client_bytes"]) == (0, 0, 0)
    # A wrong path would be another signature, a wrong body none of those that were sent.
    assert lines(place) == {SUM, DOUBLE}
    assert stored_bodies(place) <= {*sent, grpc_body(["double"])}


def stored_bodies(place: Front) -> set[bytes]:
    store = place.store()
    found = {sample.body for row in store.signatures("edge") if (sample := store.sample(row.key)) is not None}
    found |= {held.sample.body for _, held in store.held_out("edge")}
    store.close()
    return found
