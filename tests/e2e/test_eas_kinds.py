"""Every kind of EAS service: the real SDK's requests through the sidecar, and what was exported read by the SDK again.

The processors are closed, so a stand-in answers (tests/support/eas_server.py). The SDKs for Go and Java, which compress
with more codings than Python's raw snappy, cannot run here either: a small client sends the bytes that they would."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cramjam
import msgspec
import pytest

from capture.commands.export import export
from capture.store.base import Sample, StoredSignature, open_store
from tests.clients import commands
from tests.support.eas_bodies import BODIES, PACK
from tests.support.eas_server import FAILURES, NONSENSE, EasServer
from tests.support.net_http import echo_server
from tests.support.net_sidecar import Sidecar
from tests.support.processes import capture, run
from tests.support.waiting import until

pytestmark = pytest.mark.server

#: Service -> dialect, as a settings file says it; eas-tensorflow is what `auto` takes.
SERVICES = {
    "eas-pytorch": "eas-pytorch",
    "eas-pytorch-packed": "eas-pytorch",
    "eas-pytorch-flaky": "eas-pytorch",
    "eas-onnx": "eas-onnx",
    "eas-easyrec": "eas-easyrec",
    "eas-easyrec-failing": "eas-easyrec",
    "eas-torchrec": "eas-torchrec",
    "eas-string": "eas-string",
}
#: What the SDK's requests are, by service.
LINES = {
    "eas-pytorch": {"inputs ([0], [1]) -> (0)", "map_inputs (ids, image) -> (*)"},
    "eas-pytorch-packed": {"inputs ([0], [1]) -> (0)"},
    "eas-pytorch-flaky": {"inputs ([0], [1]) -> (0)"},
    "eas-onnx": {"DataProto (input, mask) -> (*)"},
    "eas-easyrec": {
        "debug_level=0 (context_features/price, item_ids, user_features/age, user_features/city, user_features/score)"
        " -> (*)"
    },
    "eas-torchrec": {
        "debug_level=0 (context_features/hour, item_features/title, item_ids, meta_data/scene, user_features/age,"
        " user_features/matrix, user_features/tags, user_features/weights) -> (*)"
    },
    "eas-string": {"json (n, question) -> (*)", "text, up to 1 KiB () -> (*)"},
}
LINES["eas-easyrec-failing"] = LINES["eas-easyrec"]


@dataclass
class Captured:
    path: Path
    told: list[dict[str, str]]
    counters: dict[str, int]
    rows: dict[str, list[StoredSignature]]
    samples: dict[str, list[Sample]]
    refusals: list[tuple[str, str, str, str, int]]

    def sent(self, service: str) -> list[bytes]:
        """What the SDK gave to its connection, in order."""
        return [bytes.fromhex(one["sent"]) for one in self.told if one["service"] == service]


def post(port: int, path: str, body: bytes, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, body, headers)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    """Everything is sent once: by the SDK, then by the small client, packed in every coding, and what is nonsense."""
    directory = tmp_path_factory.mktemp("kinds")
    path = directory / "warmtap.sqlite"
    EasServer.calls.clear()
    with echo_server(EasServer) as upstream:
        listener = {"listen": "127.0.0.1:0", "upstream": upstream}
        settings: dict[str, Any] = {
            "listeners": [listener | {"services": SERVICES}, listener | {"dialect": "eas-pytorch", "service": "root"}],
            "capture": {"store": str(path), "shed_lag": 0},
            "relay": {"drain_delay": 0},
            "admin": {"listen": ""},
        }
        (directory / "settings.yaml").write_bytes(msgspec.yaml.encode(settings))
        with Sidecar("--config", str(directory / "settings.yaml"), cwd=directory) as sidecar:
            port, root = sidecar.ready()
            told = [json.loads(line) for line in run(commands.eas_kinds(f"http://127.0.0.1:{port}")).splitlines()]
            for service, dialect in SERVICES.items():
                for pack in PACK.values() if service == dialect else ():
                    assert post(port, f"/api/predict/{service}", pack(BODIES[dialect])) == 200
            # An answer that is compressed is looked into all the same.
            easyrec = BODIES["eas-easyrec"]
            assert post(port, "/api/predict/eas-easyrec", easyrec, **{"Accept-Encoding": "gzip"}) == 200
            assert post(root, "/", BODIES["eas-pytorch"]) == 200
            assert post(port, "/api/predict/eas-onnx", NONSENSE) == 400
            assert post(port, "/api/predict/eas-torchrec", b"") == 200
            # What Java's LZ4 sends, as opposed to its LZ4Frame: nothing tells what it is.
            block = bytes(cramjam.lz4.compress_block(BODIES["eas-pytorch"], store_size=False))
            assert post(port, "/api/predict/eas-pytorch", block) == 200
            total = sum(EasServer.calls.values())
            counters = sidecar.counters()
            until(lambda: counters.total()["requests_observed"] >= total, f"{total} requests observed")
    store = open_store(str(path))
    rows: dict[str, list[StoredSignature]] = {}
    for row in store.signatures():
        rows.setdefault(row.key.owner.model, []).append(row)
    samples = {
        model: [found for row in group if (found := store.sample(row.key)) is not None] for model, group in rows.items()
    }
    found = Captured(path, told, store.counters(), rows, samples, store.refusals())
    store.close()
    return found


def test_the_sdk_understands_the_answers(captured: Captured) -> None:
    assert [one["error"] for one in captured.told] == [""] * len(captured.told)
    assert all(one["answer"] for one in captured.told)


@pytest.mark.parametrize("service", SERVICES)
def test_signatures_are_what_the_sdk_sent(captured: Captured, service: str) -> None:
    rows = {str(row.signature).removeprefix(f"predict {service}/"): row for row in captured.rows[service]}
    assert LINES[service] <= rows.keys()
    # All of one dialect; the small client's request makes no more than one further signature.
    assert {row.key.owner.family for row in rows.values()} == {SERVICES[service]}
    assert len(rows) <= len(LINES[service]) + 1
    unproven = service == "eas-easyrec-failing"
    assert {(row.proven > 0, row.unproven > 0) for row in rows.values()} == {(not unproven, unproven)}


@pytest.mark.parametrize("service", [name for name, dialect in SERVICES.items() if name == dialect])
def test_a_request_is_the_same_call_however_it_was_packed(captured: Captured, service: str) -> None:
    hits = sum(row.hits for row in captured.rows[service])
    assert hits == len(captured.sent(service)) + len(PACK) + (service == "eas-easyrec")


def test_a_compressed_request_is_kept_as_sent_and_as_read(captured: Captured) -> None:
    (sample,) = captured.samples["eas-pytorch-packed"]
    (sent,) = captured.sent("eas-pytorch-packed")
    assert sample.wire_body == sent
    assert bytes(cramjam.snappy.decompress_raw(sent)) == sample.body
    assert sample.body == captured.sent("eas-pytorch")[0]


def test_a_service_at_the_root(captured: Captured) -> None:
    (row,) = captured.rows["root"]
    (sample,) = captured.samples["root"]
    assert (row.key.owner.family, sample.path, sample.body) == ("eas-pytorch", "/", BODIES["eas-pytorch"])


def test_what_the_sdk_sends_again_by_itself_is_one_call(captured: Captured) -> None:
    assert EasServer.calls["eas-pytorch-flaky"] == FAILURES + 1
    (row,) = captured.rows["eas-pytorch-flaky"]
    assert (row.proven, row.unproven, row.sample_outcome) == (1, 0, "proven")
    assert captured.counters["requests_retried"] == FAILURES


def test_what_cannot_be_read_is_counted_with_its_reason_and_changes_nothing_else(captured: Captured) -> None:
    refused = {
        ("eas-onnx", "eas-onnx", "refused", "not an EAS ONNX DataProto"): 1,
        ("eas-torchrec", "eas-torchrec", "undecodable", "no features and no items"): 1,
        ("eas-pytorch", "eas-pytorch", "undecodable", "not an EAS PyTorch PredictRequest"): 1,
    }
    assert {tuple(row[:4]): row[4] for row in captured.refusals} == refused
    # One attempt of the service that fails is counted as unproven; so is the one that EasyRec itself calls failed.
    assert captured.counters["requests_observed"] == sum(EasServer.calls.values())
    assert captured.counters["requests_unproven"] == 2
    assert not [name for name, value in captured.counters.items() if value and ("lost" in name or "missed" in name)]
    listed = capture("ls", "--refused", "--store", str(captured.path)).stdout
    for _, model, outcome, reason in refused:
        assert f"1\t{outcome}\t{model}\t{reason}\n" in listed


def test_credentials_are_nowhere_in_the_store(captured: Captured) -> None:
    content = b"".join(path.read_bytes() for path in captured.path.parent.glob("warmtap.sqlite*"))
    assert b"Authorization" not in content
    assert b"a-secret-token" not in content


@pytest.mark.parametrize("service", ["eas-pytorch", "eas-pytorch-packed", "eas-onnx", "eas-easyrec", "eas-torchrec"])
def test_exported_files_are_what_the_sdk_sent_and_reads(captured: Captured, service: str, tmp_path: Path) -> None:
    export("eas-bin", service, tmp_path / "out", store=str(captured.path))
    bodies = {path.read_bytes() for path in (tmp_path / "out").glob("*.bin")}
    sent = {
        bytes(cramjam.snappy.decompress_raw(one)) if service.endswith("-packed") else one
        for one in captured.sent(service)
    }
    assert sent <= bodies
    lines = "".join(f"{body.hex()}\n" for body in sorted(sent))
    parsed = run(commands.eas_kinds("--parse", SERVICES[service]), stdin=lines)
    assert [bytes.fromhex(line) for line in parsed.split()] == sorted(sent)
    if service.endswith("-packed"):
        export("eas-bin", service, tmp_path / "wire", store=str(captured.path), wire=True)
        (path,) = (tmp_path / "wire").glob("*.bin")
        assert path.read_bytes() == captured.sent(service)[0]


def test_exported_text_is_what_the_sdk_sent(captured: Captured, tmp_path: Path) -> None:
    export("eas-txt", "eas-string", tmp_path / "warmup.txt", store=str(captured.path))
    lines = (tmp_path / "warmup.txt").read_bytes().splitlines()
    # The small client's was sent most often.
    assert lines[0] == BODIES["eas-string"]
    assert sorted(lines[1:]) == sorted(captured.sent("eas-string"))
