"""The exact confidence bounds and the radius they give: what every certificate is made of.

In come integer counts and error probabilities, out come float64 bounds. Every function broadcasts its
arguments like numpy and returns an array, of no dimensions when all arguments are scalars.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri
from scipy.stats import beta, hypergeom

from deqcert.statistics.arguments import FloatArray, IntArray, binomial_arguments, checked_counts, checked_level, demand

DEFAULT_ALPHA = 0.001
"""Error probability of a certificate unless another is stated."""

LowerBound = Callable[[ArrayLike, ArrayLike, ArrayLike], FloatArray]
"""Lower bound on a Bernoulli parameter from successes, trials and an error probability."""


def clopper_pearson_lower(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> FloatArray:
    """Bound the parameter p of a Binomial(n, p) from below, given that ``k`` was drawn.

    The bound exceeds p with probability at most ``alpha``, whatever p is (Clopper and Pearson,
    Biometrika 1934; one-sided). It never decreases when ``k`` grows.

    Args:
        k: Successes, 0 <= k <= n.
        n: Trials, n >= 1.
        alpha: Error probability in (0, 1).

    Returns:
        The bound, in [0, 1), of the broadcast shape.

    Raises:
        SettingError: A count is not an integer or out of range, or ``alpha`` is outside of (0, 1).

    Example:
        >>> round(float(clopper_pearson_lower(99, 100, 0.001)), 4)
        0.9114
    """
    k, n, alpha = binomial_arguments(k, n, alpha)
    positive = np.maximum(k, 1)  # at k = 0 the beta distribution does not exist and the bound is 0
    return np.where(k == 0, 0.0, beta.ppf(alpha, positive, n - positive + 1))


def clopper_pearson_upper(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> FloatArray:
    """Bound p from above, in (0, 1]: the mirror image of :func:`clopper_pearson_lower`, with the same arguments."""
    k, n, alpha = binomial_arguments(k, n, alpha)
    below_n = np.minimum(k, n - 1)  # at k = n the beta distribution does not exist and the bound is 1
    return np.where(k == n, 1.0, beta.isf(alpha, below_n + 1, n - below_n))


def hypergeometric_upper(m: ArrayLike, population: ArrayLike, sample: ArrayLike, alpha: ArrayLike) -> IntArray:
    """Bound the number M of marked items in a finite population from above.

    ``sample`` items were drawn uniformly at random without replacement and ``m`` of them are marked. The bound is the
    largest M with P(Hypergeometric(population, M, sample) <= m) > alpha; the true M exceeds it with probability at most
    ``alpha``. This inverts the exact test, as Clopper and Pearson do for the binomial.

    Args:
        m: Marked items in the sample, 0 <= m <= sample.
        population: Items in all.
        sample: Items drawn, 0 <= sample <= population.
        alpha: Error probability in (0, 1).

    Returns:
        The bound, between ``m`` and ``population - (sample - m)``, of the broadcast shape.

    Raises:
        SettingError: A count is not an integer or out of range, or ``alpha`` is outside of (0, 1).

    Example:
        >>> int(hypergeometric_upper(m=0, population=1000, sample=400, alpha=0.001))
        13
    """
    population, sample, m = checked_counts(population=population, sample=sample, m=m)
    alpha = checked_level("alpha", alpha)
    shape = np.broadcast_shapes(m.shape, population.shape, sample.shape, alpha.shape)
    low: IntArray = np.broadcast_to(m, shape).copy()
    high: IntArray = population - (sample - m)
    drawn_from = np.maximum(population, 1)  # scipy knows no empty population; its sample is empty anyway
    while np.any(low < high):  # the probability falls as M grows, and is 1 > alpha at M = m
        middle = (low + high + 1) // 2
        plausible = hypergeom.cdf(m, drawn_from, middle, sample) > alpha
        low, high = np.where(plausible, middle, low), np.where(plausible, high, middle - 1)
    return low


def certified_radius(p_a_lower: ArrayLike, sigma: ArrayLike, p_b_upper: ArrayLike | None = None) -> FloatArray:
    """Radius within which the smoothed classifier provably keeps its class.

    sigma / 2 (Phi^-1(p_a_lower) - Phi^-1(p_b_upper)) (Cohen, Rosenfeld and Kolter, ICML 2019, theorem 1), which is
    sigma Phi^-1(p_a_lower) for p_B = 1 - p_A.

    Args:
        p_a_lower: Lower bound on the probability of the class, in [0, 1].
        sigma: Standard deviation of the noise, > 0, in units of pixel values in [0, 1].
        p_b_upper: Upper bound on the probability of any other class, in [0, 1]; None for 1 - p_a_lower.

    Returns:
        l2 radius in the units of ``sigma``; 0 where nothing is certified (abstain).

    Raises:
        SettingError: A bound is not a probability or ``sigma`` is not positive and finite.

    Example:
        >>> round(float(certified_radius(0.99, sigma=0.5)), 3)
        1.163
    """
    p_a_lower, sigma = np.asarray(p_a_lower, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    demand((p_a_lower >= 0) & (p_a_lower <= 1), "p_a_lower", p_a_lower, "must be in [0, 1]")
    demand((sigma > 0) & np.isfinite(sigma), "sigma", sigma, "must be > 0 and finite")
    if p_b_upper is None:
        return np.where(p_a_lower > 0.5, sigma * ndtri(p_a_lower), 0.0)
    p_b_upper = np.asarray(p_b_upper, dtype=np.float64)
    demand((p_b_upper >= 0) & (p_b_upper <= 1), "p_b_upper", p_b_upper, "must be in [0, 1]")
    certified = p_a_lower > p_b_upper
    low, high = np.where(certified, p_b_upper, 0.25), np.where(certified, p_a_lower, 0.75)
    return np.where(certified, sigma / 2 * (ndtri(high) - ndtri(low)), 0.0)


def radius_of_robust_votes(p_lower: ArrayLike, sigma: ArrayLike, margin: ArrayLike) -> FloatArray:
    r"""Radius within which the smoothed classifier keeps its class, from votes that hold within ``margin`` themselves.

    Let S be the points z with f = A on all of B(z, r), as a Lipschitz constant of f proves it, and p = P(x + ε in S).
    S + B(0, r) is within {f = A}, so that by the Gaussian isoperimetric inequality (Borell; Sudakov and Tsirelson)

    .. math:: p_A \ge \Phi(\Phi^{-1}(p) + r / \sigma), \qquad R = \sigma \Phi^{-1}(p_A) \ge r + \sigma \Phi^{-1}(p).

    With exact probabilities no r is better than 0, but of n votes that all agree a larger r certifies more.

    Args:
        p_lower: Lower bound on p, in [0, 1].
        sigma: Standard deviation of the noise, > 0, in units of pixel values in [0, 1].
        margin: r, >= 0, in the units of ``sigma``, chosen without the votes that ``p_lower`` is computed from.

    Returns:
        l2 radius in the units of ``sigma``; 0 where nothing is certified (abstain).

    Raises:
        SettingError: A bound is not a probability, ``sigma`` is not positive and finite, or ``margin`` is negative or
            not finite.

    Example:
        >>> round(float(radius_of_robust_votes(0.99, sigma=0.5, margin=0.25)), 3)
        1.413
    """
    p_lower, sigma = np.asarray(p_lower, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    margin = np.asarray(margin, dtype=np.float64)
    demand((p_lower >= 0) & (p_lower <= 1), "p_lower", p_lower, "must be in [0, 1]")
    demand((sigma > 0) & np.isfinite(sigma), "sigma", sigma, "must be > 0 and finite")
    demand((margin >= 0) & np.isfinite(margin), "margin", margin, "must be finite and >= 0")
    return np.asarray(np.maximum(margin + sigma * ndtri(p_lower), 0.0))


def radius_of_count(
    k: int, n: int, alpha: float, sigma: float = 1.0, bound: LowerBound = clopper_pearson_lower
) -> float:
    """Radius that ``k`` of ``n`` independent predictions A certify at level ``alpha``; by default in units of sigma."""
    return float(certified_radius(bound(k, n, alpha), sigma))
