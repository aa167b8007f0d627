"""How much of a certified accuracy may be owed to false certificates."""

from __future__ import annotations

import math

from deqcert.errors import require


def false_certificates_upper(m: int, alpha: float, rho: float) -> float:
    r"""Bound the fraction of false certificates among ``m``, each false with probability at most ``alpha``.

    By Bernstein's inequality the fraction exceeds the bound with probability at most ``rho``, whatever the true
    probabilities are, if the certificates fail independently:

    .. math:: \alpha + \sqrt{\frac{2 \alpha (1 - \alpha) \ln(1/\rho)}{m}} + \frac{\ln(1/\rho)}{3 m}

    The public code of Cohen et al. leaves out the factor 2 under the root. Its bound fails too often: at
    m = 10 000, α = 0.1, ρ = 0.001 with probability 0.0036.

    Args:
        m: Number of images.
        alpha: Failure probability of one certificate.
        rho: Failure probability of this bound.

    Returns:
        The bound, > 0; it may exceed 1.

    Raises:
        SettingError: ``m`` < 1, or ``alpha`` or ``rho`` is not in (0, 1).

    References:
        Cohen, Rosenfeld and Kolter, ICML 2019 (without the 2); Boucheron, Lugosi and Massart,
        "Concentration inequalities", 2013, section 2.8.

    Example:
        >>> round(false_certificates_upper(500, alpha=0.001, rho=0.001), 4)
        0.0109
    """
    require(m >= 1, "m", m, "must be at least 1")
    require(0 < alpha < 1, "alpha", alpha, "must be in (0, 1)")
    require(0 < rho < 1, "rho", rho, "must be in (0, 1)")
    log_term = math.log(1 / rho)
    return alpha + math.sqrt(2 * alpha * (1 - alpha) * log_term / m) + log_term / (3 * m)
