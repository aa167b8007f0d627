"""Certificates: votes and an error probability in, a class and a radius out.

The guarantee: for an image whose votes were taken as :class:`~deqcert.statistics.votes.Votes` says, a certificate
marked ``sound`` has a ``p_a_lower`` above the true p_A with probability at most ``alpha``. If it does not, the smoothed
classifier returns ``prediction`` everywhere in the l2 ball of ``radius`` around the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from deqcert.errors import require
from deqcert.statistics.anytime import anytime_lower
from deqcert.statistics.audit import exact_effective_count, split_alpha
from deqcert.statistics.authors import binomial_effective_count, published_p_a_lower
from deqcert.statistics.bounds import DEFAULT_ALPHA, certified_radius, clopper_pearson_lower
from deqcert.statistics.votes import Votes, expect

ABSTAIN = -1

AuditRule = Literal["exact", "binomial", "published"]


class Certificate(NamedTuple):
    """What is claimed about one image.

    Attributes:
        prediction: Class of the smoothed classifier, or ``ABSTAIN`` (-1).
        radius: Certified l2 radius in units of pixel values in [0, 1]; 0 on abstention.
        p_a_lower: Lower bound on the probability of the selected class under Gaussian noise.
        sound: Whether the bound has a proof. False only for the ``published`` audit rule.
        index: Position of the image in its data set; -1 if it is of none.
        label: True class; -1 if it is unknown.
    """

    prediction: int
    radius: float
    p_a_lower: float
    sound: bool
    index: int = -1  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    label: int = -1

    @property
    def correct(self) -> bool:
        """Whether the prediction is the true class; an abstention is not."""
        return self.prediction == self.label != ABSTAIN


@dataclass(frozen=True)
class CertificationRule:
    """How votes become certificates.

    Args:
        alpha: Probability with which a certificate may be false, in (0, 1).
        alpha_audit: Share of ``alpha`` that the audit may use up, in (0, alpha); None for one half. Votes
            without audit use all of ``alpha`` for the bound on p_A; the ``published`` rule always halves it.
        audit: Rule for audited votes: ``exact`` (hypergeometric), ``binomial`` (looser), or ``published``,
            which is not sound and serves comparison with published tables only.

    Raises:
        SettingError: A setting is out of range.
    """

    alpha: float = DEFAULT_ALPHA
    alpha_audit: float | None = None
    audit: AuditRule = "exact"

    def __post_init__(self) -> None:
        split_alpha(self.alpha, self.alpha_audit)
        rules = get_args(AuditRule)
        require(self.audit in rules, "audit", self.audit, f"must be one of {', '.join(rules)}")

    def p_a_lower(self, votes: Votes) -> float:
        """Bound the probability p_A of the selected class from below.

        Without audit the predictions are independent and N_A is Binomial(n, p), with p the probability of the class
        under the noise that was drawn, provided that n was fixed; else the bound is the one that holds wherever
        sampling stops. With an audit, T = #{Y = A} is Binomial, and the effective count exceeds T with
        probability at most alpha_audit; the union bound gives alpha in all. p_A, under exact Gaussian noise, is at
        least p - ``votes.noise_error``, with certainty, which is why it costs no alpha.

        Raises:
            SettingError: ``votes.noise_error`` is out of range, or the votes' counts are inconsistent.
            DataError: The votes have an audit and say that sampling could stop because of them.
        """
        require(0 <= votes.noise_error < 1, "noise_error", votes.noise_error, "must be in [0, 1)")
        return max(0.0, self._drawn_lower(votes) - votes.noise_error)

    def _drawn_lower(self, votes: Votes) -> float:
        """Bound the probability of the selected class under the noise that was drawn."""
        if votes.audited is None:
            lower = anytime_lower if votes.anytime else clopper_pearson_lower
            return float(lower(votes.n_a, votes.n, self.alpha))
        expect(votes, "anytime", not votes.anytime, "false with an audit")
        outcome = votes.audited, votes.mismatches
        if self.audit == "published":
            return float(published_p_a_lower(votes.n_a, votes.n, *outcome, self.alpha))
        alpha_audit, alpha_count = split_alpha(self.alpha, self.alpha_audit)
        effective_count = exact_effective_count if self.audit == "exact" else binomial_effective_count
        n_eff = effective_count(votes.n_a, *outcome, alpha_audit)
        return float(clopper_pearson_lower(n_eff, votes.n, alpha_count))

    def certify(self, votes: Votes) -> Certificate:
        """Turn the votes of one image into its certificate (CERTIFY of Cohen et al., ICML 2019).

        The radius is in the unit of the votes' sigma, which no caller can mistake; where p_a_lower <= 1/2 the
        certificate is an abstention. Errors are those of :meth:`p_a_lower`, and that sigma is not positive and finite.
        """
        p_a_lower = self.p_a_lower(votes)
        return Certificate(
            index=votes.index,
            label=votes.label,
            prediction=votes.selected if p_a_lower > 0.5 else ABSTAIN,
            radius=float(certified_radius(p_a_lower, votes.sigma)),
            p_a_lower=p_a_lower,
            sound=votes.audited is None or self.audit != "published",
        )
