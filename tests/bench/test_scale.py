"""The simulation of a fleet, small: what each sidecar asks of the store is bounded, whatever happens to all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from capture.store.base import open_store
from tests.bench import scale_report
from tests.bench.scale_fleet import Counted, Fleet, Traffic
from tests.bench.scale_server import Usage, keys_by_kind, usage
from tests.support.valkey import Server

SIDECARS = 12
TRAFFIC = Traffic(calls=3.0, signatures=40, body=3000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("valkey"), "--appendonly", "yes") as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[redis.Redis]:
    with server.client() as one:
        yield one


@pytest.fixture(scope="module")
def fleet(server: Server) -> Iterator[Fleet]:
    """One that has run for long. The tests follow each other in its life."""
    with closing(Fleet(server.url, SIDECARS, TRAFFIC)) as one:
        one.settle()
        yield one


def over(client: redis.Redis, fleet: Fleet, seconds: float) -> Usage:
    """What the server was asked in this time."""
    fleet.forget()
    before = usage(client)
    fleet.run(seconds)
    return usage(client).since(before)


def batches(fleet: Fleet) -> int:
    return sum(fleet.counted.flushes.values())


@pytest.mark.server
def test_a_fleet_that_has_run_for_long_sends_two_scripts_a_batch_and_a_batch_each_ten_seconds(
    client: redis.Redis, fleet: Fleet
) -> None:
    used = over(client, fleet, 60.0)
    count = batches(fleet)
    # Each interval is between 5 and 15 seconds.
    assert 60 / 15 - 1 <= count / SIDECARS <= 60 / 5 + 1
    assert 2 * count <= used.calls["evalsha"] <= 2.2 * count
    assert scale_report.sent(used) <= 2.2 * count
    # Each signature that was called in some 300 bytes, and the counters of the run; hardly a request.
    assert used.received < count * 3000 + fleet.counted.rows * 400 + 10 * TRAFFIC.body


@pytest.mark.server
def test_sidecars_that_all_restart_at_once_ask_for_little(client: redis.Redis, fleet: Fleet) -> None:
    for one in fleet.sidecars:
        one.restart()
    used = over(client, fleet, 30.0)
    # They know nothing, and are told so by a few answers each; nothing of what is stored is sent again.
    assert batches(fleet) / SIDECARS <= 12
    assert used.received < batches(fleet) * 12_000
    assert max(fleet.counted.flushes.values()) <= 2 * SIDECARS


@pytest.mark.server
def test_a_new_model_version_is_stored_once_whoever_sees_it_first(
    server: Server, client: redis.Redis, fleet: Fleet
) -> None:
    for one in fleet.sidecars:
        one.version = "2"
    used = over(client, fleet, 60.0)
    with closing(open_store(server.url)) as store:
        rows = [row for row in store.signatures() if row.key.owner.version == "2"]
        stored = [held for held in store.held_out_index() if held.key.owner.version == "2"]
    # Nine in ten of the signatures are common to all.
    assert 36 < len(rows) <= 36 + 4 * 10
    assert all(row.sample_at is not None for row in rows)
    # What entered the reservoir for a while was sent as well: 256 and as many again for each doubling.
    assert used.received < (len(rows) + len(stored) + 5 * 256) * TRAFFIC.body + batches(fleet) * 12_000


@pytest.mark.server
def test_a_day_later_each_sample_is_replaced_without_haste(client: redis.Redis, fleet: Fleet) -> None:
    fleet.skip(86_400)
    over(client, fleet, 30.0)
    # Old samples wait for the next batch: no more of these than on any other day.
    assert batches(fleet) / SIDECARS <= 30 / 5 + 1


@pytest.mark.server
def test_a_server_that_comes_back_gets_what_passed_in_a_few_batches(
    server: Server, client: redis.Redis, fleet: Fleet
) -> None:
    with closing(open_store(server.url)) as store:
        before = sum(row.hits for row in store.signatures())
    waiting = sum(delta.proven for one in fleet.sidecars for delta in one.batch.seen.values())
    server.kill()
    fleet.forget()
    fleet.run(90.0)
    passed = waiting + fleet.counted.calls
    # Attempts of each: after 0.5 s, 1 s ... up to 30 s.
    assert 90 / 30 <= fleet.counted.failures / SIDECARS <= 20
    server.start()
    over(client, fleet, 60.0)
    # All within the longest wait; no second has more than a few of each.
    assert max(fleet.counted.flushes.values()) <= SIDECARS
    for one in fleet.sidecars:
        one.flush()
    with closing(open_store(server.url)) as store:
        assert sum(row.hits for row in store.signatures()) == before + passed + fleet.counted.calls


@pytest.mark.server
def test_memory_is_counted_by_what_it_holds(client: redis.Redis, fleet: Fleet) -> None:
    kinds = keys_by_kind(client)
    assert {"version:rows", "version:samples", "version:done", "fleet:runs"} <= set(kinds)
    # A run in some 1,500 bytes; each sidecar is the second life of itself.
    assert kinds["fleet:runs"] < 2 * SIDECARS * 2000


def test_figures_of_a_batch_are_fitted_and_carried_on() -> None:
    def row(signatures: float) -> dict[str, dict[str, float]]:
        return {
            "of_each_batch": {
                "signatures": signatures,
                "cpu_us": 300 + 40 * signatures,
                "received": 2000 + 150 * signatures,
            }
        }

    fit = scale_report.fitted([row(10), row(50), row(200)])
    assert fit == {"cpu_us_of_a_batch": 300, "cpu_us_of_a_signature": 40,
                   "received_of_a_batch": 2000, "received_of_a_signature": 150}  # fmt: skip
    rows = {one["sidecars"]: one for one in scale_report.outlook(fit, Traffic())}
    assert (rows[100]["interval"], rows[100]["batches_per_second"]) == (10, 10)
    # Beyond some hundreds the fleet writes no more often, each sidecar more at a time.
    assert rows[10_000]["batches_per_second"] == rows[100_000]["batches_per_second"]
    assert rows[100_000]["signatures_of_a_batch"] <= 200
    assert scale_report.distinct(200, 1) == pytest.approx(1)


def test_commands_inside_of_scripts_are_not_those_that_clients_sent() -> None:
    used = Usage(100, {"evalsha": 4, "hset": 50, "client|setname": 1, "info": 2}, 1000, 100, 0.5, 0.4, 1, 1, 1)
    assert scale_report.sent(used) == 5
    figures = scale_report.figures(used, Counted(40, 20, {1: 1, 2: 1}), 2, 2.0)
    assert (figures["batches_per_second"], figures["of_each_batch"]["signatures"]) == (1, 10)
    assert figures["of_each_batch"]["cpu_us"] == 250_000
