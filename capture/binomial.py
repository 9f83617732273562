"""Exact confidence limits of a share, after Clopper and Pearson (Biometrika 26, 1934). Pure; no library."""

from __future__ import annotations

from math import exp, lgamma, log, log1p
from typing import Final, NamedTuple

#: Both limits hold together in this share of cases, each by itself in half of the rest more.
CONFIDENCE: Final = 0.95
#: Continued fractions of this size end within some dozen steps, of large ones within some hundred.
_STEPS: Final = 10_000
_EPSILON: Final = 1e-15
#: Stands for zero in a denominator (Lentz).
_TINY: Final = 1e-300
#: Halvings of [0, 1]: more than a double can tell.
_HALVINGS: Final = 200


class Limits(NamedTuple):
    """Both ends of an interval, shares in [0, 1]."""

    low: float
    high: float


def clopper_pearson(successes: int, trials: int, confidence: float = CONFIDENCE) -> Limits:
    """The two-sided interval of a binomial share. Without trials nothing is known: [0, 1]. Raises ValueError for counts
    that cannot be."""
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials}")
    if not trials:
        return Limits(0.0, 1.0)
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else _quantile(tail, successes, trials - successes + 1)
    high = 1.0 if successes == trials else _quantile(1 - tail, successes + 1, trials - successes)
    return Limits(low, high)


def _quantile(probability: float, a: float, b: float) -> float:
    """Where the beta distribution reaches ``probability``, by bisection: it is monotonous."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if beta_cdf(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b) (DLMF 8.17.22: its continued fraction converges fast where x
    is below the mean; above it 8.17.4 mirrors it)."""
    if x <= 0 or x >= 1:
        return float(x > 0)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_cdf(1 - x, b, a)
    scale = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    return scale * _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    """1/(1 + d1/(1 + d2/(1 + ...))) by the modified method of Lentz, two terms a step."""
    c = 1.0
    found = d = 1 / _not_zero(1 - (a + b) * x / (a + 1))
    for m in range(1, _STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = 1.0
        for term in (even, odd):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            change = c * d
            found *= change
        if abs(change - 1) < _EPSILON:
            break
    return found


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
