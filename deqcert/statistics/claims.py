"""What certificates claim: how many may be false, what one says of other points, and when fresh votes refute it.

Somebody finds a point x + delta, draws fresh noise there and counts n_A of n labels A. A certificate of radius R claims
that A has at least :func:`claimed_probability` there, and the exact one-sided binomial test refutes that where
:func:`~deqcert.statistics.bounds.clopper_pearson_upper` (n_A, n, alpha) is below: of a true claim with probability at
most alpha, provided that neither the point nor alpha depends on these votes. Of K tests with alpha / K each, any errs
with probability at most alpha, dependent or not (Bonferroni).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from deqcert.errors import require
from deqcert.statistics.arguments import FloatArray, demand


def claimed_probability(radius: ArrayLike, norm: ArrayLike, sigma: ArrayLike) -> FloatArray:
    """Probability that the certified class has at least, by the certificate, at l2 distance ``norm`` of the image.

    Phi((R - norm) / sigma): sigma * Phi^-1(p_A) changes by at most the distance (Salman et al., NeurIPS 2019, lemma 2),
    and R = sigma * Phi^-1(p_A_lower) bounds it from below at the image. That is above 1/2 strictly inside of the
    radius, where the class may not change, and goes on beyond it: a certificate that claims too much can be refuted
    before any class changes. Of any other class, "not that class" has at least the same with
    R = -sigma * Phi^-1(p_B_upper).

    Args:
        radius: sigma * Phi^-1 of the bound at the image, in pixels of [0, 1]; with one side the certified radius.
        norm: l2 norm of the perturbation, >= 0.
        sigma: Standard deviation of the noise, > 0.

    Returns:
        Lower bound on p_A at the perturbed image, in [0, 1], of the broadcast shape.

    Raises:
        SettingError: ``radius`` or ``norm`` is not finite, ``norm`` is negative, or ``sigma`` is not positive and
            finite.

    Example:
        >>> claimed_probability(radius=0.5, norm=[0.0, 0.5, 1.0], sigma=0.5).round(3).tolist()
        [0.841, 0.5, 0.159]
    """
    radius, norm = np.asarray(radius, dtype=np.float64), np.asarray(norm, dtype=np.float64)
    sigma = np.asarray(sigma, dtype=np.float64)
    demand(np.isfinite(radius), "radius", radius, "must be finite")
    demand((norm >= 0) & np.isfinite(norm), "norm", norm, "must be finite and >= 0")
    demand((sigma > 0) & np.isfinite(sigma), "sigma", sigma, "must be > 0 and finite")
    return np.asarray(ndtr((radius - norm) / sigma))


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
