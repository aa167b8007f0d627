"""The formulas of certified robustness, each a mean over *all* images: an abstention or a wrong class scores 0.

Everything is computed in float64; radii should be given in it, as one rounded to float32 may fall below the r
it was certified for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deqcert.errors import DataError, require
from deqcert.statistics import ABSTAIN

FloatArray = NDArray[np.float64]


def average_certified_radius(radius: ArrayLike, correct: ArrayLike) -> float:
    r"""Average certified radius (ACR), :math:`\frac{1}{|S|} \sum_{i \in S} R_i \, 1[\hat y_i = y_i]`.

    Source: Zhai et al., "MACER", ICLR 2020.

    Args:
        radius: ``(B,)`` certified ℓ2 radii.
        correct: ``(B,)`` bool, whether the predicted class is the label.

    Raises:
        DataError: There is no image, the shapes differ, or a radius is negative or not finite.

    Example:
        >>> average_certified_radius([0.5, 0.25, 1.0], [True, True, False])
        0.25
    """
    radius, correct = checked(radius, correct)
    return float(np.where(correct, radius, 0.0).mean())


def certified_accuracy(radius: ArrayLike, correct: ArrayLike, radii: Sequence[float] | FloatArray) -> FloatArray:
    r"""Fraction of all images with the correct class and a certified radius of at least r, at each r.

    :math:`\mathrm{CA}(r) = \frac{1}{|S|} \sum_{i \in S} 1[\hat y_i = y_i] \, 1[R_i \ge r]`. At r = 0 this is the clean
    accuracy of the smoothed classifier. Source: Cohen, Rosenfeld and Kolter, ICML 2019.

    Args:
        radius: ``(B,)`` certified ℓ2 radii.
        correct: ``(B,)`` bool, whether the predicted class is the label.
        radii: The R values of r.

    Returns:
        ``(R,)`` fractions in [0, 1].

    Raises:
        DataError: There is no image, the shapes differ, or a radius is negative or not finite.
        SettingError: ``radii`` is empty or has a negative or non-finite value.

    Example:
        >>> certified_accuracy([0.5, 0.2], [True, True], radii=[0.0, 0.25, 1.0]).tolist()
        [1.0, 0.5, 0.0]
    """
    radius, correct = checked(radius, correct)
    demand_radii(radii)
    accuracy: FloatArray = (correct[:, None] & (radius[:, None] >= np.asarray(radii))).mean(axis=0)
    return accuracy


def abstention_rate(prediction: ArrayLike) -> float:
    """Fraction of images on which the smoothed classifier abstains.

    Args:
        prediction: ``(B,)`` predicted classes, −1 = abstain; B >= 1.

    Example:
        >>> abstention_rate([3, -1, 2, 0])
        0.25
    """
    return float((np.asarray(prediction) == ABSTAIN).mean())


def demand_radii(radii: Sequence[float] | FloatArray) -> None:
    """Raise :class:`SettingError` unless ``radii`` can be thresholds of :func:`certified_accuracy`."""
    require(len(radii) > 0, "radii", radii, "must not be empty")
    require(all(0 <= r < math.inf for r in radii), "radii", radii, "must be finite and >= 0")


def checked(radius: ArrayLike, correct: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return both as arrays, or raise :class:`DataError` unless they can be averaged."""
    radius, correct = np.asarray(radius, dtype=np.float64), np.asarray(correct, dtype=np.bool_)
    if radius.ndim != 1 or radius.shape != correct.shape:
        raise DataError(f"expected radius and correct of one shape (B,), got {radius.shape} and {correct.shape}")
    if radius.size == 0:
        raise DataError("there is no image to report on")
    if not (np.isfinite(radius) & (radius >= 0)).all():
        raise DataError("a certified radius must be finite and >= 0")
    return radius, correct
