"""The numbers of a run: accuracy, radius, cost.

Every fraction and every mean is over *all* images; an abstention counts as wrong with radius 0. The formulas
are those of :mod:`deqcert.metrics.functional`, here in numpy, so that a report needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deqcert.errors import DataError, require
from deqcert.report.examples import CertifiedExample
from deqcert.statistics import ABSTAIN, Votes, radius_of_count

_Example = TypeVar("_Example", bound=CertifiedExample)


class Summary(NamedTuple):
    """The numbers of one run. Costs are None where the votes are not known.

    Attributes:
        examples: Images certified.
        radii: The R radii at which certified accuracy is given.
        certified_accuracy: R fractions of all images with the correct class and at least that radius.
        clean_accuracy: Certified accuracy at radius 0.
        average_certified_radius: Mean of the radii, 0 where the class is wrong (ACR).
        abstention_rate: Fraction of all images without a prediction.
        nfe_fast: Evaluations of the DEQ cell per noisy copy, for the labels.
        nfe_audit: The same for the audit.
        nfe_total: Their sum.
        mismatch_rate: Fraction of the audited copies whose cheap label was wrong; None without an audit.
        mean_residual: Mean over images of the relative residual; None if an image has no finite one.
        seconds_per_image: Mean wall-clock time.
        sound: Whether every certificate has a proof.
    """

    examples: int
    radii: tuple[float, ...]
    certified_accuracy: tuple[float, ...]
    clean_accuracy: float
    average_certified_radius: float
    abstention_rate: float
    nfe_fast: float | None
    nfe_audit: float | None
    nfe_total: float | None
    mismatch_rate: float | None
    mean_residual: float | None
    seconds_per_image: float | None
    sound: bool


def summarize(certificates: Sequence[CertifiedExample], votes: Sequence[Votes], radii: Sequence[float]) -> Summary:
    """Summarize a run of ours.

    Args:
        certificates: One for each image.
        votes: What they were derived from, in any order.
        radii: Where to give certified accuracy.

    Returns:
        The numbers, none of them NaN.

    Raises:
        DataError: There is no image, or certificates and votes are not of the same images.
        SettingError: ``radii`` is empty or has a negative or non-finite value.
    """
    summary = _accuracies(certificates, radii)
    match_votes(certificates, votes)
    samples = sum(vote.n0 + vote.n for vote in votes)
    nfe_fast = sum(vote.nfe_fast for vote in votes)
    nfe_audit = sum(vote.nfe_audit for vote in votes)
    audited = sum(vote.audited or 0 for vote in votes)
    residual = sum(vote.residual for vote in votes) / len(votes)
    return summary._replace(
        nfe_fast=nfe_fast / samples,
        nfe_audit=nfe_audit / samples,
        nfe_total=(nfe_fast + nfe_audit) / samples,
        mismatch_rate=sum(vote.mismatches for vote in votes) / audited if audited else None,
        mean_residual=residual if math.isfinite(residual) else None,
        seconds_per_image=sum(vote.seconds for vote in votes) / len(votes),
    )


def summarize_rows(
    examples: Sequence[CertifiedExample], seconds: Sequence[float] | None, radii: Sequence[float]
) -> Summary:
    """Summarize a table that was read, whose votes are not known.

    Args:
        examples: At least one.
        seconds: Time spent on each; None if it is not known.
        radii: Where to give certified accuracy.

    Returns:
        The numbers; of the costs only the time.

    Raises:
        DataError: There is no image.
        SettingError: ``radii`` is empty or has a negative or non-finite value.
    """
    summary = _accuracies(examples, radii)
    return summary._replace(seconds_per_image=None if seconds is None else sum(seconds) / len(seconds))


def match_votes(certificates: Sequence[_Example], votes: Sequence[Votes]) -> list[tuple[_Example, Votes]]:
    """Pair each certificate with its votes, sorted by index.

    Raises:
        DataError: An index comes twice, or has a certificate but no votes or the reverse.
    """
    by_index = {vote.index: vote for vote in votes}
    ordered = sorted(certificates, key=lambda certificate: certificate.index)
    if len(by_index) < len(votes) or [certificate.index for certificate in ordered] != sorted(by_index):
        raise DataError("certificates and votes are not of the same images, each once")
    return [(certificate, by_index[certificate.index]) for certificate in ordered]


def certified_accuracy(radius: ArrayLike, correct: ArrayLike, radii: ArrayLike) -> NDArray[np.float64]:
    r"""Fraction of all images with the correct class and a radius of at least r, at each r.

    :math:`\frac{1}{|S|} \sum_{i \in S} 1[\hat y_i = y_i] \, 1[R_i \ge r]` (Cohen, Rosenfeld and Kolter,
    ICML 2019).

    Args:
        radius: ``(B,)`` certified radii.
        correct: ``(B,)`` bool.
        radii: ``(R,)`` values of r.

    Returns:
        ``(R,)`` fractions in [0, 1].

    Raises:
        DataError: There is no image.

    Example:
        >>> certified_accuracy([0.5, 0.2], [True, True], radii=[0, 0.25, 1]).tolist()
        [1.0, 0.5, 0.0]
    """
    reached = np.asarray(radius, dtype=np.float64)[:, None] >= np.asarray(radii, dtype=np.float64)
    _demand_images(len(reached))
    fraction: NDArray[np.float64] = np.mean(np.asarray(correct, dtype=np.bool_)[:, None] & reached, axis=0)
    return fraction


def average_certified_radius(radius: ArrayLike, correct: ArrayLike) -> float:
    r"""Average certified radius, :math:`\frac{1}{|S|} \sum_{i \in S} R_i \, 1[\hat y_i = y_i]`.

    Over all images, wrong ones counting 0 (Zhai et al., "MACER", ICLR 2020).

    Args:
        radius: ``(B,)`` certified radii.
        correct: ``(B,)`` bool.

    Raises:
        DataError: There is no image.

    Example:
        >>> average_certified_radius([0.5, 0.25, 1.0], [True, True, False])
        0.25
    """
    counted = np.where(np.asarray(correct, dtype=np.bool_), np.asarray(radius, dtype=np.float64), 0.0)
    _demand_images(len(counted))
    return float(counted.mean())


def automatic_radii(sigma: float, alpha: float, n: int) -> tuple[float, ...]:
    """Radii for a table: 0 and round steps up to the largest radius that can be certified.

    The largest radius is that of n votes out of n. The step is the field's: 0.25 for σ of 0.25 and 0.5, σ/2
    above. For a small σ it is halved until it is at most 1.5 σ, for a huge n doubled until 9 radii suffice.

    Args:
        sigma: Standard deviation of the noise, in pixel units.
        alpha: Error probability of a certificate.
        n: Noisy copies of an image.

    Returns:
        At most 9 increasing radii, the first 0; only 0 if n is too small to certify anything.

    Raises:
        SettingError: ``sigma`` is not positive and finite, ``alpha`` not in (0, 1) or ``n`` < 1.

    Example:
        >>> automatic_radii(sigma=0.5, alpha=0.001, n=10_000)
        (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    """
    largest = radius_of_count(n, n, alpha, sigma)
    step = 0.25 if sigma <= 0.5 else sigma / 2
    while step > 1.5 * sigma:
        step /= 2
    while largest >= 9 * step:
        step *= 2
    return tuple(round(step * i, 10) for i in range(int(largest / step) + 1))


def _accuracies(examples: Sequence[CertifiedExample], radii: Sequence[float]) -> Summary:
    _demand_images(len(examples))
    require(len(radii) > 0, "radii", radii, "must not be empty")
    require(all(0 <= r < math.inf for r in radii), "radii", radii, "must be finite and >= 0")
    radius = [example.radius for example in examples]
    correct = [example.correct for example in examples]
    clean, *at_radii = certified_accuracy(radius, correct, [0.0, *radii]).tolist()
    return Summary(
        examples=len(examples),
        radii=tuple(radii),
        certified_accuracy=tuple(at_radii),
        clean_accuracy=clean,
        average_certified_radius=average_certified_radius(radius, correct),
        abstention_rate=sum(example.prediction == ABSTAIN for example in examples) / len(examples),
        nfe_fast=None,
        nfe_audit=None,
        nfe_total=None,
        mismatch_rate=None,
        mean_residual=None,
        seconds_per_image=None,
        sound=all(example.sound for example in examples),
    )


def _demand_images(count: int) -> None:
    if count == 0:
        raise DataError("there is no image to report on")
