"""The estimator in the public code of serialized randomized smoothing, to compare with published tables. NOT sound."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta

from deqcert.statistics.arguments import FloatArray, checked_counts, checked_level, demand
from deqcert.statistics.audit import match_probability_lower


def published_p_a_lower(
    n_a: ArrayLike, n: ArrayLike, audited: ArrayLike, mismatches: ArrayLike, alpha: ArrayLike
) -> FloatArray:
    """Bound p_A as the authors' code does; the result exceeds the true p_A far more often than ``alpha``.

    Both N_A and n are scaled by the bound on the match probability and put into the Clopper-Pearson bound as the
    fractions that this makes of them. Their ratio stays, so mismatches hardly lower the result.

    Args:
        n_a: Samples with S = A, <= n.
        n: All estimation samples, >= 1.
        audited: Audited samples; 0 gives 0.
        mismatches: Audited samples with Y != A.
        alpha: Nominal error probability in (0, 1), of which either bound gets one half.

    Raises:
        SettingError: A count is not an integer or out of range, or ``alpha`` is outside of (0, 1).
    """
    n, n_a, audited, mismatches = checked_counts(n=n, n_a=n_a, audited=audited, mismatches=mismatches)
    demand(n >= 1, "n", n, "must be >= 1")
    half = checked_level("alpha", alpha) / 2
    conserve = match_probability_lower(audited, mismatches, half)
    kept_a, kept = n_a * conserve, n * conserve
    nothing = kept_a == 0  # there the beta distribution does not exist
    return np.where(nothing, 0.0, beta.ppf(half, np.where(nothing, 1.0, kept_a), kept - kept_a + 1))
