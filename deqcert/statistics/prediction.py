"""Prediction of the smoothed classifier without a radius."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from deqcert.errors import SettingError
from deqcert.statistics.arguments import checked_counts, checked_level
from deqcert.statistics.certificate import ABSTAIN
from deqcert.statistics.votes import most_frequent


def predict(counts: ArrayLike, alpha: float) -> int:
    """Return the class of the smoothed classifier, or abstain (PREDICT of Cohen et al., ICML 2019).

    The two-sided binomial test compares the two most frequent classes; a wrong class is returned with
    probability at most ``alpha``. The samples must be independent labels of the base classifier.

    Args:
        counts: Votes for each of the C classes, shape (C,).
        alpha: Error probability in (0, 1).

    Returns:
        The most frequent class, or -1 if it cannot be told from the second.

    Raises:
        SettingError: ``counts`` are not a vector of integers >= 0 or ``alpha`` is outside of (0, 1).

    Example:
        >>> predict([1, 19, 0], alpha=0.001), predict([7, 13, 0], alpha=0.001)
        (1, -1)
    """
    (votes,) = checked_counts(counts=counts)
    if votes.ndim != 1 or votes.size == 0:
        raise SettingError("counts", counts, "must be a vector with one count for each class")
    checked_level("alpha", alpha)
    second, first = np.sort(np.append(votes, 0))[-2:].tolist()
    if first == 0 or binomtest(first, first + second, 0.5).pvalue > alpha:
        return ABSTAIN
    return most_frequent(votes.tolist())
