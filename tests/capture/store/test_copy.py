"""A store that is copied is the same store, of whatever kind; one that holds anything else is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from capture.__main__ import application
from capture.errors import UserError
from capture.store import copying
from capture.store.base import (
    HOUR,
    MAX_SENDERS,
    MAX_SHAPES,
    Batch,
    Store,
    StoredMetadata,
    count_sender,
    open_store,
)
from capture.store.copying import Copied, copy
from tests.support.fleet import Sidecar, bounds
from tests.support.stores import NOW, add, held_out, key_of, sample, signature
from tests.support.valkey import Cluster, Server

pytestmark = pytest.mark.server
ONE, TWO = signature(["a"]), signature(["b"], model="other")


def fill(store: Store) -> None:
    """Something of all that a store can hold."""
    for turn in range(3):
        at = NOW + turn * HOUR
        batch = Batch("run1", updated_at=at, counters={"requests_lost": 3 * turn, "requests_proven": 10 * turn})
        for number in range(30):
            key = add(batch, signature([f"s{number}"]), proven=number, unproven=turn, at=at, version=str(number % 3))
        batch.samples[key] = sample(b"\x00big\xff" * 5000, wire_body=b"wire", at=at)
        key = add(batch, TWO, at=at)
        for number in range(2 * MAX_SHAPES):
            batch.seen[key].shapes[f"x[{number * (turn + 1)}]"] = number + 1
            count_sender(batch.seen[key].senders, batch.seen[key].blocks, f"agent{number} -", at + turn, 2)
        held_out(batch, key, f"h{turn}", b"held" * 100, draw=0.1 * turn + 0.123456789)
        held_out(batch, key_of(signature(["s1"]), "1"), f"further{turn}", b"further", draw=None)
        batch.refusals["tfserving", "m", "refused", "unknown signature"] = 4 + turn
        batch.refusals["eas", "n\x00", "oversized", "body over the limit"] = 1
        batch.ignored["HTTP GET, other path"] = 2
        store.apply(batch)
    owner = key_of(ONE).owner
    store.apply(Batch("run2", counters={"requests_lost": 5}, updated_at=NOW + 7, metadata={
        owner: StoredMetadata(owner, NOW + 0.25, b'{"metadata": 1}')
    }))  # fmt: skip
    store.apply(Batch("run1", evicted={key_of(signature(["s5"]), "2")}))


def contents(store: Store) -> dict[str, Any]:
    """All that a store tells."""
    rows = store.signatures()
    return {
        "signatures": rows,
        "samples": {row.key: store.sample(row.key) for row in rows},
        "held_out": list(store.held_out()),
        "index": sorted(store.held_out_index()),
        "blocks": store.blocks(),
        "counted": store.counted_by_hour(),
        "runs": store.runs(),
        "refusals": store.refusals(),
        "ignored": store.ignored(),
        "metadata": store.metadata(),
        "totals": store.totals(),
    }


def nothing(_: Copied) -> None:
    """No progress to show."""


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Store]:
    """A file with something of everything in it."""
    with closing(open_store(str(tmp_path / "full"), create=True)) as store:
        fill(store)
        yield store


def test_from_a_file_through_a_server_and_a_cluster_to_a_file(
    full: Store, valkey: Server, valkey_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several writes, as for a store of gigabytes.
    monkeypatch.setattr(copying, "WRITE_SIGNATURES", 7)
    monkeypatch.setattr(copying, "WRITE_BYTES", 1000)
    expected = contents(full)
    source = full
    for url in (f"{valkey.url}?prefix=copy", f"{valkey_cluster.url}?prefix=copy", str(tmp_path / "back")):
        target = open_store(url, create=True)
        seen: list[int] = []
        copied = copy(source, target, lambda one, seen=seen: seen.append(one.signatures))  # type: ignore[misc]
        assert (copied.signatures, copied.held_out, copied.runs, copied.metadata) == (31, 6, 2, 1)
        assert len(seen) > 5
        assert contents(target) == expected
        # Once more adds nothing, and says so.
        again = copy(source, target, nothing)
        assert (again.nothing, again.there) == (True, 31)
        assert contents(target) == expected
        if source is not full:
            source.close()
        source = target
    source.close()


def test_a_copy_that_was_interrupted_is_taken_up(full: Store, shared_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "WRITE_SIGNATURES", 3)
    monkeypatch.setattr(copying, "WRITE_BYTES", 1)
    expected = contents(full)
    with closing(open_store(shared_url, create=True)) as target:
        writes = 0
        apply = target.apply
        left = iter(range(1000))

        def interrupted(batch: Batch) -> Any:
            nonlocal writes
            if writes == limit:
                raise KeyboardInterrupt
            writes += 1
            return apply(batch)

        monkeypatch.setattr(target, "apply", interrupted)
        stops = 0
        # Two writes more each time, from the first one to the last.
        for _ in left:
            limit = writes + 2
            try:
                copy(full, target, nothing)
                break
            except KeyboardInterrupt:
                stops += 1
        assert stops > 5
        assert contents(target) == expected


def test_a_target_that_holds_anything_else_is_left_as_it_is(full: Store, shared_url: str) -> None:
    with closing(open_store(shared_url, create=True)) as target:
        batch = Batch("theirs")
        add(batch, signature(["s7"]), version="1", proven=7)
        target.apply(batch)
        before = contents(target)
        with pytest.raises(UserError, match=r"^the target holds 1 signatures that the source does not have"):
            copy(full, target, nothing)
        assert contents(target) == before


@pytest.mark.parametrize(
    "batch", [Batch("other", counters={"requests_lost": 1}, updated_at=NOW), Batch("run1", ignored=Batch("x").ignored)]
)
def test_counts_of_others_are_not_mixed(full: Store, shared_url: str, batch: Batch) -> None:
    batch.ignored["something"] += 1
    with closing(open_store(shared_url, create=True)) as target:
        target.apply(batch)
        before = contents(target)
        with pytest.raises(UserError, match=r"^the target holds count"):
            copy(full, target, nothing)
        assert contents(target) == before


def test_a_source_that_changes_is_told(full: Store, shared_url: str) -> None:
    def change(_: Copied) -> None:
        batch = Batch("run1")
        add(batch, TWO)
        full.apply(batch)

    with closing(open_store(shared_url, create=True)) as target, pytest.raises(UserError, match="changed while it was"):
        copy(full, target, change)


def test_runs_of_long_ago_are_copied_as_they_were(url: str, shared_url: str) -> None:
    with closing(open_store(url, create=True)) as source, closing(open_store(shared_url, create=True)) as target:
        for days, name in ((90, "a"), (45, "b"), (0, "c")):
            batch = Batch(name, counters={"requests_observed": 5}, updated_at=NOW - days * 86400)
            add(batch, signature([name]))
            source.apply(batch)
        copy(source, target, nothing)
        assert target.runs() == source.runs()
        assert set(target.runs()) == {"a", "b", "c"}
        assert copy(source, target, nothing).nothing
        # The sidecars of a fleet put them together, nothing lost.
        target.apply(Batch("d", counters={"requests_observed": 1}, updated_at=NOW, bounds=bounds()))
        assert set(target.runs()) == {"(ended long ago)", "c", "d"}
        assert target.counters() == {"requests_observed": 16}


def test_a_fleet_goes_on_in_a_store_that_was_copied(shared_url: str, tmp_path: Path) -> None:
    limits = bounds(requests=16, refresh=1e12)
    with closing(open_store(str(tmp_path / "one"), create=True)) as one:
        alone = Sidecar("alone", one, limits)
        for _ in range(300):
            alone.call(ONE, body=b"x")
        alone.flush()
        with closing(open_store(shared_url, create=True)) as target:
            copy(one, target, nothing)
        with closing(open_store(shared_url)) as target:
            after = Sidecar("after", target, limits)
            for _ in range(100):
                after.call(ONE, body=b"y")
            told = after.flush()
            assert key_of(ONE) in told.samples
            # The reservoir is that of all 400 calls: its threshold goes on from where it was.
            assert 0.01 < told.cuts[key_of(ONE).owner] < 0.12
            (row,) = target.signatures()
            assert (row.hits, row.hours) == (400, 1)


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(application("store"), ["store", "copy", *words])
    if isinstance(result.exception, UserError):
        return 1, result.stdout, str(result.exception)
    return result.exit_code, result.stdout, result.stderr


def test_the_command(full: Store, shared_url: str, tmp_path: Path) -> None:
    path = str(tmp_path / "full")
    status, out, _ = run(path, shared_url)
    assert status == 0
    assert out.startswith(f"copied to {shared_url}: 31 signatures, 6 held-out requests, ")
    assert run(path, shared_url)[:2] == (0, f"nothing to copy: {shared_url} holds all of it, 31 signatures\n")
    assert run(shared_url, path)[0] == 0
    assert run(path, path)[2] == f"{path}: is both source and target"
    assert run(str(tmp_path / "none"), shared_url)[2].startswith(f"store {tmp_path}/none: no such file")
    full.apply(Batch("run1", ignored=Batch("x").ignored, evicted={key_of(signature(["s8"]), "2")}))
    assert run(path, shared_url)[2].startswith(f"copy {path} {shared_url}: the target holds 1 signatures that the")


def test_bounds_of_clients_do_not_lose_any(full: Store) -> None:
    (row,) = full.signatures("other")
    assert len(row.senders) == MAX_SENDERS + 1
