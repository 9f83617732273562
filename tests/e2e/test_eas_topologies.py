"""The topologies of docs/eas.md with the real SDK: behind a mirror, pointed at the relay, and in DIRECT mode.

Behind warmtap stands a gateway that verifies each signature over the bytes that reach it, and behind that ``capture
host`` on real TensorFlow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capture.store.base import StoredSignature, open_store
from tests.clients import commands
from tests.e2e.conftest import SERVICE, eas_client
from tests.e2e.test_mirrors import PLAN, needs_nginx
from tests.support import mirrors
from tests.support.eas_gateway import TOKEN, Gateway, gateway
from tests.support.net_sidecar import Sidecar
from tests.support.processes import ROOT, capture, run
from tests.support.tf_host import HostProcess
from tests.support.waiting import until

pytestmark = pytest.mark.server

URL = "/my/url"
PATH = f"/api/predict/{SERVICE}"


@pytest.fixture
def behind(ranking_host: HostProcess) -> Iterator[Gateway]:
    with gateway(ranking_host.eas, url=URL, service=SERVICE) as made:
        yield made


def sidecar(tmp_path: Path, **listener: Any) -> Sidecar:
    """With one listener of these settings."""
    settings = {
        "listeners": [{"listen": "127.0.0.1:0", **listener}],
        # Every request counts, and on a busy machine a worker that starts is behind.
        "capture": {"store": str(tmp_path / "s.sqlite"), "shed_lag": 0},
        "admin": {"listen": ""},
    }
    (tmp_path / "settings.yaml").write_text(json.dumps(settings))
    return Sidecar("--config", str(tmp_path / "settings.yaml"), cwd=tmp_path)


def send(*arguments: str) -> None:
    """The plan by the real SDK, signed; every call must succeed."""
    answer = json.loads(run(commands.eas_client(*arguments, "--token", TOKEN), stdin=json.dumps(PLAN)))
    assert (answer["errors"], answer["ok"]) == ([], len(PLAN))


def sent() -> list[bytes]:
    return [bytes.fromhex(line) for line in eas_client("-", PLAN, "--dump").split()]


def captured(one: Sidecar, tmp_path: Path, requests: int) -> list[StoredSignature]:
    """The signatures once so many requests were observed, after the sidecar has stopped."""
    counters = one.counters()
    until(lambda: counters.snapshot()["requests_observed"] >= requests, f"{requests} requests observed")
    assert one.stop() == 0
    store = open_store(str(tmp_path / "s.sqlite"))
    found = store.signatures()
    store.close()
    assert TOKEN.encode() not in (tmp_path / "s.sqlite").read_bytes()
    return found


@needs_nginx
def test_a_sink_behind_a_mirror(behind: Gateway, tmp_path: Path) -> None:
    with sidecar(tmp_path, mode="sink") as sink:
        with mirrors.nginx(tmp_path, behind.address, f"127.0.0.1:{sink.ready()[0]}") as address:
            send(f"http://{address}", SERVICE)
        rows = captured(sink, tmp_path, len(PLAN))
    assert [(one.target, one.authorized, one.body) for one in behind.arrived] == [
        (PATH, "signed", body) for body in sent()
    ]
    # nginx names its own upstream in Host; the signature does not cover it.
    assert {one.host for one in behind.arrived} == {behind.address}
    assert sum(row.unproven for row in rows) == len(PLAN)
    assert sum(row.proven for row in rows) == 0
    done = capture(
        *("export", "--format", "eas-bin", "--model", SERVICE),
        *("--out", str(tmp_path / "out"), "--store", str(tmp_path / "s.sqlite")),
    )
    assert done.returncode == 1, "left out until it was run"


def test_the_sdk_pointed_at_the_relay(behind: Gateway, tmp_path: Path) -> None:
    with sidecar(tmp_path, upstream=behind.address) as relay:
        where = f"127.0.0.1:{relay.ready()[0]}"
        send(f"http://{where}", SERVICE)
        rows = captured(relay, tmp_path, len(PLAN))
    # The client's own word for the host goes through as it is.
    assert behind.arrived == [(PATH, where, "signed", body) for body in sent()]
    assert {(row.signature.model, row.unproven) for row in rows} == {(SERVICE, 0)}
    assert sum(row.proven for row in rows) == len(PLAN)


def test_the_sdk_with_a_custom_url_sends_the_raw_token_to_any_path(behind: Gateway, tmp_path: Path) -> None:
    with sidecar(tmp_path, upstream=behind.address, service=SERVICE) as relay:
        where = f"127.0.0.1:{relay.ready()[0]}"
        send("", SERVICE, "--custom-url", f"http://{where}{URL}")
        rows = captured(relay, tmp_path, len(PLAN))
    assert behind.arrived == [(URL, where, "token", body) for body in sent()]
    assert {row.signature.model for row in rows} == {SERVICE}
    assert sum(row.proven for row in rows) == len(PLAN)


def test_direct_mode_with_the_relay_in_the_answer_of_the_discovery(behind: Gateway, tmp_path: Path) -> None:
    with sidecar(tmp_path, upstream=behind.address) as relay:
        behind.instance = f"127.0.0.1:{relay.ready()[0]}"
        send(f"http://{behind.address}", SERVICE, "--direct")
        rows = captured(relay, tmp_path, len(PLAN))
    assert SERVICE in behind.asked
    assert behind.arrived == [(PATH, behind.instance, "signed", body) for body in sent()]
    assert sum(row.proven for row in rows) == len(PLAN)


def test_direct_mode_pointed_at_the_relay_passes_it_by(behind: Gateway, tmp_path: Path) -> None:
    # The discovery goes through the relay, and its answer leads past it.
    with sidecar(tmp_path, upstream=behind.address) as relay:
        send(f"http://127.0.0.1:{relay.ready()[0]}", SERVICE, "--direct")
        rows = captured(relay, tmp_path, 1)
    assert SERVICE in behind.asked
    assert {one.host for one in behind.arrived} == {behind.address}
    assert rows == []
    store = open_store(str(tmp_path / "s.sqlite"))
    assert [what for what, _ in store.ignored()] == ["HTTP GET, other path"]
    store.close()


def test_the_gateway_turns_away_what_is_not_signed_for_these_bytes(behind: Gateway) -> None:
    headers = {"content-type": "application/octet-stream", "date": "now", "content-md5": "x", "authorization": "EAS x"}
    assert behind.authorized(PATH, headers, b"") == "another body"
    assert behind.authorized(PATH, headers | {"content-md5": "d41d8cd98f00b204e9800998ecf8427e"}, b"") == (
        "another signature"
    )
    assert behind.authorized(URL, {"authorization": "x"}, b"") == "another token"


def test_the_page_names_every_test_of_a_topology() -> None:
    page = (ROOT / "docs" / "eas.md").read_text()
    for name in (
        "test_a_sink_behind_a_mirror",
        "test_the_sdk_pointed_at_the_relay",
        "test_the_sdk_with_a_custom_url_sends_the_raw_token_to_any_path",
        "test_direct_mode_with_the_relay_in_the_answer_of_the_discovery",
        "test_direct_mode_pointed_at_the_relay_passes_it_by",
    ):
        assert name in globals()
        assert name in page
