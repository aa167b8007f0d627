"""Confidence bounds that hold at all moments: sampling may stop when the answer is clear, whatever made it so.

A bound for a fixed n is void if n was chosen by looking at the votes: looked at often enough, it fails with certainty.
The bounds here hold at all n at once. For each p0 the hypothesis p <= p0 is tested by a bet that, where it is true, is
a nonnegative supermartingale of mean at most 1 and so ever reaches 1 / alpha with probability at most alpha (Ville's
inequality). What the bound excludes are the p0 against which the bet has done so by now.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincc, betaln, gammaln

from deqcert.statistics.arguments import FloatArray, IntArray, binomial_arguments, demand, sampling_arguments

LARGEST_POPULATION = 10**6
"""Of :func:`anytime_hypergeometric_upper`, whose time and memory grow with it: a tenth of a second, 50 MB."""

_HALVINGS = 46
"""Of the interval [0, k/n]: to within 2e-14."""


def anytime_lower(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> FloatArray:
    r"""Bound a Bernoulli parameter p from below, at whatever n sampling stops.

    The largest of the bounds of all n exceeds p with probability at most ``alpha``. Against p <= p0, the likelihood of
    p0 is compared with that of a mixture of all q > p0,

    .. math:: M_n(p_0) = \int_{p_0}^1 \Big(\frac{q}{p_0}\Big)^k \Big(\frac{1 - q}{1 - p_0}\Big)^{n - k} \pi(q)\, dq,

    with the Jeffreys prior cut to (p0, 1) and normalised there. For p <= p0 < q a trial multiplies the integrand by
    p q/p0 + (1 - p) (1 - q)/(1 - p0) <= 1 in the mean, so M is a supermartingale that starts at 1. The bound is the p0
    at which M = 1 / alpha.

    There is one: for p0 >= k/n, M <= 1, because the likelihood falls beyond k/n; and for p0 <= k/n, M falls in p0. With
    p = sin^2(t) the prior is uniform on (t0, pi/2) and the logarithm l of the likelihood is concave in t, thus
    M = int_0^1 exp(l(t0 + s (pi/2 - t0)) - l(t0)) ds, where the exponent has the derivative
    (1 - s) l'(t0 + s (pi/2 - t0)) - l'(t0) <= 0, since l' falls and l'(t0) >= 0. So the bound exceeds p only where
    M(p) > 1 / alpha, which for the true p ever happens with probability at most ``alpha``.

    Args:
        k: Successes so far, 0 <= k <= n.
        n: Trials so far, n >= 1.
        alpha: Error probability over all n together, in (0, 1).

    Returns:
        The bound, in [0, 1), of the broadcast shape; rounded down.

    Raises:
        SettingError: A count is no integer or out of range, or ``alpha`` is outside of (0, 1).

    References:
        Robbins, Annals of Mathematical Statistics 1970 (mixtures); Howard, Ramdas, McAuliffe and Sekhon, Annals of
        Statistics 2021, section 3 (confidence sequences); Waudby-Smith and Ramdas, JRSS B 2024, arXiv 2010.09686
        (betting).

    Example:
        What is paid for the freedom to stop, beside the Clopper-Pearson bound of 0.9865 for a fixed n:

        >>> round(float(anytime_lower(9900, 10_000, 0.001)), 4)
        0.9851
    """
    k, n, alpha = binomial_arguments(k, n, alpha)
    k, n, alpha = np.broadcast_arrays(k, n, alpha)
    positive = np.maximum(k, 1)  # at k = 0 the bound is 0
    needed = -np.log(alpha) + _rounding(n)
    low, high = np.zeros(n.shape), positive / n
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        excluded = _log_mixture(positive, n, middle) >= needed
        low, high = np.where(excluded, middle, low), np.where(excluded, high, middle)
    return np.where(k == 0, 0.0, low)


def anytime_upper(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> FloatArray:
    """Bound a Bernoulli parameter from above, at whatever n sampling stops.

    The mirror image of :func:`anytime_lower`: p exceeds any of the bounds of all n with probability at most ``alpha``.

    Args:
        k: Successes so far, 0 <= k <= n.
        n: Trials so far, n >= 1.
        alpha: Error probability over all n together, in (0, 1).

    Returns:
        The bound, in (0, 1], of the broadcast shape; rounded up.

    Raises:
        SettingError: A count is no integer or out of range, or ``alpha`` is outside of (0, 1).
    """
    k, n, alpha = binomial_arguments(k, n, alpha)
    return np.asarray(1.0 - anytime_lower(n - k, n, alpha))


def anytime_hypergeometric_upper(m: ArrayLike, population: ArrayLike, sample: ArrayLike, alpha: ArrayLike) -> IntArray:
    r"""Bound the number M of marked items in a finite population from above, at whatever sample size sampling stops.

    Of N items, K are drawn one after the other, uniformly at random without replacement, and m of these are marked.
    The smallest of the bounds of all K is below M with probability at most ``alpha``. Against M = M0, the likelihood
    of M0 is compared with that of a mixture of all M < M0,

    .. math:: R_K(M_0) = \frac{\sum_{M < M_0} \pi(M) L_K(M)}{L_K(M_0) \sum_{M < M_0} \pi(M)}, \qquad
        L_K(M) = \binom{M}{m} \binom{N - M}{K - m} \Big/ \binom{N}{K},

    with the beta-binomial(N, 1/2, 1/2) prior, cut to M < M0 and normalised there. Up to the factor C(K, m), which all M
    share, L_K(M) is the probability of the draws in their order: a product over draws of what the urn left by those
    before gives the next one. If M0 is true, a draw multiplies L(M) / L(M0) by the ratio of two such conditional
    probabilities, and its mean is the sum, over the outcomes possible under M0, of their probabilities under M: at most
    1. So R is a nonnegative supermartingale that starts at 1, and ever reaches 1 / alpha with probability at most alpha
    (Ville).

    The bound is the largest M0 that is possible, m <= M0 <= N - (K - m), and has R < 1 / alpha; whatever the shape of
    the set of these, it is below the true M only where R(M) >= 1 / alpha. M0 = m is always one of them, as all M < m
    are impossible, and the only one once K = N.

    Args:
        m: Marked items so far, 0 <= m <= sample.
        population: Items in all, at most ``LARGEST_POPULATION``.
        sample: Items drawn so far, 0 <= sample <= population.
        alpha: Error probability over all sample sizes together, in (0, 1).

    Returns:
        The bound, between ``m`` and ``population - (sample - m)``, of the broadcast shape; rounded up.

    Raises:
        SettingError: A count is no integer or out of range, or ``alpha`` is outside of (0, 1).

    References:
        Waudby-Smith and Ramdas, NeurIPS 2020, arXiv 2006.04347 (prior-posterior ratio; here with one-sided mixtures).

    Example:
        What is paid for the freedom to stop, beside the 13 of a sample of fixed size:

        >>> int(anytime_hypergeometric_upper(m=0, population=1000, sample=400, alpha=0.001))
        15
    """
    m, population, sample, alpha = sampling_arguments(m, population, sample, alpha)
    demand(population <= LARGEST_POPULATION, "population", population, f"must be <= {LARGEST_POPULATION}")
    arguments = np.broadcast_arrays(m, population, sample, alpha)
    bounds = [_largest_plausible(*each) for each in zip(*(array.ravel().tolist() for array in arguments), strict=True)]
    return np.array(bounds, dtype=np.int64).reshape(arguments[0].shape)


def _largest_plausible(m: int, population: int, sample: int, alpha: float) -> int:
    """Return the largest M0 with R < 1 / alpha, rounded up."""
    log_factorial, prior, prior_so_far = _population_tables(population)
    rest = population - sample
    # log C(M, m) + log C(N - M, K - m) - log C(N, K) of M = m, ..., m + rest.
    marked = log_factorial[m : m + rest + 1] - log_factorial[m] - log_factorial[: rest + 1]
    unmarked = log_factorial[sample - m : population - m + 1] - log_factorial[sample - m] - log_factorial[: rest + 1]
    ways = log_factorial[population] - log_factorial[sample] - log_factorial[rest]
    likelihood = marked + unmarked[::-1] - ways
    mixture = np.logaddexp.accumulate(prior[m : m + rest + 1] + likelihood)
    evidence = mixture[:-1] - prior_so_far[m : m + rest] - likelihood[1:]  # against M0 = m + 1, ..., m + rest
    (plausible,) = np.nonzero(evidence < -np.log(alpha) + _rounding(np.int64(population)))
    return m + 1 + int(plausible[-1]) if len(plausible) else m


@lru_cache(maxsize=2)
def _population_tables(population: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return log M!, the logarithm of the prior up to a constant, and that of its sums, of M = 0, ..., population.

    Kept, because an audit asks for the bounds of one population again and again.
    """
    counts = np.arange(population + 1)
    log_factorial = gammaln(counts + 1.0)
    half = gammaln(counts + 0.5) - log_factorial
    prior = half + half[::-1]
    return log_factorial, prior, np.logaddexp.accumulate(prior)


def _log_mixture(k: IntArray, n: IntArray, p0: FloatArray) -> FloatArray:
    """Return log M for 0 < p0 < 1; at most k/n, where the share of the posterior beyond p0 is no small number."""
    a, b = k + 0.5, n - k + 0.5
    evidence = betaln(a, b) + np.log(betaincc(a, b, p0))
    prior = np.log(2 * np.arcsin(np.sqrt(1 - p0)))
    return np.asarray(evidence - prior - k * np.log(p0) - (n - k) * np.log1p(-p0))


def _rounding(n: IntArray) -> FloatArray:
    """Bound the rounding error of the logarithm of a bet, a difference of terms of up to n log n."""
    return np.asarray(1e-9 + 1e-13 * n)
