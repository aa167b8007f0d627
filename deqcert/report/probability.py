"""The empirical distribution of p_A, which depends on neither n nor alpha, and what it would give at others.

ACR depends on the certification budget and is dominated by easy images; Sun et al., "Average certified radius is a
poor metric for randomized smoothing" (arXiv 2410.06895), recommend the distribution of p_A over the images instead,
from which certified accuracies at any budget follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deqcert.errors import require_count
from deqcert.statistics import ABSTAIN, Certificate, Votes, certified_radius, clopper_pearson_lower


def probability_of_label(votes: Votes) -> float:
    """Estimate the probability of the true class under noise.

    Without an audit this is the fraction of copies with that label. Cheap labels of the selected class are counted
    only as far as the audit found them true: N_A / n · (1 − m / K). An estimate, no bound; slightly biased if votes or
    mismatches decided where sampling stopped.
    """
    fraction = votes.estimation[votes.label] / votes.n
    if votes.audited and votes.label == votes.selected:
        fraction *= 1 - votes.mismatches / votes.audited
    return fraction


def projected_certificates(votes: Sequence[Votes], n: int, alpha: float) -> list[Certificate]:
    """Project what standard smoothing would certify with another budget, if the estimates of p_A were true.

    For each image floor(p · n) of ``n`` copies vote for the selected class. A projection is no certificate, and marked
    as such: nobody has looked at those copies.

    Args:
        votes: Votes of a run.
        n: Copies per image, >= 1.
        alpha: Error probability of a certificate.

    Raises:
        SettingError: A setting is out of range.
    """
    require_count("n", n, minimum=1)
    projections = []
    for each in votes:
        selected = each._replace(label=each.selected)
        count = int(probability_of_label(selected) * n + 1e-9)
        lower = float(clopper_pearson_lower(count, n, alpha))
        projections.append(
            Certificate(
                index=each.index,
                label=each.label,
                prediction=each.selected if lower > 0.5 else ABSTAIN,
                radius=float(certified_radius(lower, each.sigma)),
                p_a_lower=lower,
                sound=False,
            )
        )
    return projections


def survival(probabilities: Sequence[float], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the fraction of images whose probability is at least each value of ``at``, shape (R,)."""
    fraction: NDArray[np.float64] = np.mean(np.asarray(probabilities)[:, None] >= at, axis=0)
    return fraction
