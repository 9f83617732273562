"""``capture watch``: on real TensorFlow behind the sidecar; and how it ends and goes on where a server misbehaves, for
which a small HTTP server stands in that says what the test wants."""

from __future__ import annotations

import threading
import time
import urllib.request
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from capture.export.tfrecord import frame, prediction_log
from capture.store.base import Batch
from replay import tf_protos
from replay.watch_metrics import PREFIX, ROWS
from replay.watching import METRICS_PATH
from tests.e2e.conftest import Front, front
from tests.support.processes import Process, capture
from tests.support.stores import add, filled, signature
from tests.support.tf_host import HostProcess
from tests.support.tf_models import private_copy
from tests.support.tf_requests import predict_request, ranking_inputs, write_warmup
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server

KNOWN = predict_request(ranking_inputs(), outputs=["score"])
UNSEEN = predict_request(ranking_inputs(), outputs=["score", "model_version_id"])


def call(place: Front, request: object) -> None:
    """One Predict through the sidecar, until the store has its signature."""
    before = place.count("store_writes")
    with grpc.insecure_channel(place.grpc) as channel:
        stub = tf_protos.load("tensorflow_serving.apis.prediction_service_pb2_grpc").PredictionServiceStub(channel)
        stub.Predict(request)
    until(lambda: place.count("store_writes") > before, "a batch in the store")


def test_a_warm_server_is_quiet_and_an_unseen_signature_is_named(ranking: Path, tmp_path: Path) -> None:
    copy = private_copy(ranking, tmp_path)
    write_warmup(copy, frame(prediction_log(KNOWN.SerializeToString(), "Predict")))
    with HostProcess(copy, eas=True) as host:
        place = front(host, tmp_path, sheds=False)
        with place.sidecar:
            watch = ("watch", "--metrics", f"http://{host.stats}", "--store", str(place.path))
            call(place, KNOWN)
            with Process("capture", *watch, "--once", "--interval", "4") as looking:
                looking.wait_for("event=first")
                call_again(place)
                assert "nothing was built" in looking.wait_for("event=quiet .*")[0]
                assert looking.process.wait() == 0
            looking = Process("capture", *watch, "--interval", "0.5", "--settle", "10")
            looking.wait_for("event=first")
            call(place, UNSEEN)
            miss = looking.wait_for("event=miss .*")[0]
            assert "graph_build_calls=1 " in miss
            assert '1 graph build while calls waited; first seen then: 1 signature"' in miss
            suspect = looking.wait_for("event=suspect .*")[0]
            assert 'line="Predict ranking/serving_default (category, dense, item_ids, user_id) -> ' in suspect
            assert "fetches also: model_version_id" in suspect
            assert "on=ranking/1" in suspect
            # The same of the file, by the store alone: of three calls two are covered, by one client.
            judged = capture("coverage", "--warmup", str(copy), "--store", str(place.path), "--saved-model", str(copy))
            assert judged.returncode == 1, judged
            assert "fetches also: model_version_id" in judged.stdout
            assert "not covered: 2 of 3 calls of ranking (66.67 %), 1 of 2 keys" in judged.stdout
            with closing(place.store()) as stored:
                blocks = stored.blocks()
            assert {block.client.partition("-")[0] for block in blocks} == {"grpc"}
            assert sum(block.calls for block in blocks) == 3
            # Another process in its place, with the file that lacks it: no miss before it is called again.
            host.stop()
            with HostProcess(copy, f"--grpc-listen={host.grpc}", f"--stats-listen={host.stats}", grpc=False, eas=False):
                looking.wait_for("event=restarted")
                call(place, UNSEEN)
                miss = looking.wait_for(".*this server had not built one of .*")[0]
                assert miss.startswith("event=miss ")
                assert "graph_build_calls=1 " in miss
                looking.wait_for("event=suspect .*from nothing: it was called before")
            looking.stop()
            assert len([line for line in looking.lines if "event=miss" in line]) == 2


def call_again(place: Front) -> None:
    """What is warm, once more."""
    observed = place.count("requests_observed")
    with grpc.insecure_channel(place.grpc) as channel:
        tf_protos.load("tensorflow_serving.apis.prediction_service_pb2_grpc").PredictionServiceStub(channel).Predict(
            KNOWN
        )
    place.wait_observed(observed + 1)


class Saying(ThreadingHTTPServer):
    """Answers with the next of ``texts`` at the metrics' path, with the last one again and again; 404 elsewhere, and
    for an empty text 500."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Saying

    def do_GET(self) -> None:
        text = "" if self.path == METRICS_PATH else None
        if text is not None:
            text = self.server.texts.pop(0) if len(self.server.texts) > 1 else self.server.texts[0]
        self.send_response(404 if text is None else 200 if text else 500)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, format: str, *args: object) -> None:
        """Not in the tests' output."""


def builds(count: int, loads: int = 1) -> str:
    attempts = f':tensorflow:cc:saved_model:load_attempt_count{{model_path="/m/1",status="success"}} {loads}'
    return f":tensorflow:core:graph_build_calls{{}} {count}\n{attempts}\n"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    batch = Batch("run1")
    add(batch, signature())
    filled(tmp_path / "s", batch).close()
    return tmp_path / "s"


@pytest.mark.parametrize(
    ("second", "status", "text"),
    [
        (builds(5), 0, "event=quiet"),
        (builds(7), 1, "no signature was called then: what was called passed unseen"),
        (builds(9, loads=2), 2, "event=loading"),
        (builds(1), 2, "event=restarted"),
        ("up 1\n", 2, "event=missing"),
    ],
)
def test_once(store: Path, second: str, status: int, text: str) -> None:
    with Saying(builds(5), second) as server:
        where = f"127.0.0.1:{server.server_port}"
        done = capture(
            "watch", "--metrics", where, "--store", str(store), "--once", "--interval", "0.1", "--settle", "0"
        )
        server.shutdown()
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.count("\n") == 2
    assert text in done.stdout


def test_a_server_that_is_away_for_a_while_is_watched_on(store: Path) -> None:
    with Saying(builds(5), "", builds(1), builds(2)) as server:
        where = f"http://127.0.0.1:{server.server_port}/"
        looking = Process(
            "capture", "watch", "--metrics", where, "--store", str(store), "--interval", "0.1", "--settle", "0"
        )
        for event in ("first", "unreachable", "restarted", "miss"):
            looking.wait_for(f"^event={event} ")
        assert looking.stop() == 143
        server.shutdown()


def seen(url: str) -> dict[tuple[str, str], float]:
    """What Prometheus gets: by metric, without the prefix, and event."""
    with urllib.request.urlopen(url, timeout=PATIENCE) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    assert {family.name for family in families} == {row.name.removesuffix("_total") for row in ROWS}
    samples = [sample for family in families for sample in family.samples]
    return {(one.name.removeprefix(PREFIX), one.labels.get("event", "")): one.value for one in samples}


def test_what_prometheus_sees_of_it(store: Path) -> None:
    # Away at first, then there; two builds and a compilation for calls, then gone for good.
    text = builds(7) + ":tensorflow:core:xla_compilations{} 1\n"
    with Saying("", builds(5), text, "") as server:
        where = f"http://127.0.0.1:{server.server_port}/"
        looking = Process(
            "capture", "watch", "--metrics", where, "--store", str(store), "--interval", "0.1", "--settle", "0",
            "--listen", "0",
        )  # fmt: skip
        url = looking.wait_for("listening (http://.*/metrics)")[1]
        looking.wait_for("^event=miss ")
        until(lambda: seen(url)["looks_total", "unreachable"] > 1, "a look that finds nobody")
        told = seen(url)
        assert (told["builds_total", ""], told["compilations_total", ""], told["suspects_total", ""]) == (2, 1, 0)
        assert (told["looks_total", "first"], told["looks_total", "miss"], told["up", ""]) == (1, 1, 0)
        assert 0 < told["read_timestamp_seconds", ""] < time.time()
        assert looking.stop() == 143
        server.shutdown()


def test_what_cannot_be_watched(store: Path, tmp_path: Path) -> None:
    with Saying("") as server:
        where = f"http://127.0.0.1:{server.server_port}"
        for metrics, place, text, *more in (
            (where, store, "HTTP Error 500: Internal Server Error; is this the REST port, and monitoring on"),
            ("127.0.0.1:1", store, "/metrics: Connection refused; is this the REST port"),
            ("ftp://x", store, "--metrics ftp://x: no address; write http://host:port"),
            (where, tmp_path / "none", "no such file"),
            (where, store, "--listen: is for a watch that goes on; leave out --once", "--listen", "1"),
        ):
            done = capture("watch", "--metrics", metrics, "--store", str(place), "--once", *more)
            assert (done.returncode, done.stdout) == (2, "")
            assert text in done.stderr
            assert done.stderr.count("\n") == 1
        server.shutdown()


def test_where_it_cannot_listen(store: Path) -> None:
    with Saying(builds(5)) as server:
        where = f"127.0.0.1:{server.server_port}"
        for listen, text in ((where, f"--listen {where}: Address already in use"), ("x:y", "write PORT or HOST:PORT")):
            done = capture("watch", "--metrics", where, "--store", str(store), "--listen", listen)
            assert (done.returncode, done.stdout) == (2, "")
            assert text in done.stderr
            assert done.stderr.count("\n") == 1
        server.shutdown()
