"""A file and a server are told the same at random, and must say the same."""

from __future__ import annotations

import itertools
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.store.base import (
    HOUR,
    Batch,
    HeldOut,
    ModelVersion,
    Move,
    RecordKey,
    Sample,
    SignatureDelta,
    StoredMetadata,
    open_store,
)
from tests.capture.store.test_copy import contents
from tests.support.stores import NOW, signature
from tests.support.valkey import Server

pytestmark = pytest.mark.server
NUMBERS = itertools.count()
SIGNATURES = [signature([name], model=model) for model in ("m", "o{t}/h\u00e9r") for name in ("a", "b")]
KEYS = [
    RecordKey(ModelVersion(one.family, one.model, version), one.digest)
    for one in SIGNATURES
    for version in ("1", "unknown")
]
BY_DIGEST = {one.digest: one for one in SIGNATURES}
NAMES = st.sampled_from([f"n{number}" for number in range(20)] + ["\u00e9\x00", ""])
TIMES = st.integers(0, 5 * int(HOUR)).map(lambda more: NOW + more)
SMALL = st.integers(1, 9)
KEY = st.sampled_from(KEYS)
HELD_IDS = st.sampled_from([f"h{number}" for number in range(6)])
DRAWS = st.none() | st.floats(0, 1, exclude_max=True)
ROLES = st.tuples(DRAWS, st.booleans())


@st.composite
def deltas(draw: st.DrawFn, key: RecordKey) -> SignatureDelta:
    first, last = sorted((draw(TIMES), draw(TIMES)))
    found = SignatureDelta(BY_DIGEST[key.digest], first, last, draw(SMALL), draw(st.integers(-3, 5)), draw(SMALL))
    found.shapes = Counter(draw(st.dictionaries(NAMES, SMALL, max_size=12)))
    found.senders = Counter(draw(st.dictionaries(NAMES, SMALL, max_size=12)))
    found.blocks = Counter(draw(st.dictionaries(st.tuples(st.integers(0, 3), NAMES), SMALL, max_size=12)))
    return found


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    return Sample(
        draw(st.binary(max_size=20)), draw(st.none() | st.binary(max_size=5)), {"content-type": draw(NAMES)},
        draw(NAMES), draw(NAMES), draw(st.sampled_from(["proven", "unproven"])), draw(TIMES),
    )  # fmt: skip


@st.composite
def moves(draw: st.DrawFn, held: list[str]) -> Move:
    one = draw(st.sampled_from(SIGNATURES))
    source = RecordKey(ModelVersion(one.family, one.model, "unknown"), one.digest)
    target = RecordKey(ModelVersion(one.family, one.model, draw(st.sampled_from(["1", "2"]))), one.digest)
    found = draw(deltas(source))
    found.unproven = abs(found.unproven)
    kept = draw(st.lists(st.sampled_from(held), unique=True)) if held else []
    return Move(source, target, found, draw(st.booleans()), {name: draw(ROLES) for name in kept})


@st.composite
def batches(draw: st.DrawFn) -> list[Batch]:
    found = []
    #: Where each held-out request is: one moves only from where it is.
    where: dict[str, RecordKey] = {}
    for _ in range(draw(st.integers(1, 4))):
        batch = Batch(draw(st.sampled_from(["run1", "run2"])), updated_at=draw(TIMES))
        if where and draw(st.booleans()):
            unknown = [name for name, key in where.items() if key.owner.version == "unknown"]
            move = draw(moves(unknown))
            move.held = {name: roles for name, roles in move.held.items() if where[name].digest == move.source.digest}
            where.update(dict.fromkeys(move.held, move.target))
            batch.moves.append(move)
        for key in draw(st.lists(KEY, unique=True, max_size=4)):
            batch.seen[key] = draw(deltas(key))
            if draw(st.booleans()):
                batch.samples[key] = draw(samples())
            held_id = draw(HELD_IDS)
            if draw(st.booleans()) and held_id not in where:
                batch.held_out[held_id] = (key, HeldOut(held_id, draw(samples()), draw(DRAWS), True))
                where[held_id] = key
        batch.evicted = draw(st.sets(KEY, max_size=2))
        batch.released = draw(st.dictionaries(HELD_IDS, ROLES, max_size=2))
        batch.refusals = Counter(draw(st.dictionaries(st.tuples(NAMES, NAMES, NAMES, NAMES), SMALL, max_size=3)))
        batch.ignored = Counter(draw(st.dictionaries(NAMES, SMALL, max_size=3)))
        batch.counters = draw(st.dictionaries(st.sampled_from(["requests_lost", "flows_opened", "x"]), SMALL))
        owner = draw(KEY).owner
        batch.metadata = {owner: StoredMetadata(owner, draw(TIMES), draw(st.binary(max_size=9)))}
        batch.forget_before = draw(st.sampled_from([0.0, 0.0, NOW + HOUR]))
        found.append(batch)
    return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alike")


@settings(max_examples=40)
@given(told=batches())
def test_a_file_and_a_server_say_the_same(valkey: Server, directory: Path, told: list[Batch]) -> None:
    number = next(NUMBERS)
    with (
        closing(open_store(str(directory / f"s{number}"), create=True)) as file,
        closing(open_store(f"{valkey.url}?prefix=alike{number}", create=True)) as server,
    ):
        for batch in told:
            file.apply(batch)
            server.apply(batch)
        assert contents(server) == contents(file)
