"""Three sidecars on one Valkey with real clients on each. One sidecar is killed, then the Valkey: no request fails, and
what is exported in the end is one sample for each wire signature, with hits that add up to the calls."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
import pytest

from capture.counters import LOSSES
from capture.export.manifest import MANIFEST_NAME, MANIFEST_SUFFIX
from capture.store.base import StoredRun, StoreError, open_store
from tests.support.fleet_clients import EAS, GRPC, REST, Place, callers, kind
from tests.support.net_sidecar import Sidecar, wait_gone
from tests.support.processes import capture
from tests.support.tf_host import HostProcess
from tests.support.valkey import Server
from tests.support.waiting import until

pytestmark = pytest.mark.server

#: First called while the Valkey is away, through all sidecars.
LATE = kind("Predict ranking", "serving_default", "top_ids")
LINES = {one.line for one in (*GRPC, *REST, *EAS, LATE)}


@pytest.fixture(scope="module")
def host(ranking: Path) -> Iterator[HostProcess]:
    with HostProcess(ranking, rest=True) as one:
        yield one


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("s"), "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


class Member:
    """One sidecar of the fleet."""

    def __init__(self, name: str, host: HostProcess, store: str, directory: Path) -> None:
        directory.mkdir()
        settings = {
            "listeners": [{"listen": "127.0.0.1:0", "upstream": one} for one in (host.grpc, host.rest, host.eas)],
            "capture": {"store": store, "shed_lag": 0, "shared_flush_interval": 0.5, "flush_interval": 0.2},
            "relay": {"drain_delay": 0, "drain_quiet": 0.2, "shutdown_timeout": 2},
            "admin": {"listen": ""},
        }
        (directory / "settings.yaml").write_bytes(msgspec.yaml.encode(settings))
        self.sidecar = Sidecar("--config", str(directory / "settings.yaml"), cwd=directory)
        self.place = Place(name, *(f"127.0.0.1:{port}" for port in self.sidecar.ready()))
        self.counters = self.sidecar.counters()

    def count(self, name: str) -> int:
        return self.counters.total()[name]

    def writes(self) -> None:
        """Wait until what is seen now is written."""
        seen = self.count("store_writes")
        until(lambda: self.count("store_writes") >= seen + 2, f"writes of {self.place.name}")

    def kill(self) -> None:
        """All of its processes, as the end of a container does."""
        self.place.killed = True
        pids = [self.sidecar.process.pid, self.sidecar.pid("worker"), self.sidecar.pid("relay")]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.sidecar.process.wait()
        for pid in pids[1:]:
            wait_gone(pid)


def runs(url: str) -> dict[str, StoredRun]:
    """What each run has said of itself."""
    try:
        with closing(open_store(url)) as store:
            return store.runs()
    except StoreError:
        return {}


def calls(counters: dict[str, int]) -> int:
    return counters.get("requests_proven", 0) + counters.get("requests_unproven", 0)


def test_a_sidecar_and_the_valkey_are_killed_in_turn(
    host: HostProcess, valkey: Server, ranking: Path, tmp_path: Path
) -> None:
    url = f"{valkey.url}?timeout=1"
    with ExitStack() as stack:
        first = Member("first", host, url, tmp_path / "first")
        stack.enter_context(first.sidecar)
        (first_run,) = until(lambda: runs(url), "the first sidecar's own words")
        others = [Member(name, host, url, tmp_path / name) for name in ("second", "third")]
        for member in others:
            stack.enter_context(member.sidecar)
        clients = [caller for member in (first, *others) for caller in callers(member.place)]
        leaving = clients[:3]
        for caller in leaving:
            caller.elsewhere = others[0].place
        with ExitStack() as traffic:
            for caller in clients:
                traffic.enter_context(caller)
            for caller in clients:
                caller.more(10)
            first.writes()

            # What its worker does not read any more is lost with it.
            os.kill(first.sidecar.pid("worker"), signal.SIGSTOP)
            for caller in leaving:
                caller.more(5)
            first.kill()
            for caller in clients:
                caller.more(5)
            # Another one takes its place, and its clients.
            fourth = Member("fourth", host, url, tmp_path / "fourth")
            stack.enter_context(fourth.sidecar)
            for caller in leaving:
                caller.place = fourth.place
                caller.more(20)

            alive = [*others, fourth]
            valkey.kill()
            for caller in clients:
                if caller.kinds[0] in GRPC:
                    caller.kinds.append(LATE)
            for member in alive:
                until(lambda member=member: member.count("store_failures"), "a write that fails")
            for caller in clients:
                caller.more(10)
            valkey.start()
            for member in alive:
                member.writes()
        for member in alive:
            member.sidecar.stop()

    assert [caller.failures for caller in clients] == [[]] * 9
    answered: Counter[tuple[str, str]] = sum((caller.answered for caller in clients), Counter())
    broken: Counter[str] = sum((caller.broken for caller in clients), Counter())
    assert set(broken) <= {"first"}
    made = Counter(dict.fromkeys(("first", "second", "third", "fourth"), 0))
    for (name, _), times in answered.items():
        made[name] += times

    with closing(open_store(url)) as store:
        rows = store.signatures()
        said = store.runs()
        assert all(store.sample(row.key) is not None for row in rows)
    assert sorted(str(row.signature) for row in rows) == sorted(LINES)
    # Of the sidecars that live nothing is missing, for each signature.
    for row in rows:
        by = Counter({name: times for (name, line), times in answered.items() if line == str(row.signature)})
        assert by.total() - by["first"] <= row.hits <= by.total() + broken["first"], row
    hits = sum(row.hits for row in rows)
    of_first = hits - (made.total() - made["first"])
    told = said.pop(first_run).counters
    for counters in (one.counters for one in said.values()):
        assert (counters.get("requests_unproven", 0), [counters.get(name, 0) for name in LOSSES]) == (
            0, [0] * len(LOSSES)
        )  # fmt: skip
    assert sum(calls(one.counters) for one in said.values()) == hits - of_first
    # What is stored of the one that was killed: what it said so far, and at most the batch that was on its way.
    read = first.counters.snapshot()
    assert 0 < calls(told) <= of_first <= calls(read)
    # The rest was read and not written, or never read: that many bytes of at least 15 calls.
    assert made["first"] - calls(read) >= 15
    assert read["client_bytes"] - read["tap_client_bytes"] > 0

    exported(url, ranking, tmp_path, hits)


def exported(url: str, ranking: Path, tmp_path: Path, hits: int) -> None:
    """Each wire signature once in the files, with all of its hits."""
    found: Counter[str] = Counter()
    total = 0
    for model, form, out, manifest in (
        ("ranking", "tfrecord", tmp_path / "warmup", tmp_path / f"warmup{MANIFEST_SUFFIX}"),
        ("rank", "eas-bin", tmp_path / "eas", tmp_path / "eas" / MANIFEST_NAME),
    ):
        words = ["--model", model, "--format", form, "--out", str(out), "--store", url]
        done = capture("export", *words, *(["--saved-model", str(ranking)] if form == "tfrecord" else []))
        assert done.returncode == 0, done.stderr
        described = json.loads(manifest.read_text())
        found.update(record["line"] for record in described["records"])
        total += sum(record["hits"] for record in described["records"])
    assert found == Counter(LINES)
    assert total == hits
