"""Three sidecars of very different traffic, 1:10:100, on one server: what is held out, covered and judged is what one
machine with the traffic of all would hold out, cover and judge."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from capture.__main__ import main
from capture.signature import WireSignature
from capture.store.base import HOUR, open_store
from tests.support.fleet import Sidecar, bounds
from tests.support.stores import NOW, signature
from tests.support.valkey import Server

pytestmark = pytest.mark.server

RATES = {"a": 1, "b": 10, "c": 100}
TICKS = 16
HELD = 64
#: What the corner-case model takes. Only the sidecar of little traffic sees the last one.
COMMON = [signature(outputs, model="edge") for outputs in (["sum"], ["double"])]
RARE = signature(["sum", "double"], model="edge")
LIMITS = bounds(requests=HELD, refresh=1e12)


def warm(sidecar: Sidecar, signatures: Iterable[WireSignature], client: str = "") -> None:
    """The first two calls of each signature: sample and further sample, or what comes too late for that. Their draws
    keep them out of the reservoir, which the first proposals of each sidecar never enter."""
    for one in signatures:
        for _ in range(2):
            sidecar.call(one, draw=0.99999, client=client)


def chi_square(found: Counter[Any], expected: dict[Any, float]) -> float:
    """Pearson's statistic; ``expected`` are weights."""
    factor = found.total() / sum(expected.values())
    return sum((found[name] - factor * weight) ** 2 / (factor * weight) for name, weight in expected.items())


#: Upper points of chi square at p = 0.001, by degrees of freedom.
CRITICAL = {2: 13.816, 7: 24.322}


def test_each_call_of_all_has_the_same_chance_to_be_held_out(valkey: Server) -> None:
    """By sidecar and by time, over a dozen fleets, at p = 0.001; the seeds are fixed."""
    whose: Counter[str] = Counter()
    when: Counter[int] = Counter()
    for fleet in range(12):
        with closing(open_store(f"{valkey.url}?prefix=union{fleet}", create=True)) as store:
            sidecars = [Sidecar(name, store, LIMITS, seed=fleet) for name in RATES]
            for sidecar in sidecars:
                warm(sidecar, COMMON)
                sidecar.flush()
            chance = random.Random(fleet)
            for tick in range(TICKS):
                for sidecar in chance.sample(sidecars, 3):
                    sidecar.now = NOW + 60 * (tick + 1)
                    for _ in range(RATES[sidecar.name]):
                        sidecar.call(chance.choice(COMMON), body=b"x")
                    # Some write at once, some late.
                    if chance.random() < 0.6 or tick == TICKS - 1:
                        sidecar.flush()
            held = [row for row in store.held_out_index() if row.draw is not None]
            assert len(held) == HELD
            whose.update(row.id[0] for row in held)
            when.update(int((row.captured_at - NOW) / 60 - 1) // 2 for row in held)
    assert chi_square(whose, {name: float(rate) for name, rate in RATES.items()}) < CRITICAL[2], whose
    assert chi_square(when, dict.fromkeys(range(TICKS // 2), 1.0)) < CRITICAL[7], when
    # A reservoir of each sidecar's own would be told from it.
    assert chi_square(whose, dict.fromkeys(RATES, 1.0)) > 10 * CRITICAL[2]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, valkey: Server) -> tuple[str, str]:
    """(what one machine has seen, what three sidecars on one server have): four days of the same calls, some lost."""
    urls = (str(tmp_path_factory.mktemp("one") / "store.sqlite"), f"{valkey.url}?prefix=three")
    begin = HOUR * (time.time() // HOUR) - 4 * 24 * HOUR
    with closing(open_store(urls[0], create=True)) as one, closing(open_store(urls[1], create=True)) as shared:
        union = Sidecar("all", one, LIMITS)
        fleet = {name: Sidecar(name, shared, LIMITS) for name in RATES}
        chance = random.Random(1)
        made: Counter[str] = Counter()

        def write(names: Iterable[str]) -> None:
            for each in names:
                fleet[each].batch.counters = {"requests_proven": made[each], "requests_lost": made[each] // 50}
                fleet[each].flush()
            lost = sum(made[each] // 50 for each in RATES)
            union.batch.counters = {"requests_proven": made.total(), "requests_lost": lost}
            union.flush()

        for name, sidecar in fleet.items():
            sidecar.now = union.now = begin
            signatures = [*COMMON, RARE] if name == "a" else COMMON
            warm(union, signatures, name)
            warm(sidecar, signatures)
            made[name] += 2 * len(signatures)
            write([name])
        for tick in range(TICKS):
            for name, sidecar in fleet.items():
                sidecar.now = union.now = begin + 6 * HOUR * tick + 60
                for _ in range(RATES[name]):
                    what = RARE if name == "a" and tick % 4 == 3 else chance.choice(COMMON)
                    draw = chance.random()
                    union.call(what, draw=draw, client=name)
                    sidecar.call(what, draw=draw)
                    made[name] += 1
            write(name for name in RATES if tick == TICKS - 1 or chance.random() < 0.6)
    return urls


def test_the_held_out_set_is_that_of_one_machine(stores: tuple[str, str]) -> None:
    found = []
    for url in stores:
        with closing(open_store(url)) as store:
            held = [(key, one.sample.body, one.draw, one.for_signature) for key, one in store.held_out()]
            rows = {row.key: (row.hits, row.hours, row.senders, row.first_seen, row.last_seen, row.shapes)
                    for row in store.signatures()}  # fmt: skip
            samples = {key: store.sample(key).body for key in rows}  # type: ignore[union-attr]
            found.append((sorted(held, key=str), rows, samples, sorted(store.blocks()), store.counted()))
    assert sum(draw is not None for _, _, draw, _ in found[0][0]) == HELD
    assert found[0] == found[1]


def test_coverage_its_bound_and_verify_are_those_of_one_machine(
    stores: tuple[str, str], edge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a file that lacks what only the sidecar of little traffic sees, and is older than the traffic."""

    def said(*words: str) -> tuple[object, Any]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        text = capsys.readouterr().out
        return ended.value.code, json.loads(text) if "--json" in words else text

    out = tmp_path / "warmup"
    words = ("--format", "tfrecord", "--model", "edge", "--saved-model", str(edge), "--limit", "2", "--out", str(out))
    found = []
    for store in stores:
        assert said("export", *words, "--store", store, "--force")[0] == 0
        records = out.read_bytes()
        (tmp_path / "warmup.manifest.json").unlink()
        old = time.time() - 10 * 24 * HOUR
        os.utime(out, (old, old))
        code, covered = said("coverage", "--json", "--warmup", str(out), "--saved-model", str(edge), "--store", store)
        judged = said("verify", "--level", "fits", "--json", "--saved-model", str(edge), "--warmup", str(out),
                      "--traffic", store)  # fmt: skip
        found.append((records, code, covered, judged))
    for _, _, covered, (_, verdict) in found:
        # Of the file and of this moment.
        for name in ("since", "from", "to"):
            covered["bound"].pop(name)
        verdict.pop("traffic", None)
    assert found[0] == found[1]
    _, code, covered, (judged_code, verdict) = found[0]
    assert (code, covered["keys_covered"], [one["line"] for one in covered["missing"]]) == (1, 2, [str(RARE)])
    assert covered["calls"] == 14 + TICKS * sum(RATES.values())
    assert 0 < covered["bound"]["missed_blocks"] < covered["bound"]["blocks"]
    assert covered["bound"]["lost_share"] > 0
    assert (judged_code, verdict["verdict"]) == (1, "failed")
