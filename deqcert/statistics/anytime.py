"""Confidence bounds that hold at all moments: sampling may stop when the answer is clear, whatever made it so.

A bound for a fixed n is void if n was chosen by looking at the votes: looked at often enough, it fails with certainty.
The bounds here hold at all n at once. For each p0 the hypothesis p <= p0 is tested by a bet that, where it is true, is
a nonnegative supermartingale of mean at most 1 and so ever reaches 1 / alpha with probability at most alpha (Ville's
inequality). What the bound excludes are the p0 against which the bet has done so by now.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincc, betaln

from deqcert.statistics.arguments import FloatArray, IntArray, binomial_arguments

_HALVINGS = 46
"""Of the interval [0, k/n]: to within 2e-14."""


def anytime_lower(k: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> FloatArray:
    r"""Bound a Bernoulli parameter p from below, at whatever n sampling stops.

    The largest of the bounds of all n exceeds p with probability at most ``alpha``. Against p <= p0, the likelihood of
    p0 is compared with that of a mixture of all q > p0,

    .. math:: M_n(p_0) = \int_{p_0}^1 \Big(\frac{q}{p_0}\Big)^k \Big(\frac{1 - q}{1 - p_0}\Big)^{n - k} \pi(q)\, dq,

    with the Jeffreys prior cut to (p0, 1) and normalized there. For p <= p0 < q a trial multiplies the integrand by
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
        SettingError: A count is not an integer or out of range, or ``alpha`` is outside of (0, 1).

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


def _log_mixture(k: IntArray, n: IntArray, p0: FloatArray) -> FloatArray:
    """Return log M for 0 < p0 < 1; at most k/n, where the share of the posterior beyond p0 is no small number."""
    a, b = k + 0.5, n - k + 0.5
    evidence = betaln(a, b) + np.log(betaincc(a, b, p0))
    prior = np.log(2 * np.arcsin(np.sqrt(1 - p0)))
    return np.asarray(evidence - prior - k * np.log(p0) - (n - k) * np.log1p(-p0))


def _rounding(n: IntArray) -> FloatArray:
    """Bound the rounding error of the logarithm of a bet, a difference of terms of up to n log n."""
    return np.asarray(1e-9 + 1e-13 * n)
