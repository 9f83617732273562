"""What a pod of config/k8s runs, run: sidecar and worker by their own command lines and settings, a store that asks for
its password, and the hook that ends it. Only addresses and paths are this machine's."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.calls import eas
from tests.support.manifests import pods
from tests.support.net_http import echo_server
from tests.support.net_sidecar import Sidecar
from tests.support.processes import Process, capture
from tests.support.valkey import Server
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server
POD = pods()["ranking"]
PASSWORD, TOKEN = "the store's", "0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The store's server, with the password where the containers find it."""
    (tmp_path / "password").write_text(PASSWORD)
    monkeypatch.setenv("WARMTAP_STORE_PASSWORD_FILE", str(tmp_path / "password"))
    words = [word.replace("$(REDISCLI_AUTH)", PASSWORD) for word in pods()["valkey"].container("valkey")["args"]]
    with Server(tmp_path / "valkey", *words[1:]) as server:
        yield server


def here(tmp_path: Path, upstream: str, store: Server) -> tuple[Path, str]:
    """The settings with this machine's places, and the worker's socket."""
    [_, _, path] = POD.container("warmtap")["args"]
    found = yaml.safe_load(POD.file("warmtap", path).read_text())
    for listener in found["listeners"]:
        listener |= {"listen": "127.0.0.1:0", "upstream": upstream}
        del listener["status"]
    socket = str(tmp_path / "worker.sock")
    found["capture"] |= {
        "store": found["capture"]["store"].replace("valkey:6379", f"127.0.0.1:{store.port}"),
        "worker_socket": socket,
        # However busy this machine is.
        "shed_lag": 0,
    }
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o440)
    found["admin"] = {"listen": "127.0.0.1:0", "token_file": str(tmp_path / "token")}
    # An idle connection of this test is closed at once, a busy one is waited for, as in a pod.
    found["relay"] = {"drain_delay": 0}
    settings = tmp_path / "proxy.yaml"
    settings.write_text(yaml.safe_dump(found))
    return settings, socket


def get(admin: str, path: str, token: str = "") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(admin, timeout=PATIENCE)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_a_pod_serves_captures_into_the_store_of_all_and_drains(tmp_path: Path, store: Server) -> None:
    with echo_server() as model:
        settings, socket = here(tmp_path, model, store)
        words = [word.replace("/run/warmtap/worker.sock", socket) for word in POD.container("warmtap-worker")["args"]]
        with Sidecar("--config", str(settings), cwd=tmp_path) as sidecar:
            _, rest = sidecar.ready()
            admin = sidecar.wait_for(r'"admin listens" listen=(\S+)')[1]
            probes = {
                kind: POD.container("warmtap")[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness")
            }
            # The kubelet has no token; the worker's container may still be to come.
            assert get(admin, probes["startup"])[0] == 200
            until(lambda: get(admin, probes["readiness"])[0] == 200)
            assert get(admin, "/metrics")[0] == 401
            with Process("capture", *words) as worker:
                worker.wait_for("msg=reading")
                connection = http.client.HTTPConnection("127.0.0.1", rest, timeout=PATIENCE)
                connection.request("POST", "/api/predict/rank", eas())
                assert connection.getresponse().status == 200
                connection.close()

                def stored() -> list[str]:
                    rows = json.loads(get(admin, "/api/v1/signatures", TOKEN)[1])["signatures"]
                    return [row["line"] for row in rows]

                # Not of the status, which reads the store every five seconds.
                until(lambda: stored() == ["predict rank/serving_default (x) -> (*)"], "the signature in the store")
                # What whoever is on call types, with the password in the container's environment.
                url = yaml.safe_load(settings.read_text())["capture"]["store"]
                listed = capture("ls", "--store", url)
                assert (listed.returncode, "rank" in listed.stdout) == (0, True), listed.stderr
                hook = POD.container("warmtap")["lifecycle"]["preStop"]["exec"]["command"]
                ended = [re.sub(r"\b1$", str(sidecar.process.pid), word) for word in hook]
                assert subprocess.run(ended, check=True).returncode == 0
                assert sidecar.process.wait(PATIENCE) == 0
        said = sidecar.error + worker.error
        assert PASSWORD not in said
        assert TOKEN not in said
