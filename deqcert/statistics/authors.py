"""The two rules of the authors of serialized randomized smoothing for audited votes (Gao et al., NeurIPS 2024)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta

from deqcert.statistics.arguments import FloatArray, IntArray, checked_counts, checked_level, demand
from deqcert.statistics.bounds import clopper_pearson_lower


def binomial_effective_count(
    n_a: ArrayLike, audited: ArrayLike, mismatches: ArrayLike, alpha_audit: ArrayLike
) -> IntArray:
    """Bound what :func:`exact_effective_count` bounds by the binomial rule, slightly looser.

    The form that the authors of serialized randomized smoothing give in the reviews of their paper: the audit is
    treated as if drawn with replacement, and N_eff = floor(N_A * (1 - p_m)) with p_m the Clopper-Pearson upper bound on
    the probability of a mismatch.
    """
    n_a, audited, mismatches = checked_counts(n_a=n_a, audited=audited, mismatches=mismatches)
    matching = np.floor(n_a * _match_probability_lower(audited, mismatches, alpha_audit))
    return np.asarray(matching, dtype=np.int64)


def published_p_a_lower(
    n_a: ArrayLike, n: ArrayLike, audited: ArrayLike, mismatches: ArrayLike, alpha: ArrayLike
) -> FloatArray:
    """Bound p_A as the authors' code does. NOT sound: the result exceeds the true p_A far more often than ``alpha``.

    It serves comparison with published tables only.

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
    conserve = _match_probability_lower(audited, mismatches, half)
    kept_a, kept = n_a * conserve, n * conserve
    nothing = kept_a == 0  # there the beta distribution does not exist
    return np.where(nothing, 0.0, beta.ppf(half, np.where(nothing, 1.0, kept_a), kept - kept_a + 1))


def _match_probability_lower(audited: IntArray, mismatches: IntArray, alpha: ArrayLike) -> FloatArray:
    """Bound P(Y = A | S = A) from below as if the audit were drawn with replacement; 0 without one."""
    bound = clopper_pearson_lower(audited - mismatches, np.maximum(audited, 1), alpha)
    return np.where(audited == 0, 0.0, bound)
