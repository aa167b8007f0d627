r"""Audited means: the mean of true results from cheap results of all items and true results of a random few.

Each of N items has a true value t_i in [0, 1], which is expensive, and a cheap one c_i in [0, 1], which may be wrong in
any way and depend on anything: on the t_i, on other items, on the order in which they were computed. Wanted is
mu = (t_1 + ... + t_N) / N. A uniformly random K of the items get their true values, in a uniformly random order.

**Theorem.** Before the true value at step s = 1, ..., K is known, choose a bet p_i <= 1 for each of the N_s = N - s + 1
items that are left, from the c and the true values of earlier steps, with a mean p over these items >= 0. For a
hypothetical mean x, let i be the item of step s and

.. math:: m_s(x) = (N x - \text{true values of earlier steps}) / N_s, \qquad
          W_s(x) = W_{s-1}(x) (1 - p_i + p \, t_i / m_s(x)), \qquad W_0(x) = 1,

with 0 / 0 = 0. Then L, the larger of (all K true values) / N and the supremum of the x above it with
max_s W_s(x) >= 1 / alpha, exceeds mu with probability at most alpha over the choice of the items.

*Proof.* m_s(mu) >= 0 is the mean of t over the items left, and the item of step s is any of them with equal
probability, whatever came before. So given what came before the factor has the mean 1 - p + p = 1, or 1 - p <= 1 where
m_s(mu) = 0 and all t left are 0; it is never negative as p_i <= 1. W(mu) is a nonnegative supermartingale, and
max_s W_s(mu) >= 1 / alpha has probability at most alpha (Ville). If L > mu, then L is not (all K true values) / N,
which is at most mu, so some x > mu has max_s W_s(x) >= 1 / alpha. Each factor falls, or stays, as x grows: p >= 0.
So max_s W_s(mu) >= 1 / alpha as well.

The upper bound is one minus the lower bound for 1 - t and 1 - c. Both together, at alpha / 2 each, make the interval.

Any bets are valid; good ones are large where a large t_i is expected. Here p_i = f r_i, with r_i the cheap value after
a regression of true on cheap values of earlier steps, and f what makes W(x) grow fastest for an x that K steps can just
refute, if the residuals t - r keep their mean square v: f = d / (v + h d) with d = sqrt(2 v log(1 / alpha) / K) +
h log(1 / alpha) / K, where h is the largest r_i. The item-wise bounds enter by p_i: of an item with r_i = 0 no more
than 0 can be lost. With cheap = true, both 0 or 1, and f = 1, W(x) >= 1 / alpha is the exact hypergeometric test of a
sample without a disagreement. The regression makes useless cheap values as good as none.

References:
    Waudby-Smith and Ramdas, JRSS B 2024 (bets, with and without replacement); Stark, Annals of Applied Statistics 2023
    (ALPHA: the factor above with the same p_i for all items, for election audits); Angelopoulos et al., Science 2023
    and arXiv 2311.01453 (prediction-powered inference and its tuning by regression, asymptotic); Cochran, "Sampling
    techniques", 1977, chapter 7 (the regression estimator).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from deqcert.errors import DataError, require, require_count
from deqcert.statistics.arguments import FloatArray, IntArray, demand_level

Statistic = Callable[[Any, IntArray], ArrayLike]
"""Values in [0, 1], shape (n,), of n results, from the results and the positions, shape (n,), of their items."""

_PURPOSE = 0x617564  # no generator that a caller seeds by the same number draws the same order

_PRIOR_ITEMS = 5
"""Items that the first bets assume to have seen, without a difference on average ..."""

_PRIOR_VARIANCE = 0.02
"""... but with this mean squared residual."""

_SMALLEST_SPREAD = 1e-4
"""Added to the variance of the cheap values: keeps the slope of the regression, and so its rounding, small."""

_SLACK = 1e-6
"""Error of log W allowed for: rounding of K logarithms and of the means that they are made of."""


@dataclass(frozen=True, eq=False)
class AuditedMean:
    """The mean of the true values of N items, as far as an audit tells it.

    Args:
        mean: Regression estimate: the cheap mean plus the mean difference of the audit, corrected for cheap values of
            the audited items that are not those of all. Its bias is of order 1 / K; ``cheap_mean + mean_difference``
            has none, a larger variance where cheap values are poor, and may lie outside of the interval.
        lower: Lower end of the confidence interval for the mean of the N true values.
        upper: Upper end.
        alpha: Probability with which the interval may miss that mean.
        cheap_mean: Mean of the cheap values of all items.
        items: N.
        positions: Audited items, ascending, shape (K,).
        differences: True minus cheap value of each, shape (K,).
    """

    mean: float
    lower: float
    upper: float
    alpha: float
    cheap_mean: float
    items: int
    positions: IntArray
    differences: FloatArray

    @property
    def audited(self) -> int:
        """Number K of items whose true results were computed."""
        return len(self.positions)

    @property
    def mean_difference(self) -> float:
        """Mean of true minus cheap value over the audited items."""
        return float(self.differences.mean())

    @property
    def largest_difference(self) -> float:
        """Largest absolute difference of true and cheap value among the audited items."""
        return float(np.abs(self.differences).max())


def audited_mean(
    cheap: Sized,
    true: Callable[[IntArray], Any],
    statistic: Statistic | None = None,
    *,
    alpha: float = 0.05,
    audit: int = 400,
    seed: int = 0,
) -> AuditedMean:
    """Estimate the mean of a statistic of true results, with an interval that holds whatever the cheap results are.

    The interval is for the N given items, by the theorem of this module: the only randomness is the choice of the
    audited ones. ``audit``, ``seed`` and ``statistic`` must be fixed before any true result is known. The same N, audit
    and seed choose the same items, so that several statistics can share true results; each has its own alpha.

    Args:
        cheap: Cheap results of all N items, of length N.
        true: Takes the positions in ``cheap`` of the audited items, ascending, shape (K,), and returns their true
            results in this order. Called once, after the cheap values are found to be valid.
        statistic: Takes results and the positions of their items and returns a value in [0, 1] for each; None if the
            results are these values.
        alpha: Probability in (0, 1) with which the interval may miss the mean.
        audit: Number K of items to audit, 1 <= K <= N. With K = N the interval is the mean itself.
        seed: Seed of the choice of the items, >= 0.

    Raises:
        SettingError: ``alpha``, ``audit`` or ``seed`` is out of range.
        DataError: Values are not in [0, 1], not finite, not numbers, or not one for each item.

    Example:
        Of 1000 predictions the cheap ones have 20 wrong, and 100 are looked at:

        >>> true = np.arange(1000) % 10 > 0
        >>> cheap = np.where(np.arange(1000) % 50 == 7, ~true, true)
        >>> result = audited_mean(cheap, lambda positions: true[positions], audit=100)
        >>> round(result.cheap_mean, 3), round(result.lower, 3), round(result.upper, 3)
        (0.88, 0.844, 0.914)
    """
    items = len(cheap)
    demand_level("alpha", alpha)
    require_count("audit", audit, minimum=1)
    require(audit <= items, "audit", audit, f"must be <= {items}, the number of items")
    require_count("seed", seed, minimum=0)
    everyone = np.arange(items)
    guesses = _values("cheap", cheap, everyone, statistic)
    order = np.random.default_rng([_PURPOSE, seed]).permutation(items)[:audit]
    positions = np.sort(order)
    values = _values("true", true(positions), positions, statistic)
    differences = values - guesses[positions]
    if audit == items:
        mean = lower = upper = float(values.mean())
    else:
        drawn = values[np.searchsorted(positions, order)]
        ends = _lower(guesses, order, drawn, alpha / 2), 1 - _lower(1 - guesses, order, 1 - drawn, alpha / 2)
        lower, upper = min(ends), max(ends)  # they cross only where one of them is false
        mean = min(max(_regression_estimate(guesses, positions, differences), lower), upper)
    return AuditedMean(mean, lower, upper, alpha, float(guesses.mean()), items, positions, differences)


def _lower(cheap: FloatArray, order: IntArray, true: FloatArray, alpha: float) -> float:
    """Bound the mean from below by the theorem; ``true`` are the values of the items ``order``, in this order."""
    items, steps = len(cheap), len(order)
    left = items - np.arange(steps)
    seen = _before(true)
    bets, mean_bets = _bets(cheap, order, true, left, alpha)

    def refuted(x: float) -> bool:
        factors = 1 - bets + mean_bets * true * left / (items * x - seen)
        return bool(np.cumsum(np.log(factors)).max() >= math.log(1 / alpha) + _SLACK)

    low, high = float(true.sum()) / items, float(true.sum() + items - steps) / items
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    # A rounded sum of n values is the sum of values off by n units in the last place: an x off by as much.
    return max(0.0, low - 4 * items * math.ulp(1.0))


def _bets(
    cheap: FloatArray, order: IntArray, true: FloatArray, left: IntArray, alpha: float
) -> tuple[FloatArray, FloatArray]:
    """Return the bet on the item of each step, and the mean bet on the items left; no step knows its true value."""
    average, guesses, steps = cheap.mean(), cheap[order], len(order)
    earlier = np.arange(steps)
    after = np.delete(cheap, order).sum()  # sums of values >= 0, without differences, keep their precision
    average_left = (after + np.cumsum(guesses[::-1])[::-1]) / left
    shift = _before(true - guesses) / (earlier + _PRIOR_ITEMS)
    centered = guesses - average
    covariance = _before(centered * (true - guesses - shift))
    slope = covariance / (_before(centered**2) + _PRIOR_ITEMS * (cheap.var() + _SMALLEST_SPREAD))

    def expected(value: FloatArray | float) -> FloatArray:
        return np.asarray(value + shift + slope * (value - average))

    residuals = true - expected(guesses)
    variance = (_before(residuals**2) + _PRIOR_ITEMS * _PRIOR_VARIANCE) / (earlier + _PRIOR_ITEMS)
    largest = np.maximum(np.maximum(expected(float(cheap.min())), expected(float(cheap.max()))), 0)
    evidence = math.log(1 / alpha) / steps
    deviation = np.sqrt(2 * variance * evidence) + largest * evidence
    size = np.where(expected(average_left) >= 0, deviation / (variance + largest * deviation), 0)
    return size * expected(guesses), size * expected(average_left)


def _before(values: FloatArray) -> FloatArray:
    """Return the sum of all earlier values at each step."""
    return np.concatenate([[0.0], np.cumsum(values)[:-1]])


def _regression_estimate(cheap: FloatArray, positions: IntArray, differences: FloatArray) -> float:
    guesses = cheap[positions]
    centered = guesses - guesses.mean()
    slope = centered @ differences / (centered @ centered + _PRIOR_ITEMS * (cheap.var() + _SMALLEST_SPREAD))
    return float(cheap.mean() + differences.mean() + slope * (cheap.mean() - guesses.mean()))


def _values(field: str, results: Any, positions: IntArray, statistic: Statistic | None) -> FloatArray:
    """Return the values of results as float64, found to be one in [0, 1] for each item."""
    chosen = results if statistic is None else statistic(results, positions)
    try:
        values = np.asarray(chosen)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged, or a tensor that is on a GPU or needs gradients
        raise DataError(f"{field} values cannot be made an array: {error}") from error
    if values.shape != positions.shape or values.dtype.kind not in "biuf":
        raise DataError(
            f"{field} values must be one real number for each of {len(positions)} items, "
            f"but are {values.dtype} of shape {values.shape}"
        )
    values = values.astype(np.float64)
    if (wrong := np.flatnonzero(~((values >= 0) & (values <= 1)))).size:
        raise DataError(f"{field} value of item {positions[wrong[0]]} = {values[wrong[0]]}: must be in [0, 1]")
    return values
