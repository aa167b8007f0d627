"""The audit: how many of the cheap labels A are worth believing, and how many to look at.

Serialized smoothing gives every noisy copy a cheap label S. Of the ``n_a`` copies with S = A a uniformly
random subset of ``audited`` copies gets its true label Y as well; ``mismatches`` of them have Y != A.
Whatever the dependence among the S, this bounds how many of all ``n_a`` copies have Y != A, and what is left
is a lower bound on the Binomial(n, p_A) count of true labels A, up to an error probability.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta, hypergeom

from deqcert.errors import is_real, require, require_count
from deqcert.statistics.arguments import FloatArray, IntArray, checked_counts, checked_level, demand
from deqcert.statistics.bounds import certified_radius, clopper_pearson_lower, hypergeometric_upper
from deqcert.statistics.sequential import LARGEST_POPULATION, anytime_hypergeometric_upper


def split_alpha(alpha: float, alpha_audit: float | None) -> tuple[float, float]:
    """Share an error probability between the audit and the bound on p_A (union bound).

    Args:
        alpha: Error probability of the certificate, in (0, 1).
        alpha_audit: The audit's share, in (0, alpha); None for one half.

    Returns:
        The audit's share and what remains for the bound on p_A.

    Raises:
        SettingError: A probability is out of range.
    """
    require(is_real(alpha) and 0 < alpha < 1, "alpha", alpha, "must be in (0, 1)")
    if alpha_audit is None:
        alpha_audit = alpha / 2
    require(0 < alpha_audit < alpha, "alpha_audit", alpha_audit, f"must be in (0, alpha = {alpha!r})")
    return alpha_audit, alpha - alpha_audit


def exact_effective_count(
    n_a: ArrayLike, audited: ArrayLike, mismatches: ArrayLike, alpha_audit: ArrayLike
) -> IntArray:
    """Copies whose true label is A, bounded from below by the exact (hypergeometric) rule.

    Correlation-eliminated certification (Gao et al., NeurIPS 2024) with the audit treated as what it is, a
    sample without replacement from a finite population: N_eff = N_A - hypergeometric_upper(m, N_A, K,
    alpha_audit).

    Args:
        n_a: Copies with cheap label A.
        audited: Size K of the uniformly random audit subset of them; 0 proves nothing and gives 0.
        mismatches: Audited copies whose true label is not A.
        alpha_audit: Probability in (0, 1) with which the result may exceed the truth.

    Returns:
        Lower bound on the number of copies with cheap and true label A, of the broadcast shape.

    Raises:
        SettingError: Not 0 <= mismatches <= audited <= n_a, or ``alpha_audit`` is outside of (0, 1).
    """
    n_a, audited, mismatches = _audit_counts(n_a, audited, mismatches)
    return np.asarray(n_a - hypergeometric_upper(mismatches, n_a, audited, alpha_audit))


def anytime_effective_count(
    n_a: ArrayLike, audited: ArrayLike, mismatches: ArrayLike, alpha_audit: ArrayLike
) -> IntArray:
    """Copies whose true label is A, bounded from below at whatever size the audit stops.

    N_eff = N_A - anytime_hypergeometric_upper(m, N_A, K, alpha_audit): the exact rule for an audit whose size K may
    depend on its own outcome. Looser than :func:`exact_effective_count`, same arguments; needs the copies to be
    audited in uniformly random order.

    Returns:
        Lower bound on the number of copies with cheap and true label A, of the broadcast shape.

    Raises:
        SettingError: Not 0 <= mismatches <= audited <= n_a <= ``LARGEST_POPULATION``, or ``alpha_audit`` is outside of
            (0, 1).
    """
    n_a, audited, mismatches = _audit_counts(n_a, audited, mismatches)
    demand(n_a <= LARGEST_POPULATION, "n_a", n_a, f"must be <= {LARGEST_POPULATION} for a sequential audit")
    return np.asarray(n_a - anytime_hypergeometric_upper(mismatches, n_a, audited, alpha_audit))


def binomial_effective_count(
    n_a: ArrayLike, audited: ArrayLike, mismatches: ArrayLike, alpha_audit: ArrayLike
) -> IntArray:
    """Copies whose true label is A, bounded from below by the binomial rule.

    The form the authors of serialized randomized smoothing give in the reviews of their paper: the audit is
    treated as if drawn with replacement, and N_eff = floor(N_A * (1 - p_m)) with p_m the Clopper-Pearson
    upper bound on the probability of a mismatch. Slightly looser than :func:`exact_effective_count`, same
    arguments.

    Returns:
        Lower bound on the number of copies with cheap and true label A, of the broadcast shape.

    Raises:
        SettingError: Not 0 <= mismatches <= audited <= n_a, or ``alpha_audit`` is outside of (0, 1).
    """
    n_a, audited, mismatches = _audit_counts(n_a, audited, mismatches)
    matching = np.floor(n_a * _match_probability(audited, mismatches, alpha_audit))
    return np.asarray(matching, dtype=np.int64)


def published_p_a_lower(
    n_a: ArrayLike, n: ArrayLike, audited: ArrayLike, mismatches: ArrayLike, alpha: ArrayLike
) -> FloatArray:
    """Bound p_A as the public code of serialized randomized smoothing does. NOT sound.

    Both N_A and n are scaled by the bound on the match probability and put into the Clopper-Pearson bound as the
    fractions that this makes of them. Their ratio stays, and mismatches hardly lower the result: it exceeds the true
    p_A far more often than ``alpha``. Only for comparing with published tables.

    Args:
        n_a: Copies with cheap label A, <= n.
        n: All estimation copies, >= 1.
        audited: Audited copies; 0 gives 0.
        mismatches: Audited copies whose true label is not A.
        alpha: Nominal error probability in (0, 1), of which either bound gets one half.

    Returns:
        The claimed lower bound on p_A, of the broadcast shape.

    Raises:
        SettingError: A count is no integer or out of range, or ``alpha`` is outside of (0, 1).
    """
    n_a, audited, mismatches = _audit_counts(n_a, audited, mismatches)
    n = checked_counts("n", n)
    demand(n >= 1, "n", n, "must be >= 1")
    demand(n_a <= n, "n_a", n_a, "must be <= n")
    half = checked_level("alpha", alpha) / 2
    conserve = _match_probability(audited, mismatches, half)
    kept_a, kept = n_a * conserve, n * conserve
    nothing = kept_a == 0  # there the beta distribution does not exist
    return np.where(nothing, 0.0, beta.ppf(half, np.where(nothing, 1.0, kept_a), kept - kept_a + 1))


class AuditSize(ABC):
    """How many of the copies with cheap label A to audit.

    A fixed size depends on what is known before any true label is looked at, never on the audit's outcome. A sequential
    one may: it audits in uniformly random order and looks at the outcome in between, and certificates use
    :func:`anytime_effective_count`.
    """

    @property
    def sequential(self) -> bool:
        """Whether the size depends on the audit's outcome."""
        return False

    @abstractmethod
    def size(self, n_a: int, n: int) -> int:
        """Return the audit's size, at most ``n_a``, given that ``n_a`` of ``n`` copies have cheap label A.

        Of a sequential audit, the largest size that it may take.
        """

    def next_size(self, n_a: int, n: int, audited: int, mismatches: int) -> int:
        """Return the size at which to look at the outcome again; ``audited`` itself if that is enough.

        Args:
            n_a: Copies with cheap label A.
            n: All estimation copies.
            audited: Copies audited so far, at most :meth:`size`; 0 before the first look.
            mismatches: Those of them whose true label is not A.
        """
        return self.size(n_a, n)


@dataclass(frozen=True)
class FixedAudit(AuditSize):
    """Audit the same number of copies of every image, or all of them if there are fewer.

    Args:
        samples: Copies to audit, >= 1.
    """

    samples: int = 400

    def __post_init__(self) -> None:
        require_count("samples", self.samples, minimum=1)

    def size(self, n_a: int, n: int) -> int:
        """Return ``min(samples, n_a)``."""
        require(0 <= n_a <= n, "n_a", n_a, f"must be in [0, n = {n}]")
        return min(self.samples, n_a)


@dataclass(frozen=True)
class AdaptiveAudit(AuditSize):
    """Audit as few copies as lose at most a given share of the radius, provided that none is a mismatch.

    A few hundred suffice for moderate p_A. Nearly all are needed where p_A is almost 1, and where the radius
    is so small that sharing alpha takes much of it. The size depends on ``n_a`` only, so the certificate
    holds for any error probability; the ones given here only aim it.

    Args:
        radius_loss: Share of the standard radius (every label true, no audit) that may be lost, in (0, 1).
        alpha: Error probability of the certificate aimed at, in (0, 1).
        alpha_audit: The audit's share of it, in (0, alpha); None for one half.
    """

    radius_loss: float = 0.05
    alpha: float = 0.001
    alpha_audit: float | None = None

    def __post_init__(self) -> None:
        demand_loss(self.radius_loss)
        split_alpha(self.alpha, self.alpha_audit)

    def size(self, n_a: int, n: int) -> int:
        """Return the smallest sufficient size.

        0 where even the standard bound abstains, ``n_a`` where no audit reaches the target because alpha is
        shared.
        """
        alpha_audit, alpha_count = split_alpha(self.alpha, self.alpha_audit)
        target = (1 - self.radius_loss) * unit_radius(n_a, n, self.alpha)
        if target == 0:
            return 0
        needed = bisect_left(range(n_a + 1), target, key=lambda count: unit_radius(count, n, alpha_count))
        # The effective count reaches ``needed`` once the audit refutes one mismatch more than that leaves.
        refuted = n_a - needed + 1
        if refuted == 0:
            return n_a
        return bisect_left(range(n_a), True, key=lambda size: bool(hypergeom.cdf(0, n_a, refuted, size) <= alpha_audit))


def demand_loss(radius_loss: float) -> None:
    """Raise :class:`SettingError` unless a share of the radius is in (0, 1)."""
    allowed = is_real(radius_loss) and 0 < radius_loss < 1
    require(allowed, "radius_loss", radius_loss, "must be in (0, 1)")


def unit_radius(count: int, n: int, alpha: float) -> float:
    """Radius in units of sigma that ``count`` of ``n`` independent labels A certify at level ``alpha``."""
    return float(certified_radius(clopper_pearson_lower(count, n, alpha), 1.0))


def _audit_counts(n_a: ArrayLike, audited: ArrayLike, mismatches: ArrayLike) -> tuple[IntArray, IntArray, IntArray]:
    n_a, audited = checked_counts("n_a", n_a), checked_counts("audited", audited)
    mismatches = checked_counts("mismatches", mismatches)
    demand(audited <= n_a, "audited", audited, "must be <= n_a")
    demand(mismatches <= audited, "mismatches", mismatches, "must be <= audited")
    return n_a, audited, mismatches


def _match_probability(audited: IntArray, mismatches: IntArray, alpha: ArrayLike) -> FloatArray:
    """Lower bound on P(Y = A | S = A) from audited copies; 0 if there are none."""
    bound = clopper_pearson_lower(audited - mismatches, np.maximum(audited, 1), alpha)
    return np.where(audited == 0, 0.0, bound)
