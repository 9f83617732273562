"""Every input that once broke something, and every seed, through the targets that ``make fuzz`` runs for longer.

A finding is a file ``tests/vectors/fuzz/TARGET/NAME``: the bytes as the fuzzer left them, named after what was wrong.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.script import script, steps
from tests.fuzz.targets import TARGETS, VECTORS, seeds
from tests.support.wire_feed import load

FINDINGS = sorted(path.relative_to(VECTORS / "fuzz").as_posix() for path in (VECTORS / "fuzz").glob("*/*"))


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_stays_mended(finding: str) -> None:
    TARGETS[finding.partition("/")[0]]((VECTORS / "fuzz" / finding).read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_seeds(target: str) -> None:
    found = list(seeds(target))
    assert found
    for seed in found:
        TARGETS[target](seed)


@pytest.mark.parametrize("target", TARGETS)
@given(data=st.binary(max_size=600))
def test_any_bytes(target: str, data: bytes) -> None:
    TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
@given(st.data())
def test_a_seed_with_some_bytes_changed(target: str, data: st.DataObject) -> None:
    every = list(seeds(target))
    raw = bytearray(every[data.draw(st.integers(0, len(every) - 1))][:4000])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    TARGETS[target](bytes(raw))


def test_a_script_is_the_flow_that_it_was_made_of() -> None:
    for path in VECTORS.glob("wire/http1/*.json"):
        flow = load(path)[0]
        if all(step[2] < 256 for step in flow if step[0] == "gap"):
            assert list(steps(script(flow, 2))) == [(2, step) for step in flow]
