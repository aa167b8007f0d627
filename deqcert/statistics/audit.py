"""The audit: how many of the SRS predictions A are worth believing, and how many to look at.

Serialized smoothing gives every noisy sample a cheap prediction S. Of the ``n_a`` samples with S = A a uniformly random
subset of ``audited`` samples gets the prediction Y of the base classifier as well; ``mismatches`` of them have Y != A.
Whatever the dependence among the S, this bounds how many of all ``n_a`` have Y = A, a Binomial(n, p_A) count, from
below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import hypergeom

from deqcert.errors import is_real, require, require_count
from deqcert.statistics.arguments import IntArray, checked_counts, demand_level
from deqcert.statistics.bounds import DEFAULT_ALPHA, hypergeometric_upper, radius_of_count


def split_alpha(alpha: float, alpha_audit: float | None) -> tuple[float, float]:
    """Return the shares of an error probability for the audit, None for one half, and for the bound on p_A.

    Raises:
        SettingError: ``alpha`` is not in (0, 1), or ``alpha_audit`` not in (0, alpha).
    """
    demand_level("alpha", alpha)
    if alpha_audit is None:
        alpha_audit = alpha / 2
    require(0 < alpha_audit < alpha, "alpha_audit", alpha_audit, f"must be in (0, alpha = {alpha!r})")
    return alpha_audit, alpha - alpha_audit


def exact_effective_count(
    n_a: ArrayLike, audited: ArrayLike, mismatches: ArrayLike, alpha_audit: ArrayLike
) -> IntArray:
    """Bound the number of samples with S = Y = A from below by the exact (hypergeometric) rule.

    Correlation-eliminated certification (Gao et al., NeurIPS 2024) with the audit treated as what it is, a sample
    without replacement from a finite population: N_eff = N_A - hypergeometric_upper(m, N_A, K, alpha_audit).

    Args:
        n_a: Samples with S = A.
        audited: Size K of the uniformly random audit subset of them; 0 proves nothing and gives 0.
        mismatches: Audited samples with Y != A.
        alpha_audit: Probability in (0, 1) with which the result may exceed the truth.

    Raises:
        SettingError: Not 0 <= mismatches <= audited <= n_a, or ``alpha_audit`` is outside of (0, 1).
    """
    n_a, audited, mismatches = checked_counts(n_a=n_a, audited=audited, mismatches=mismatches)
    return np.asarray(n_a - hypergeometric_upper(mismatches, n_a, audited, alpha_audit))


class AuditSize(ABC):
    """How many of the samples with S = A to audit: from what is known before the audit, never from its outcome."""

    def aimed_at(self, alpha: float, alpha_audit: float | None = None) -> AuditSize:
        """Return the rule with the error probabilities of the certificates to come, unless it states its own."""
        return self

    @abstractmethod
    def size(self, n_a: int, n: int) -> int:
        """Return the audit's size, at most ``n_a``, given that ``n_a`` of ``n`` samples have S = A."""


@dataclass(frozen=True)
class FixedAudit(AuditSize):
    """Audit the same number of samples of every image, >= 1, or all of them if there are fewer."""

    samples: int = 400

    def __post_init__(self) -> None:
        require_count("samples", self.samples, minimum=1)

    def size(self, n_a: int, n: int) -> int:
        """Return ``min(samples, n_a)``."""
        require(0 <= n_a <= n, "n_a", n_a, f"must be in [0, n = {n}]")
        return min(self.samples, n_a)


@dataclass(frozen=True)
class AdaptiveAudit(AuditSize):
    """Audit as few samples as lose at most a given share of the radius, provided that none is a mismatch.

    A few hundred suffice for moderate p_A. Nearly all are needed where p_A is almost 1, and where the radius is so
    small that sharing alpha takes much of it. The size depends on ``n_a`` only, so certificates hold for any alpha.

    Args:
        radius_loss: Share of the standard radius (no audit) that may be lost, in (0, 1).
        alpha: Error probability of the certificate aimed at, in (0, 1); None for that of the run's certificates.
        alpha_audit: The audit's share of it, in (0, alpha); None for one half. Needs ``alpha``.
    """

    radius_loss: float = 0.05
    alpha: float | None = None
    alpha_audit: float | None = None

    def __post_init__(self) -> None:
        fits = is_real(self.radius_loss) and 0 < self.radius_loss < 1
        require(fits, "radius_loss", self.radius_loss, "must be in (0, 1)")
        if self.alpha is None:
            require(self.alpha_audit is None, "alpha_audit", self.alpha_audit, "must be None if alpha is: its share")
        else:
            split_alpha(self.alpha, self.alpha_audit)

    def aimed_at(self, alpha: float, alpha_audit: float | None = None) -> AdaptiveAudit:
        """See :meth:`AuditSize.aimed_at`."""
        return replace(self, alpha=alpha, alpha_audit=alpha_audit) if self.alpha is None else self

    def size(self, n_a: int, n: int) -> int:
        """Return the smallest sufficient size, ``n_a`` if none is; 0 where even the standard bound abstains."""
        alpha = self.alpha or DEFAULT_ALPHA
        alpha_audit, alpha_count = split_alpha(alpha, self.alpha_audit)
        target = (1 - self.radius_loss) * radius_of_count(n_a, n, alpha)
        if target == 0:
            return 0
        needed = bisect_left(range(n_a + 1), target, key=lambda count: radius_of_count(count, n, alpha_count))
        # The effective count reaches ``needed`` once the audit refutes one mismatch more than that leaves.
        refuted = n_a - needed + 1
        if refuted == 0:
            return n_a
        return bisect_left(range(n_a), True, key=lambda size: bool(hypergeom.cdf(0, n_a, refuted, size) <= alpha_audit))
