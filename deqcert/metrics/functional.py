"""The formulas of certified robustness on tensors: a score per image, and its mean over all images.

Everything is computed in float64; radii should be given in it, as one rounded to float32 may fall below the r
it was certified for. A mean over no images is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deqcert.errors import DataError, require
from deqcert.statistics import false_certificates_upper

ABSTAIN = -1
"""The prediction of a smoothed classifier that abstains."""


def average_certified_radius(radius: Tensor, correct: Tensor) -> Tensor:
    r"""Average certified radius (ACR).

    .. math:: \mathrm{ACR} = \frac{1}{|S|} \sum_{i \in S} R_i \, 1[\hat y_i = y_i]

    Args:
        radius: ``(B,)`` certified ℓ2 radii.
        correct: ``(B,)`` bool, whether the predicted class is the label.

    Returns:
        Scalar float64, in the unit of ``radius``.

    Raises:
        DataError: If the shapes differ or a radius is negative or not finite.

    References:
        Zhai et al., "MACER", ICLR 2020.

    Example:
        >>> average_certified_radius(torch.tensor([0.5, 0.25, 1.0]), torch.tensor([True, True, False]))
        tensor(0.2500, dtype=torch.float64)
    """
    return certified_radius(radius, correct).mean()


def certified_accuracy(radius: Tensor, correct: Tensor, radii: Sequence[float]) -> Tensor:
    r"""Fraction of all images with the correct class and a certified radius of at least r.

    .. math:: \mathrm{CA}(r) = \frac{1}{|S|} \sum_{i \in S} 1[\hat y_i = y_i] \, 1[R_i \ge r]

    At r = 0 this is the clean accuracy of the smoothed classifier, an abstention counting as wrong.

    Args:
        radius: ``(B,)`` certified ℓ2 radii.
        correct: ``(B,)`` bool, whether the predicted class is the label.
        radii: The R values of r.

    Returns:
        ``(R,)`` float64 fractions in [0, 1].

    Raises:
        DataError: If the shapes differ or a radius is negative or not finite.
        SettingError: If ``radii`` is empty or has a negative or non-finite value.

    References:
        Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019.

    Example:
        >>> certified_accuracy(torch.tensor([0.5, 0.2]), torch.tensor([True, True]), radii=[0.0, 0.25, 1.0])
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    return is_certified(radius, correct, radii).mean(dim=0)


def abstention_rate(prediction: Tensor) -> Tensor:
    r"""Fraction of images on which the smoothed classifier abstains.

    .. math:: \frac{1}{|S|} \sum_{i \in S} 1[\hat y_i = -1]

    Args:
        prediction: ``(B,)`` predicted classes, −1 = abstain.

    Returns:
        Scalar float64 in [0, 1].

    Example:
        >>> abstention_rate(torch.tensor([3, -1, 2, 0]))
        tensor(0.2500, dtype=torch.float64)
    """
    return is_abstention(prediction).mean()


def high_probability_certified_accuracy(certified_accuracy: Tensor | float, m: int, alpha: float, rho: float) -> Tensor:
    r"""Lower bound on the true certified accuracy on these images, given that each certificate may be false.

    .. math:: \mathrm{CA}(r) - \alpha - \sqrt{\frac{2 \alpha (1 - \alpha) \ln(1/\rho)}{m}}
              - \frac{\ln(1/\rho)}{3 m}

    See :func:`~deqcert.statistics.false_certificates_upper` for what is subtracted, and for its sources.

    Args:
        certified_accuracy: Observed certified accuracy, any shape.
        m: Number of images it was observed on.
        alpha: Failure probability of one certificate.
        rho: Failure probability of this bound.

    Returns:
        float64 in the shape of ``certified_accuracy``, never below 0.

    Raises:
        SettingError: If ``m`` < 1, or ``alpha`` or ``rho`` is not in (0, 1).

    Example:
        >>> high_probability_certified_accuracy(0.67, m=500, alpha=0.001, rho=0.001)
        tensor(0.6591, dtype=torch.float64)
    """
    false = false_certificates_upper(m, alpha, rho)
    return (torch.as_tensor(certified_accuracy, dtype=torch.float64) - false).clamp(min=0)


def certified_radius(radius: Tensor, correct: Tensor) -> Tensor:
    """Score of each image for :func:`average_certified_radius`: ``(B,)`` float64."""
    check_radius(radius, correct)
    return torch.where(correct, radius.double(), 0.0)


def is_certified(radius: Tensor, correct: Tensor, radii: Sequence[float]) -> Tensor:
    """Score of each image for :func:`certified_accuracy`: ``(B, R)`` float64 of 0 and 1."""
    check_radius(radius, correct)
    check_radii(radii)
    thresholds = torch.tensor(radii, dtype=torch.float64, device=radius.device)
    return (correct[:, None] & (radius.double()[:, None] >= thresholds)).double()


def is_abstention(prediction: Tensor) -> Tensor:
    """Score of each image for :func:`abstention_rate`: ``(B,)`` float64 of 0 and 1."""
    return (prediction == ABSTAIN).double()


def check_radius(radius: Tensor, other: Tensor) -> None:
    """Raise :class:`DataError` unless ``radius`` and ``other`` are ``(B,)`` and every radius is one."""
    if radius.ndim != 1 or radius.shape != other.shape:
        raise DataError(f"expected tensors of one shape (B,), got {tuple(radius.shape)} and {tuple(other.shape)}")
    if not bool((radius.isfinite() & (radius >= 0)).all()):
        raise DataError("a certified radius must be finite and >= 0")


def check_radii(radii: Sequence[float]) -> None:
    """Raise :class:`SettingError` unless ``radii`` can be thresholds of :func:`certified_accuracy`."""
    require(len(radii) > 0, "radii", radii, "must not be empty")
    require(all(0 <= r < math.inf for r in radii), "radii", radii, "must be finite and >= 0")
