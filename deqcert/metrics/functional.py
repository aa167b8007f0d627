"""The formulas of certified robustness: a score per image, and its mean over all images.

Everything is computed in float64; radii should be given in it, as one rounded to float32 may fall below the r
it was certified for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deqcert.errors import DataError, require
from deqcert.statistics import ABSTAIN, false_certificates_upper

FloatArray = NDArray[np.float64]


def average_certified_radius(radius: ArrayLike, correct: ArrayLike) -> float:
    r"""Average certified radius (ACR), :math:`\frac{1}{|S|} \sum_{i \in S} R_i \, 1[\hat y_i = y_i]`.

    Args:
        radius: ``(B,)`` certified ℓ2 radii.
        correct: ``(B,)`` bool, whether the predicted class is the label.

    Raises:
        DataError: There is no image, the shapes differ, or a radius is negative or not finite.

    References:
        Zhai et al., "MACER", ICLR 2020.

    Example:
        >>> average_certified_radius([0.5, 0.25, 1.0], [True, True, False])
        0.25
    """
    return float(_mean(certified_radius(radius, correct)))


def certified_accuracy(radius: ArrayLike, correct: ArrayLike, radii: Sequence[float] | FloatArray) -> FloatArray:
    r"""Fraction of all images with the correct class and a certified radius of at least r, at each r.

    :math:`\mathrm{CA}(r) = \frac{1}{|S|} \sum_{i \in S} 1[\hat y_i = y_i] \, 1[R_i \ge r]`. At r = 0 this is the clean
    accuracy of the smoothed classifier, an abstention counting as wrong.

    Args:
        radius: ``(B,)`` certified ℓ2 radii.
        correct: ``(B,)`` bool, whether the predicted class is the label.
        radii: The R values of r.

    Returns:
        ``(R,)`` fractions in [0, 1].

    Raises:
        DataError: There is no image, the shapes differ, or a radius is negative or not finite.
        SettingError: ``radii`` is empty or has a negative or non-finite value.

    References:
        Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019.

    Example:
        >>> certified_accuracy([0.5, 0.2], [True, True], radii=[0.0, 0.25, 1.0]).tolist()
        [1.0, 0.5, 0.0]
    """
    return _mean(is_certified(radius, correct, radii))


def abstention_rate(prediction: ArrayLike) -> float:
    """Fraction of images on which the smoothed classifier abstains.

    Args:
        prediction: ``(B,)`` predicted classes, −1 = abstain.

    Raises:
        DataError: There is no image.

    Example:
        >>> abstention_rate([3, -1, 2, 0])
        0.25
    """
    return float(_mean(is_abstention(prediction)))


def high_probability_certified_accuracy(certified_accuracy: ArrayLike, m: int, alpha: float, rho: float) -> FloatArray:
    """Lower bound on the true certified accuracy on these images, given that each certificate may be false.

    Args:
        certified_accuracy: Observed certified accuracy, any shape.
        m: Number of images it was observed on.
        alpha: Failure probability of one certificate.
        rho: Failure probability of this bound.

    Returns:
        The accuracy less :func:`~deqcert.statistics.false_certificates_upper`, never below 0, in the same shape.

    Raises:
        SettingError: ``m`` < 1, or ``alpha`` or ``rho`` is not in (0, 1).

    Example:
        >>> round(float(high_probability_certified_accuracy(0.67, m=500, alpha=0.001, rho=0.001)), 4)
        0.6591
    """
    observed = np.asarray(certified_accuracy, dtype=np.float64)
    return np.maximum(0.0, observed - false_certificates_upper(m, alpha, rho))


def certified_radius(radius: ArrayLike, correct: ArrayLike) -> FloatArray:
    """Score of each image for :func:`average_certified_radius`, ``(B,)``."""
    radius, correct = _checked(radius, correct)
    return np.where(correct, radius, 0.0)


def is_certified(radius: ArrayLike, correct: ArrayLike, radii: Sequence[float] | FloatArray) -> FloatArray:
    """Score of each image for :func:`certified_accuracy`, ``(B, R)`` of 0 and 1."""
    radius, correct = _checked(radius, correct)
    demand_radii(radii)
    return np.asarray(correct[:, None] & (radius[:, None] >= np.asarray(radii)), dtype=np.float64)


def is_abstention(prediction: ArrayLike) -> FloatArray:
    """Score of each image for :func:`abstention_rate`, ``(B,)`` of 0 and 1."""
    return np.asarray(np.asarray(prediction) == ABSTAIN, dtype=np.float64)


def demand_radii(radii: Sequence[float] | FloatArray) -> None:
    """Raise :class:`SettingError` unless ``radii`` can be thresholds of :func:`certified_accuracy`."""
    require(len(radii) > 0, "radii", radii, "must not be empty")
    require(all(0 <= r < math.inf for r in radii), "radii", radii, "must be finite and >= 0")


def _checked(radius: ArrayLike, correct: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
    radius, correct = np.asarray(radius, dtype=np.float64), np.asarray(correct, dtype=np.bool_)
    if radius.ndim != 1 or radius.shape != correct.shape:
        raise DataError(f"expected radius and correct of one shape (B,), got {radius.shape} and {correct.shape}")
    if not (np.isfinite(radius) & (radius >= 0)).all():
        raise DataError("a certified radius must be finite and >= 0")
    return radius, correct


def _mean(score: FloatArray) -> FloatArray:
    if len(score) == 0:
        raise DataError("there is no image to report on")
    mean: FloatArray = score.mean(axis=0)
    return mean
