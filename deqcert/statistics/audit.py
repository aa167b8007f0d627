"""The audit: how many of the SRS predictions A are worth believing, and how many to look at.

Serialized smoothing gives every noisy sample a cheap prediction S. Of the ``n_a`` samples with S = A a uniformly random
subset of ``audited`` samples gets the prediction Y of the base classifier as well; ``mismatches`` of them have Y != A.
Whatever the dependence among the S, this bounds how many of all ``n_a`` samples have Y != A, and what is left is a
lower bound on the Binomial(n, p_A) count of Y = A, up to an error probability.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri
from scipy.stats import hypergeom

from deqcert.errors import is_real, require, require_count
from deqcert.statistics.arguments import IntArray, checked_counts, demand_level
from deqcert.statistics.bounds import DEFAULT_ALPHA, clopper_pearson_lower, hypergeometric_upper, radius_of_count
from deqcert.statistics.joint import joint_audit_size, joint_p_a_lower, joint_weight, kept_p_a
from deqcert.statistics.votes import Sides, Votes


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
    """How many samples to audit: from what is known before the audit, never from its outcome.

    For certificates with one side the audit is of the samples with S = A, for two sides of those of all classes.
    """

    def aimed_at(self, alpha: float, alpha_audit: float | None = None, rule: str = "joint") -> AuditSize:
        """Return the size with alpha, share and rule of the certificates to come, unless it states its own."""
        return self

    @abstractmethod
    def size(self, votes: Votes, sides: Sides = "one") -> int:
        """Return its size, at most ``votes.auditable(sides)``, from the votes as they are before the audit."""


@dataclass(frozen=True)
class FixedAudit(AuditSize):
    """Audit the same number of samples of every image, >= 1, or all of them if there are fewer."""

    samples: int = 400

    def __post_init__(self) -> None:
        require_count("samples", self.samples, minimum=1)

    def size(self, votes: Votes, sides: Sides = "one") -> int:
        """Return ``samples``, or all there are."""
        return min(self.samples, votes.auditable(sides))


@dataclass(frozen=True)
class AdaptiveAudit(AuditSize):
    """Audit as few samples as lose at most a given share of the radius, provided that none is a mismatch.

    A few hundred suffice for moderate p_A, nearly all are needed where p_A is almost 1. The size depends on counts of
    cheap predictions only, so certificates hold for any alpha and by any rule.

    Args:
        radius_loss: Share of the standard radius (no audit) that may be lost, in (0, 1).
        alpha: Error probability of the certificate aimed at, in (0, 1); None for that of the run's certificates.
        alpha_audit: The audit's share of it, in (0, alpha); None for one half. Needs ``alpha`` and the rule "exact".
        rule: Rule of the certificate aimed at: "joint", or "exact" (union bound), which needs larger audits; None for
            that of the run's certificates, or "exact" if that is neither.

    Raises:
        SettingError: A setting is out of range.
    """

    radius_loss: float = 0.05
    alpha: float | None = None
    alpha_audit: float | None = None
    rule: Literal["joint", "exact"] | None = None

    def __post_init__(self) -> None:
        fits = is_real(self.radius_loss) and 0 < self.radius_loss < 1
        require(fits, "radius_loss", self.radius_loss, "must be in (0, 1)")
        require(self.rule in ("joint", "exact", None), "rule", self.rule, "must be joint, exact or None")
        if self.alpha is None or self.rule == "joint":
            shares = "must be None without an alpha of which it is a share, and with the joint rule, which shares none"
            require(self.alpha_audit is None, "alpha_audit", self.alpha_audit, shares)
        if self.alpha is not None:
            split_alpha(self.alpha, self.alpha_audit)

    def aimed_at(self, alpha: float, alpha_audit: float | None = None, rule: str = "joint") -> AdaptiveAudit:
        """Return the size with alpha, share and rule of the certificates to come, unless it states its own."""
        aim = self.rule or ("joint" if rule == "joint" else "exact")
        if self.alpha is not None:
            return replace(self, rule=aim)
        return replace(self, alpha=alpha, alpha_audit=alpha_audit if aim == "exact" else None, rule=aim)

    def size(self, votes: Votes, sides: Sides = "one") -> int:
        """Return the smallest sufficient size; 0 where the standard bound, or all audited by the joint rule, abstains.

        Where none is, since the audit takes alpha from the count, what may be lost is a share of what a complete audit
        would certify by the joint rule, and the whole population is audited for the exact one. With two sides the
        joint rule is aimed at, whatever ``rule`` says.
        """
        alpha = self.alpha or DEFAULT_ALPHA
        if sides == "two":
            return self._two_sided_size(votes, alpha)
        if radius_of_count(votes.n_a, votes.n, alpha) == 0:
            return 0
        if self.rule == "exact":
            return self._exact_size(votes, alpha)
        weight = joint_weight(votes.selection[votes.selected], votes.n0, votes.n, alpha)
        wanted = kept_p_a(float(clopper_pearson_lower(votes.n_a, votes.n, alpha)), self.radius_loss)
        complete = joint_p_a_lower(votes.escalated_a, votes.population, votes.population, 0, votes.n, alpha, weight)
        if complete <= 0.5:
            return 0
        if complete < wanted:
            wanted = kept_p_a(complete, self.radius_loss)
        return joint_audit_size(votes.escalated_a, votes.population, votes.n, alpha, weight, wanted)

    def _two_sided_size(self, votes: Votes, alpha: float) -> int:
        """Return the smallest size with which neither the bound on p_A nor that on p_B costs more than may be lost."""
        weight = joint_weight(votes.selection[votes.selected], votes.n0, votes.n, alpha)
        rest, everyone = votes.rest, votes.auditable("two")
        b = max((c for c in range(len(rest)) if c != votes.selected), key=votes.estimation.__getitem__, default=None)
        known_b = 0 if b is None else votes.escalations - (votes.estimation[b] - rest[b])
        # Of A, and of all classes but B: share of alpha, known samples, population.
        sides = [(alpha - alpha / 10, votes.escalated_a, votes.population)]
        if b is not None:
            sides.append((alpha / 10, known_b, everyone - rest[b]))
        scores = []
        for share, known, population in sides:
            standard = float(clopper_pearson_lower(known + population, votes.n, share))
            complete = joint_p_a_lower(known, population, population, 0, votes.n, share, weight)
            scores.append(float(ndtri(min(standard, complete))))
        if len(scores) == 2 and scores[1] <= scores[0]:  # 1 - p_A is the better bound on p_B
            del sides[1], scores[1]
        lost = self.radius_loss * sum(scores) / len(scores)
        if lost <= 0:
            return 0
        needed = [
            joint_audit_size(known, population, votes.n, share, weight, float(ndtr(score - lost)))
            for (share, known, population), score in zip(sides, scores, strict=True)
        ]
        # So large that as many as are needed fall to each population on average.
        return max(
            -(-size * everyone // max(population, 1)) for size, (_, _, population) in zip(needed, sides, strict=True)
        )

    def _exact_size(self, votes: Votes, alpha: float) -> int:
        population, n = votes.population, votes.n
        alpha_audit, alpha_count = split_alpha(alpha, self.alpha_audit)
        target = (1 - self.radius_loss) * radius_of_count(votes.n_a, n, alpha)
        needed = bisect_left(range(votes.n_a + 1), target, key=lambda count: radius_of_count(count, n, alpha_count))
        # The effective count reaches ``needed`` once the audit refutes one mismatch more than that leaves.
        refuted = votes.n_a - needed + 1
        if refuted == 0:
            return population
        if refuted > population:
            return 0

        def suffices(size: int) -> bool:
            return bool(hypergeom.cdf(0, population, refuted, size) <= alpha_audit)

        return bisect_left(range(population), True, key=suffices)
