"""A real sidecar on a server that asks for a password: its API works, and the password is nowhere to be seen."""

from __future__ import annotations

import io
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from capture.store.base import StoreError, open_store
from tests.proxy.admin.test_admin import Running, started
from tests.support.calls import eas
from tests.support.net_http import echo_server
from tests.support.processes import capture
from tests.support.valkey import Server
from tests.support.waiting import until

pytestmark = pytest.mark.server
PASSWORD = "s3cret-of-the-fleet"


def stored(url: str) -> int:
    """Signatures with a sample; 0 where there is no store yet."""
    try:
        with closing(open_store(url)) as store:
            return sum(row.sample_at is not None for row in store.signatures())
    except StoreError:
        return 0


def test_a_sidecar_of_a_fleet(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    with Server(tmp_path_factory.mktemp("s"), "--requirepass", PASSWORD) as server, echo_server() as upstream:
        url = server.url.replace("//", f"//:{PASSWORD}@")
        shown = url.replace(PASSWORD, "***")
        with started(
            tmp_path, upstream, capture={"store": url, "shed_lag": 0, "shared_flush_interval": 0.05}, log_level="debug"
        ) as sidecar:
            running = Running(sidecar)
            assert running.post("/api/predict/rank", eas()) == 200
            until(lambda: stored(url) == 1, "a stored signature")
            status = running.status()
            assert (status["store"]["url"], status["store"]["error"]) == (shown, "")
            metrics = running.metrics()
            assert metrics["warmtap_store_up{}"] == 1
            assert metrics["warmtap_store_payload_bytes{}"] == len(eas())
            code, packed = running.ask("/api/v1/export?format=eas-bin&model=rank")
            assert code == 200
            with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
                members = [tar.extractfile(one) for one in tar.getmembers() if one.isfile()]
                files = [file.read() for file in members if file is not None]
            assert eas() in files
            # The server goes away and comes back empty: the sidecar says so, and relays on.
            server.kill()
            code, error = running.ask("/api/v1/signatures")
            assert (code, b"Connection refused" in error) == (503, True)
            assert running.post("/api/predict/rank", eas(outputs=("late",))) == 200
            until(lambda: running.status()["counters"]["store_failures"] > 0)
            server.start()
            until(lambda: stored(url) > 0, "what passed meanwhile")
            told = [error, *(running.ask(path)[1] for path in ("/api/v1/status", "/api/v1/signatures", "/metrics"))]
        config = capture("config", "show", "--config", str(tmp_path / "settings.yaml"))
        assert f"store: {shown}" in config.stdout
        log = "\n".join(sidecar.lines)
        assert '"store failed"' in log
        assert 'the server had lost the store: begun anew"' in log
        for text in (log, config.stdout, *(one.decode() for one in told), *map(repr, files)):
            assert PASSWORD not in text
