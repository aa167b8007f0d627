"""Two runs on the same images, image by image: differences that a comparison of means would hide or invent."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import DegenerateDataWarning, binomtest, bootstrap

from deqcert.errors import DataError, require
from deqcert.report.table import Row, Table
from deqcert.runs import CertifiedImage

_RESAMPLES = 9999


class PairedCounts(NamedTuple):
    """Images certified with the correct class at one radius.

    Attributes:
        radius: The radius.
        both: By both runs.
        only_first: By the first run only.
        only_second: By the second run only.
        neither: By neither.
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
        interval: Bootstrap interval of the difference.
        confidence: Its nominal level.
        images: Images compared.
    """

    counts: tuple[PairedCounts, ...]
    acr_difference: float
    interval: tuple[float, float]
    confidence: float
    images: int


def compare(
    first: Sequence[CertifiedImage],
    second: Sequence[CertifiedImage],
    radii: Sequence[float],
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two runs on the same images.

    The interval is that of the mean of the paired differences of ``radius · 1[correct]`` by the bias-corrected and
    accelerated bootstrap over images (Efron, JASA 1987). It says how the difference would vary with the choice of
    images; it is not part of a certificate.

    Args:
        first: Certificates, or rows of a table, sorted by index.
        second: The same of the other run.
        radii: Where to count.
        confidence: Nominal level of the interval, in (0, 1).
        seed: Seed of the resampling.

    Raises:
        DataError: The runs are not of the same images with the same labels, or there is none.
        SettingError: ``confidence`` is out of range.
    """
    require(0 < confidence < 1, "confidence", confidence, "must be in (0, 1)")
    if [(each.index, each.label) for each in first] != [(each.index, each.label) for each in second]:
        raise DataError("the two runs are not of the same images with the same labels, in the same order")
    if not first:
        raise DataError("there is no image to report on")
    counts = []
    for radius in radii:
        one, other = _certified(first, radius), _certified(second, radius)
        only_first, only_second = int((one & ~other).sum()), int((other & ~one).sum())
        differing = only_first + only_second
        p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
        both = int((one & other).sum())
        counts.append(PairedCounts(radius, both, only_first, only_second, len(first) - both - differing, p_value))
    differences = _scores(second) - _scores(first)
    return Comparison(
        tuple(counts), float(differences.mean()), _interval(differences, confidence, seed), confidence, len(first)
    )


def comparison_table(comparison: Comparison, first: str, second: str, sound: bool) -> Table:
    """Return a comparison as a table, one radius per row.

    Args:
        comparison: From :func:`compare`.
        first: Name of the first run.
        second: Name of the second.
        sound: Whether both are sound.
    """
    rows = []
    for each in comparison.counts:
        numbers = each.both, each.only_first, each.only_second, each.neither
        cells = (*map(str, numbers), f"{each.p_value:.2g}")
        rows.append(Row(f"{each.radius:g}", cells, (False,) * len(cells), sound))
    low, high = comparison.interval
    notes = (
        f"ACR of {second} minus ACR of {first}: {comparison.acr_difference:+.4f}, {100 * comparison.confidence:g} % "
        f"bootstrap interval over {comparison.images} images [{low:+.4f}, {high:+.4f}]",
        *(() if sound else ("UNSOUND: at least one of the two runs has radii without proof.",)),
    )
    headings = "both", f"only {first}", f"only {second}", "neither", "p (sign test)"
    return Table("l2 radius", "", (), headings, tuple(rows), notes)


def _certified(examples: Sequence[CertifiedImage], radius: float) -> NDArray[np.bool_]:
    return np.array([each.correct and each.radius >= radius for each in examples])


def _scores(examples: Sequence[CertifiedImage]) -> NDArray[np.float64]:
    return np.array([each.radius if each.correct else 0.0 for each in examples])


def _interval(differences: NDArray[np.float64], confidence: float, seed: int) -> tuple[float, float]:
    if np.ptp(differences) == 0:
        # Every resample has the same mean.
        return float(differences[0]), float(differences[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", DegenerateDataWarning)
        for method in ("BCa", "percentile"):  # the former has no value for one image, or where it divides by zero
            try:
                result = bootstrap(
                    (differences,),
                    np.mean,
                    n_resamples=_RESAMPLES,
                    confidence_level=confidence,
                    method=method,
                    rng=np.random.default_rng(seed),
                    vectorized=True,
                    batch=500,
                )
            except DegenerateDataWarning:
                continue
            low, high = result.confidence_interval
            if np.isfinite([low, high]).all():
                return float(low), float(high)
    raise AssertionError("percentiles of finite numbers are finite")
