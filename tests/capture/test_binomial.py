"""Clopper-Pearson against published values and closed forms."""

from __future__ import annotations

from math import comb

import pytest

from capture.binomial import beta_cdf, clopper_pearson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # R: binom.test(k, n)$conf.int
        (0, 10, 0.0, 0.3084971),
        (1, 10, 0.002528579, 0.4450161),
        (5, 10, 0.1870860, 0.8129140),
        (10, 10, 0.6915029, 1.0),
        (0, 100, 0.0, 0.03621669),
        (3, 1000, 0.0006190999, 0.008742023),
        (500, 1000, 0.4685492, 0.5314508),
    ],
)
def test_known_intervals(successes: int, trials: int, low: float, high: float) -> None:
    assert clopper_pearson(successes, trials) == pytest.approx((low, high), rel=1e-6)


@pytest.mark.parametrize("trials", [1, 7, 70, 100_000, 10_000_000])
def test_without_successes_it_has_a_closed_form(trials: int) -> None:
    assert clopper_pearson(0, trials).high == pytest.approx(1 - 0.025 ** (1 / trials), rel=1e-7)


@pytest.mark.parametrize(("successes", "trials"), [(1, 5), (3, 20), (19, 20), (40, 90)])
def test_each_end_leaves_a_tail_of_the_binomial(successes: int, trials: int) -> None:
    def at_most(count: int, share: float) -> float:
        return sum(comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(count + 1))

    low, high = clopper_pearson(successes, trials)
    assert at_most(successes, high) == pytest.approx(0.025, rel=1e-9)
    assert 1 - at_most(successes - 1, low) == pytest.approx(0.025, rel=1e-9)


def test_nothing_tried_tells_nothing() -> None:
    assert clopper_pearson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3)])
def test_counts_that_cannot_be(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} of {trials}"):
        clopper_pearson(successes, trials)


@pytest.mark.parametrize("x", [0.0, 0.01, 0.3, 0.5, 0.9, 1.0])
def test_the_beta_function_where_it_is_a_polynomial(x: float) -> None:
    assert beta_cdf(x, 1, 1) == pytest.approx(x, abs=1e-12)
    assert beta_cdf(x, 1, 5) == pytest.approx(1 - (1 - x) ** 5, abs=1e-12)
    assert beta_cdf(x, 2, 5) == pytest.approx(1 - (1 - x) ** 6 - 6 * x * (1 - x) ** 5, abs=1e-12)
