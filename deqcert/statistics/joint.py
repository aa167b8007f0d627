r"""The joint rule: one test for the audit and the count, where the union bound makes two.

Of n independent noisy samples the base classifier f says A of T ~ Binomial(n, p_A). Nobody has counted T. An SRS
prediction S was made for each sample; ``known`` samples are known to have f's prediction Y = A; of ``population``
others with S = A a uniformly random subset of K was classified by f, and m of them mismatch (Y != A). So T >= known +
population - M, where M of the population mismatch.

**Theorem.** Fix alpha and a weight w in (0, 1] before any Y of these n samples is known, and let z solve

.. math:: z \, \frac{1 - w z^{1/w - 1}}{1 - w} = \alpha \quad (w < 1), \qquad z (1 - \ln z) = \alpha \quad (w = 1).

For M = 0, 1, ..., population let q_M = P(Hypergeometric(population, M, K) <= m) and t_M = known + population - M. Then

.. math:: L = \min_M \, \text{clopper\_pearson\_lower}(t_M, n, \min(1, z / q_M^w))

exceeds p_A with probability at most alpha, whatever depends on what: which samples are known, S, the population and K
may be chosen with full sight of all Y.

*Proof.* Write P = P(Binomial(n, p_A) >= T), a p-value: P(P <= u) <= u. Given all S and Y the audit is a simple random
sample, so with the true M, Q = q_M is a p-value too, whatever is given: P(Q <= u | S, Y) <= u, hence given P. Let M' be
the M for which t_M = T, or 0 if T is larger than all t_M. Because T >= known + population - M, M' <= M, and q falls in
M, so q_M' >= Q. If L > p_A, then clopper_pearson_lower(t_M', n, min(1, z / q_M'^w)) > p_A; with t_M' <= T and since the
bound grows with the count, it is at most the bound at T, and by the definition of the bound P < z / q_M'^w <= z / Q^w
(if the level is 1, no more is claimed than P <= 1, and z / q_M'^w >= 1 >= P). So P Q^w <= z. Given P, that has
probability at most min(1, (z / P)^(1/w)), a function that falls in P, so its mean is at most what it is for a uniform
P:

.. math:: z + \int_z^1 (z / x)^{1/w} dx = z \, \frac{1 - w z^{1/w - 1}}{1 - w} = \alpha.

This is Fisher's combination of two p-values (w = 1; Good's weighted one for w < 1) at the true T, which is not known,
so that the worst T counts. Nothing is calibrated numerically, and no adversary is assumed away. The union bound is the
same theorem with the region {P <= alpha / 2 or Q <= alpha / 2} in the place of {P Q^w <= z}: it demands that both
deviations are large where the sum of their logarithms would do. As w -> 0 all of alpha is the count's, and the audit
must then be nearly complete.

An upper bound on the probability p_B of a class B is this theorem about all classes but B: ``known`` samples are known
not to have Y = B, and of the population, all with S != B, the mismatches are those with Y = B.

An audit may also be drawn from a larger set than the population. The part of it that lies in the population is, given
how large that part is, a simple random sample, and Q is a p-value given that size.

References:
    Fisher, "Statistical methods for research workers", 1932; Good, JRSS B 1955 (weights); the setting is that of
    correlation-eliminated certification (Gao et al., NeurIPS 2024).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, gammaln, ndtr, ndtri

from deqcert.errors import require
from deqcert.statistics.arguments import FloatArray, IntArray, checked_counts, demand_level
from deqcert.statistics.bounds import clopper_pearson_lower

WEIGHTS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""What is chosen from. Small weights suit small radii, where a larger share of alpha for the audit would cost most."""

PLANNED_LOSS = 0.01
"""Share of the radius that the choice of the weight assumes the audit may cost; any choice is valid."""

SMALLEST_ALPHA = 1e-12
"""Below, rounding in the tails of the hypergeometric distribution is not accounted for."""

_SLACK = 1e-9
"""Relative error of q allowed for: it adds terms of one sign, each the exponential of gamma logarithms below 1e7."""


def joint_p_a_lower(
    known: int, population: int, audited: int, mismatches: int, n: int, alpha: float, weight: float
) -> float:
    """Bound p_A from below by the theorem of this module.

    Args:
        known: Samples that f is known to classify A, besides the population.
        population: Samples with S = A from which the audit was drawn.
        audited: Size K of the uniformly random audit.
        mismatches: Audited samples that f does not classify A.
        n: All estimation samples, >= known + population.
        alpha: Error probability, in [1e-12, 1).
        weight: Weight w of the audit in (0, 1], fixed before any prediction of f on these samples was known.

    Returns:
        The bound, in [0, 1).

    Raises:
        SettingError: A count is not an integer or the counts are inconsistent, or ``alpha`` or ``weight`` is out of
            range.

    Example:
        Beside 0.8831 of the union bound, and 0.8904 of the count alone if all 9000 had been classified by f:

        >>> round(joint_p_a_lower(0, 9000, audited=1000, mismatches=0, n=10_000, alpha=0.001, weight=0.7), 4)
        0.8885
    """
    _demand_counts(n, population, audited, mismatches, known=known)
    wrong, levels = _levels(population, audited, mismatches, alpha, weight)
    return float(clopper_pearson_lower(known + population - wrong, n, levels).min())


def joint_p_b_upper(
    possible: int, population: int, audited: int, mismatches: int, n: int, alpha: float, weight: float
) -> float:
    """Bound the probability p_B of a class B from above by the theorem of this module.

    Args:
        possible: Samples outside of the population that f may classify B.
        population: Samples with S != B from which the audit was drawn.
        audited: Size K of the uniformly random audit.
        mismatches: Audited samples that f classifies B.
        n: All estimation samples, >= possible + population.
        alpha: Error probability, in [1e-12, 1).
        weight: Weight w of the audit in (0, 1], fixed before any prediction of f on these samples was known.

    Returns:
        The bound, in (0, 1].

    Raises:
        SettingError: As :func:`joint_p_a_lower`.
    """
    _demand_counts(n, population, audited, mismatches, possible=possible)
    return 1 - joint_p_a_lower(n - possible - population, population, audited, mismatches, n, alpha, weight)


@lru_cache(maxsize=4096)
def joint_weight(k0: int, n0: int, n: int, alpha: float) -> float:
    """Choose the weight by the selection samples, which the estimation samples are independent of.

    The one of ``WEIGHTS`` with which the smallest audit, if it finds no mismatch, certifies 99 % of the radius that the
    votes would certify without audit. Where that takes more than half of the samples, twice the loss is planned for.

    Args:
        k0: Selection samples with the selected class.
        n0: Selection samples, >= 1.
        n: Estimation samples, >= 1.
        alpha: Error probability of the certificate.
    """
    n_a = round(n * (k0 + 1) / (n0 + 2))
    p_a, loss = float(clopper_pearson_lower(n_a, n, alpha)), PLANNED_LOSS
    while loss < 1:
        sizes = {weight: joint_audit_size(0, n_a, n, alpha, weight, kept_p_a(p_a, loss)) for weight in WEIGHTS}
        if min(sizes.values()) <= n_a / 2:
            return min(sizes, key=lambda weight: (sizes[weight], weight))
        loss *= 2
    return WEIGHTS[-1]


def kept_p_a(p_a: float, radius_loss: float) -> float:
    """Return the p_A of a radius that is by ``radius_loss``, a share of it, smaller than that of ``p_a``."""
    return float(ndtr((1 - radius_loss) * ndtri(p_a))) if p_a > 0.5 else 0.5


def joint_audit_size(known: int, population: int, n: int, alpha: float, weight: float, p_a: float) -> int:
    """Return the smallest audit that certifies ``p_a`` if it finds no mismatch; ``population`` if none does.

    Of M wrong samples none is drawn with probability q_M = C(population - K, M) / C(population, M), which must be so
    small that clopper_pearson_lower(t_M, n, z / q_M^w) >= p_a, that is P(Binomial(n, p_a) >= t_M) <= z / q_M^w.
    """
    z = joint_level(alpha, weight)
    wrong = np.arange(population + 1)
    count = np.maximum(known + population - wrong, 1)
    reached = betainc(count, n - count + 1, p_a)
    # From where nearly every draw has that many on, the demand stays the same and q falls.
    wrong = wrong[: np.searchsorted(reached, 1 - 1e-12) + 1]
    wrong = wrong[reached[wrong] > z]
    if len(wrong) == 0 or wrong[0] == 0:
        return population if len(wrong) else 0
    allowed = (math.log(z) - np.log(reached[wrong])) / weight

    def suffices(audited: int) -> bool:
        drawn = wrong[wrong <= population - audited]
        none = _log_choose(population - audited, drawn) - _log_choose(population, drawn)
        return bool((none <= allowed[: len(drawn)]).all())

    return bisect_left(range(population), True, key=suffices)


@lru_cache(maxsize=256)
def joint_level(alpha: float, weight: float) -> float:
    """Return z, rounded down.

    Raises:
        SettingError: ``alpha`` is not in [1e-12, 1), or ``weight`` not in (0, 1].
    """
    demand_level("alpha", alpha)
    require(alpha >= SMALLEST_ALPHA, "alpha", alpha, f"must be >= {SMALLEST_ALPHA:g} for the joint rule")
    require(0 < weight <= 1, "weight", weight, "must be in (0, 1]")

    def probability(z: float) -> float:
        rest = 1 - weight
        log_z = math.log(z)
        return z * (1 - log_z if rest == 0 else 1 - weight * math.expm1(rest / weight * log_z) / rest)

    low, high = 0.0, alpha
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if probability(middle) * (1 + _SLACK) <= alpha else (low, middle)
    return low


def _levels(population: int, audited: int, mismatches: int, alpha: float, weight: float) -> tuple[IntArray, FloatArray]:
    """Return the numbers M of wrong samples that bound anything, with their levels z / q_M^w < 1."""
    z = joint_level(alpha, weight)
    plausible = _no_more_mismatches(population, audited, mismatches)
    with np.errstate(divide="ignore"):
        log_levels = math.log(z) - weight * (np.log(plausible) + _SLACK * (1 + population / 10_000))
    wrong = np.flatnonzero(log_levels < 0)
    return wrong, np.exp(log_levels[wrong])


def _no_more_mismatches(population: int, audited: int, mismatches: int) -> FloatArray:
    """Return q_M = P(Hypergeometric(population, M, audited) <= mismatches) for M = 0, ..., population.

    A further wrong sample makes mismatches exceed their number if they were as many and it is drawn: q_M - q_(M+1) =
    P(Hypergeometric(population, M, audited) = mismatches) (audited - mismatches) / (population - M). Summed from the
    last positive one down, all terms are positive, and small q as accurate as large ones.
    """
    plausible = np.ones(population + 1)
    last = population - (audited - mismatches)
    if last == population:
        return plausible
    m = np.arange(mismatches, last + 1)
    equal = _log_choose(m, mismatches) + _log_choose(population - m, audited - mismatches)
    drop = np.exp(equal - _log_choose(population, audited)) * ((audited - mismatches) / (population - m))
    plausible[mismatches : last + 1] = np.minimum(1.0, np.cumsum(drop[::-1])[::-1])
    plausible[last + 1 :] = 0.0
    return plausible


def _log_choose(n: ArrayLike, k: ArrayLike) -> FloatArray:
    n, k = np.asarray(n, dtype=np.float64), np.asarray(k, dtype=np.float64)
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


def _demand_counts(n: int, population: int, audited: int, mismatches: int, **elsewhere: int) -> None:
    checked_counts(n=n, population=population, audited=audited, mismatches=mismatches)
    checked_counts(n=n, **elsewhere)
    require(n >= 1, "n", n, "must be >= 1")
    others = n - sum(elsewhere.values())
    require(population <= others, "population", population, f"must be <= {others}, the other samples")
