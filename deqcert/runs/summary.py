"""The numbers of a run: accuracy, radius, cost.

Every fraction and every mean is over *all* images; an abstention counts as wrong with radius 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from deqcert.errors import DataError
from deqcert.metrics import abstention_rate, average_certified_radius, certified_accuracy
from deqcert.metrics.functional import demand_radii
from deqcert.runs.tsv import CertifiedImage
from deqcert.statistics import Record, radius_of_count

_Example = TypeVar("_Example", bound=CertifiedImage)


class Summary(NamedTuple):
    """The numbers of one run, ``examples`` being the number of its images. Costs are None without votes.

    Attributes:
        certified_accuracy: For each of ``radii``, the fraction of images with the correct class and that radius or more.
        clean_accuracy: Certified accuracy at radius 0.
        average_certified_radius: ACR; the radius counts as 0 where the class is wrong.
        nfe_fast: Evaluations of the DEQ cell per noisy sample, for the predictions; ``nfe_audit`` for the audit.
        mismatch_rate: Fraction of the audited noisy samples whose SRS prediction was wrong; None without an audit.
        mean_residual: Mean relative residual; None if an image has no finite one.
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


def summarize(
    examples: Sequence[CertifiedImage],
    votes: Sequence[Record] | None,
    radii: Sequence[float],
    seconds: Sequence[float] | None = None,
) -> Summary:
    """Compute the numbers of a run.

    Args:
        examples: Certificates, or rows of a table; at least one.
        votes: What the certificates were derived from, in any order; None for a table.
        radii: Where to give certified accuracy.
        seconds: Time spent on each image of a table, if it is known.

    Raises:
        DataError: There is no image, or certificates and votes are not of the same images.
        SettingError: ``radii`` is empty or has a negative or non-finite value.
    """
    demand_radii(radii)
    radius = [example.radius for example in examples]
    correct = [example.correct for example in examples]
    clean, *at_radii = certified_accuracy(radius, correct, [0.0, *radii]).tolist()
    summary = Summary(
        examples=len(examples),
        radii=tuple(radii),
        certified_accuracy=tuple(at_radii),
        clean_accuracy=clean,
        average_certified_radius=average_certified_radius(radius, correct),
        abstention_rate=abstention_rate([example.prediction for example in examples]),
        nfe_fast=None,
        nfe_audit=None,
        nfe_total=None,
        mismatch_rate=None,
        mean_residual=None,
        seconds_per_image=None if seconds is None else sum(seconds) / len(seconds),
        sound=all(example.sound for example in examples),
    )
    if votes is None:
        return summary
    match_votes(examples, votes)
    costs = [vote.cost for vote in votes]
    samples, nfe_fast, nfe_audit, audited, mismatches, residual, time = map(sum, zip(*costs, strict=True))
    return summary._replace(
        nfe_fast=nfe_fast / samples,
        nfe_audit=nfe_audit / samples,
        nfe_total=(nfe_fast + nfe_audit) / samples,
        mismatch_rate=mismatches / audited if audited else None,
        mean_residual=residual / len(votes) if math.isfinite(residual) else None,
        seconds_per_image=time / len(votes),
    )


def match_votes(certificates: Sequence[_Example], votes: Sequence[Record]) -> list[tuple[_Example, Record]]:
    """Pair each certificate with its votes, sorted by index.

    Raises:
        DataError: An index comes twice, or has a certificate but no votes or the reverse.
    """
    by_index = {vote.index: vote for vote in votes}
    ordered = sorted(certificates, key=lambda certificate: certificate.index)
    if len(by_index) < len(votes) or [certificate.index for certificate in ordered] != sorted(by_index):
        raise DataError("certificates and votes are not of the same images, each once")
    return [(certificate, by_index[certificate.index]) for certificate in ordered]


def automatic_radii(sigma: float, alpha: float, n: int) -> tuple[float, ...]:
    """Return at most 9 radii for a table: 0 and round steps up to that of n votes out of n, the largest possible one.

    The step is the field's: 0.25 for σ of 0.25 and 0.5, σ/2 above. For a small σ it is halved until it is at most 1.5 σ,
    for a huge n doubled until 9 radii suffice.

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
