"""Two runs on the same images, image by image: differences that a comparison of means would hide or invent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap

from deqcert.errors import DataError
from deqcert.report.table import Row, Table
from deqcert.runs import CertifiedImage


class PairedCounts(NamedTuple):
    """Images that both, one or none of two runs certify with the correct class at one radius.

    Attributes:
        p_value: Exact two-sided sign test (McNemar) of whether images that only one run certifies fall to either run
            alike; 1 if there are none.
    """

    radius: float
    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float


class Comparison(NamedTuple):
    """What :func:`compare` returns.

    Attributes:
        counts: One for each radius.
        acr_difference: ACR of the second run minus that of the first.
        interval: 95 % bootstrap interval of the difference.
        images: Number of images compared.
    """

    counts: tuple[PairedCounts, ...]
    acr_difference: float
    interval: tuple[float, float]
    images: int


def compare(first: Sequence[CertifiedImage], second: Sequence[CertifiedImage], radii: Sequence[float]) -> Comparison:
    """Compare two runs on the same images.

    The interval is that of the mean of the paired differences of ``radius · 1[correct]`` by the bias-corrected and
    accelerated bootstrap over images (Efron, JASA 1987). It says how the difference would vary with the choice of
    images; it is not part of a certificate.

    Args:
        first: Certificates, or rows of a table, sorted by index.
        second: The same of the other run.
        radii: Where to count.

    Raises:
        DataError: The runs are not of the same images with the same labels, or there is none.
    """
    if [(each.index, each.label) for each in first] != [(each.index, each.label) for each in second]:
        raise DataError("the two runs are not of the same images with the same labels, in the same order")
    if not first:
        raise DataError("there is no image to report on")
    # An image that is not certified with the correct class has a radius below every r >= 0.
    one, other = (np.array([each.radius if each.correct else -1.0 for each in run]) for run in (first, second))
    counts = []
    for radius in radii:
        both = int(((one >= radius) & (other >= radius)).sum())
        only_first, only_second = int((one >= radius).sum()) - both, int((other >= radius).sum()) - both
        differing = only_first + only_second
        p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
        counts.append(PairedCounts(radius, both, only_first, only_second, len(first) - both - differing, p_value))
    differences = np.maximum(other, 0.0) - np.maximum(one, 0.0)
    return Comparison(tuple(counts), float(differences.mean()), _interval(differences), len(first))


def comparison_table(comparison: Comparison, first: str, second: str, sound: bool) -> Table:
    """Return a comparison of two runs of these names, both of them sound or not, as a table: one radius per row."""
    rows = []
    for radius, *numbers, p_value in comparison.counts:
        cells = (*map(str, numbers), f"{p_value:.2g}")
        rows.append(Row(f"{radius:g}", cells, (False,) * len(cells), sound))
    low, high = comparison.interval
    notes = [
        f"ACR of {second} minus ACR of {first}: {comparison.acr_difference:+.4f}, 95 % bootstrap interval over "
        f"{comparison.images} images [{low:+.4f}, {high:+.4f}]"
    ]
    if not sound:
        notes.append("UNSOUND: at least one of the two runs has radii without proof.")
    headings = "both", f"only {first}", f"only {second}", "neither", "p (sign test)"
    return Table("l2 radius", "", (), headings, tuple(rows), tuple(notes))


def _interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    if np.ptp(differences) < 1e-9:  # every resample has the same mean, and the bootstrap no value
        return float(differences.mean()), float(differences.mean())
    found = bootstrap((differences,), np.mean, method="BCa", rng=np.random.default_rng(0), vectorized=True, batch=500)
    low, high = found.confidence_interval
    return float(low), float(high)
