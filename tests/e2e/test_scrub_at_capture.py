"""With ``capture.scrub: at_capture`` nothing that users sent is kept anywhere: real clients, a real sidecar."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.schema.wire import write_varint
from tests.clients.plan import feeds
from tests.e2e.conftest import MODEL, SERVICE, eas_client, front, tf_client
from tests.e2e.test_real_clients import PLAN
from tests.support.processes import capture
from tests.support.tf_host import HostProcess

pytestmark = pytest.mark.server

RULES = [f"{MODEL}:user_id=constant:anyone", f"{MODEL}:category=constant:none", "*:*=constant:anything"]


@functools.cache
def markers() -> dict[str, bytes]:
    """What the plan's values look like on the wire: strings, and numbers by pairs, in each encoding."""
    found = {}
    for number, call in enumerate(PLAN):
        for feed in feeds(call):
            for place, (one, two) in enumerate(zip(feed.values[::2], feed.values[1::2], strict=False)):
                name = f"call {number}, {feed.alias} {place}"
                if feed.kind == "string":
                    found[name] = one.encode()
                elif feed.kind == "float":
                    found[name] = struct.pack("<2f", one, two)
                else:
                    found[name] = struct.pack("<2q", one, two)
                    found[f"{name}, varints"] = write_varint(one) + write_varint(two)
    return found


def leaked(data: bytes) -> list[str]:
    return [name for name, marker in markers().items() if marker in data]


def flow_state(pid: int) -> bytes:
    """What the sidecar keeps for the next capture worker."""
    parts = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if "memfd:warmtap-flows" in os.readlink(entry):
                # Most of it is room that nothing was written to.
                parts.append(re.sub(rb"\0{65,}", bytes(64), entry.read_bytes()))
    assert parts, "no state of flows"
    return b"".join(parts)


def files(directory: Path) -> Iterator[tuple[str, bytes]]:
    for path in directory.rglob("*"):
        if path.is_file():
            yield path.name, path.read_bytes()


def test_what_users_sent_is_nowhere(ranking: Path, ranking_host: HostProcess, tmp_path: Path) -> None:
    place = front(ranking_host, tmp_path, sheds=False, scrub="at_capture", scrub_rules=RULES)
    with place.sidecar as sidecar:
        for options in ((), ("--reconnect",)):
            tf_client(place.grpc, PLAN, *options)
            eas_client(place.eas, PLAN, *options)
        place.wait_observed(4 * len(PLAN))
        state = flow_state(sidecar.process.pid)
    log = "".join(sidecar.lines).encode()
    # The search finds what was sent, where it is.
    sent = bytes.fromhex("".join(tf_client(place.grpc, PLAN, "--dump").split()))
    sent += bytes.fromhex("".join(eas_client(place.eas, PLAN, "--dump").split()))
    assert set(leaked(sent)) == set(markers())

    store = place.store()
    assert store.counters()["requests_unscrubbed"] == 0
    rows = store.signatures()
    assert len(rows) == 8
    assert all(row.sample_at is not None for row in rows)
    held = list(store.held_out())
    assert {key.owner.model for key, _ in held} == {MODEL, SERVICE}
    store.close()
    for form, model in (("tfrecord", MODEL), ("eas-bin", SERVICE), ("jsonl", MODEL)):
        out = tmp_path / f"out-{form}"
        done = capture("export", "--format", form, "--model", model, "--store", str(place.path), "--out", str(out))
        assert done.returncode == 0, done.stderr
        log += (done.stdout + done.stderr).encode()
    found = dict(files(tmp_path))
    assert {"warmtap.sqlite", "out-tfrecord", "out-tfrecord.manifest.json", "manifest.json"} <= found.keys()
    for name, data in {**found, "log": log, "flow state": state}.items():
        assert leaked(data) == [], name

    # What was kept runs and warms the model for what was sent.
    done = capture("verify", "--saved-model", str(ranking), "--traffic", str(place.path), "--warmup",
                   str(tmp_path / "out-tfrecord"))  # fmt: skip
    assert "executor" in done.stdout, done.stdout + done.stderr


def test_a_store_from_before_costs_the_capture_and_no_request(ranking_host: HostProcess, tmp_path: Path) -> None:
    place = front(ranking_host, tmp_path, sheds=False)
    with place.sidecar:
        tf_client(place.grpc, PLAN[:1])
        place.wait_observed(1)
    place = front(ranking_host, tmp_path, sheds=False, scrub="at_capture", scrub_rules=RULES)
    with place.sidecar as sidecar:
        sidecar.wait_for('msg="cannot scrub".*was stored unscrubbed, or by other rules; name another store')
        assert '"errors": []' in tf_client(place.grpc, PLAN[:1])
