"""Certificates: votes and an error probability in, a class and a radius out.

The guarantee: for an image whose votes were taken as :class:`~deqcert.statistics.votes.Votes` says, a certificate
marked ``sound`` has a ``p_a_lower`` above the true p_A, or a ``p_b_upper`` below the true p_B of the most probable
other class, with probability at most ``alpha``. If neither, the smoothed classifier returns ``prediction`` everywhere
in the l2 ball of ``radius`` around the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from deqcert.errors import require
from deqcert.statistics.audit import exact_effective_count, split_alpha
from deqcert.statistics.authors import binomial_effective_count, published_p_a_lower
from deqcert.statistics.bounds import DEFAULT_ALPHA, certified_radius, clopper_pearson_lower, clopper_pearson_upper
from deqcert.statistics.joint import joint_p_a_lower, joint_p_b_upper, joint_weight
from deqcert.statistics.votes import Sides, Votes, expect

ABSTAIN = -1

AuditRule = Literal["joint", "exact", "binomial", "published"]


class Certificate(NamedTuple):
    """What is claimed about one image.

    Attributes:
        prediction: Class of the smoothed classifier, or ``ABSTAIN`` (-1).
        radius: Certified l2 radius in units of pixel values in [0, 1]; 0 on abstention.
        p_a_lower: Lower bound on the probability of the selected class under Gaussian noise; None where the certificate
            is without noise, about the classifier itself.
        sound: Whether the bounds have a proof. False only for the ``published`` audit rule.
        index: Position of the image in its data set; -1 if it is of none.
        label: True class; -1 if it is unknown.
        p_b_upper: Upper bound on the probability of every other class; None with one side, where it is 1 - p_a_lower.
    """

    prediction: int
    radius: float
    p_a_lower: float | None
    sound: bool
    index: int = -1  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    label: int = -1
    p_b_upper: float | None = None

    @property
    def correct(self) -> bool:
        """Whether the prediction is the true class; an abstention is not."""
        return self.prediction == self.label != ABSTAIN


@dataclass(frozen=True)
class CertificationRule:
    """How votes become certificates.

    Args:
        alpha: Probability with which a certificate may be false, in (0, 1).
        alpha_audit: Share of ``alpha`` that the ``exact`` and the ``binomial`` audit rule may use up, in (0, alpha);
            None for one half. Votes without audit use all of ``alpha`` for the count.
        audit: Rule for audited votes: ``joint`` (one test of audit and count, :mod:`deqcert.statistics.joint`),
            ``exact`` (hypergeometric, union bound), ``binomial`` (looser; the authors'), or ``published``, which is not
            sound and serves comparison with published tables only.
        sides: "one" bounds p_A only and takes p_B for 1 - p_A, as published tables do; "two" bounds p_B of the
            runner-up as well (Cohen et al., ICML 2019, theorem 1), which certifies more where p_A is not far above 1/2
            or below. Audited votes need an audit of all classes for it, and the joint rule.
        alpha_b: Share of ``alpha`` that the bound on p_B may use up, in (0, alpha); None for a tenth. Two sides only.

    Raises:
        SettingError: A setting is out of range.
    """

    alpha: float = DEFAULT_ALPHA
    alpha_audit: float | None = None
    audit: AuditRule = "joint"
    sides: Sides = "one"
    alpha_b: float | None = None

    def __post_init__(self) -> None:
        split_alpha(self.alpha, self.alpha_audit)
        for field, rules in (("audit", get_args(AuditRule)), ("sides", get_args(Sides))):
            require(getattr(self, field) in rules, field, getattr(self, field), f"must be one of {', '.join(rules)}")
        if self.audit in ("joint", "published"):
            allowed = f"must be None with the {self.audit} rule, which does not share alpha so"
            require(self.alpha_audit is None, "alpha_audit", self.alpha_audit, allowed)
        if self.alpha_b is not None:
            require(self.sides == "two", "alpha_b", self.alpha_b, 'must be None with sides "one"')
            require(0 < self.alpha_b < self.alpha, "alpha_b", self.alpha_b, f"must be in (0, alpha = {self.alpha!r})")

    def bounds(self, votes: Votes) -> tuple[float, float | None]:
        """Bound p_A of the selected class from below, and with two sides p_B of every other class from above.

        Without audit the predictions are independent and N_A is Binomial(n, p), with p the probability of the class
        under the noise that was drawn, provided that n was fixed; where sampling could stop at several looks, each has
        its share of alpha. With an audit, T = #{Y = A} is Binomial, and the audit bounds it from below.

        For p_B the largest count of another class is taken, without a correction for the choice: the most probable
        other class B is one fixed class, its count is at most the largest, and the bound grows with the count. With an
        audit of all classes, the joint rule bounds the probability of each of them, and the largest bound is taken.

        p_A, under exact Gaussian noise, is at least p - ``votes.noise_error``, and p_B at most so much more, with
        certainty, which is why it costs no alpha.

        Args:
            votes: The measurement.

        Raises:
            SettingError: ``votes.noise_error`` is out of range, the votes' counts are inconsistent, or two sides are
                asked of audited votes by another rule than the joint one.
            DataError: The votes are not of the kind that the audit rule is for.
        """
        error = votes.noise_error
        require(0 <= error < 1, "noise_error", error, "must be in [0, 1)")
        alpha = self.alpha * votes.alpha_share
        two = self.sides == "two"
        if two and votes.audited is not None:
            require(self.audit == "joint", "audit", self.audit, "must be joint for two sides of audited votes")
            expect(votes, "audited_as", len(votes.audited_as) > 0, "an audit of all classes, for two sides")
        alpha_b = (alpha / 10 if self.alpha_b is None else self.alpha_b * votes.alpha_share) if two else 0.0
        p_a = max(0.0, self._p_a_lower(votes, alpha - alpha_b) - error)
        if not two:
            return p_a, None
        return p_a, min(1 - p_a, self._p_b_upper(votes, alpha_b) + error)

    def _p_a_lower(self, votes: Votes, alpha: float) -> float:
        """Bound the probability of the selected class under the noise that was drawn."""
        if votes.audited is None:
            return float(clopper_pearson_lower(votes.n_a, votes.n, alpha))
        known, population = votes.known(votes.selected), votes.population
        outcome = votes.audited, votes.mismatches
        if self.audit == "joint":
            return joint_p_a_lower(known, population, *outcome, votes.n, alpha, self._weight(votes))
        if self.audit == "published":
            expect(votes, "escalated", not votes.escalated, "none with the published rule")
            return float(published_p_a_lower(population, votes.n, *outcome, alpha))
        share = None if self.alpha_audit is None else self.alpha_audit * votes.alpha_share
        alpha_audit, alpha_count = split_alpha(alpha, share)
        effective_count = exact_effective_count if self.audit == "exact" else binomial_effective_count
        n_eff = known + effective_count(population, *outcome, alpha_audit)
        return float(clopper_pearson_lower(n_eff, votes.n, alpha_count))

    def _p_b_upper(self, votes: Votes, alpha: float) -> float:
        """Bound the probability of every class but the selected one under the noise that was drawn."""
        others = [each for each in range(len(votes.estimation)) if each != votes.selected]
        if not others:
            return 1.0
        if votes.audited is None:
            return float(clopper_pearson_upper(max(votes.estimation[each] for each in others), votes.n, alpha))
        rest, everyone, audited = votes.rest, votes.auditable("two"), votes.examined
        invalid = votes.n - votes.escalations - everyone  # may be of any class
        cases = {
            (
                votes.known(each) + rest[each] + invalid,
                everyone - rest[each],
                audited - votes.audited_as[each],
                votes.mistaken[each],
            )
            for each in others
        }
        return max(joint_p_b_upper(*case, votes.n, alpha, self._weight(votes)) for case in cases)

    def _weight(self, votes: Votes) -> float:
        return joint_weight(votes.selection[votes.selected], votes.n0, votes.n, self.alpha)

    def certify(self, votes: Votes) -> Certificate:
        """Turn the votes of one image into its certificate (CERTIFY of Cohen et al., ICML 2019).

        Args:
            votes: The measurement; the radius is in the unit of its sigma, which no caller can mistake.

        Returns:
            The certificate; an abstention where nothing is certified.

        Raises:
            SettingError: The votes' sigma is not positive and finite, their noise error is not in [0, 1), or their
                counts are inconsistent.
            DataError: The votes are not of the kind that the audit rule is for.
        """
        p_a_lower, p_b_upper = self.bounds(votes)
        radius = float(certified_radius(p_a_lower, votes.sigma, p_b_upper))
        return Certificate(
            index=votes.index,
            label=votes.label,
            prediction=votes.selected if radius > 0 else ABSTAIN,
            radius=radius,
            p_a_lower=p_a_lower,
            sound=votes.audited is None or self.audit != "published",
            p_b_upper=p_b_upper,
        )
